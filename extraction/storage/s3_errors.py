"""The errors of the S3 client: whether to retry, which domain error they are, and a line of text for messages.

In: exceptions of boto3 and its libraries. Out: yes or no, a domain error, or one line of text. Guarantee: the text
contains no credential. Cost: none.
"""

import re
from typing import Any

from ..core.errors import BucketDenied, InvalidRequest, NoCredentials, ObjectExists, ObjectNotFound
from .retries import is_passing_status

_SECRET = re.compile(r"(?:Signature=|X-Amz-\w+=|Credential=)\S+|[\w+/=-]{40,}")
_PASSING_CODES = {
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
    "SlowDown",
    "RequestTimeTooSkewed",
}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_LOST_UPLOAD = {"NoSuchUpload", "BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "PreconditionFailed"}


def code_of(error: Exception) -> str:
    """Return the service's code of an error, empty if it is not one of the service."""
    return str(_response_of(error).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error, 0 if it is not one of the service."""
    return int(_response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response_of(error: Exception) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def is_missing(error: Exception) -> bool:
    """Return whether an object is missing, and not its bucket."""
    return status_of(error) == 404 and code_of(error) != "NoSuchBucket"


def is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed later: the network or a busy service failed."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    network = exceptions.HTTPClientError | exceptions.ConnectionError | exceptions.IncompleteReadError
    if isinstance(error, network | ResponseParserError | HTTPError | ConnectionError | TimeoutError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    if isinstance(error, exceptions.ClientError):
        return is_passing_status(status_of(error)) or code_of(error) in _PASSING_CODES
    return isinstance(error, exceptions.MetadataRetrievalError)


def is_worth_another_upload(error: Exception) -> bool:
    """Return whether to restart an upload that failed with this error and left no object."""
    return code_of(error) in _LOST_UPLOAD


def domain_error(error: Exception, permission: str, bucket: str, url: str) -> Exception:
    """Return the domain error for an error of the client; the error itself if it is not one of the client's.

    A failed condition is ObjectExists.
    """
    from botocore import exceptions

    credentials = (
        exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.CredentialRetrievalError
    )
    session = exceptions.SSOError | exceptions.TokenRetrievalError | exceptions.ProfileNotFound
    status, code = status_of(error), code_of(error)
    # The answer to a HEAD request has no code: with expired credentials it is a bare 400.
    if isinstance(error, credentials | session) or code in _EXPIRED_CODES or (status, code) == (400, "400"):
        return NoCredentials(f"s3://{bucket}: there are no AWS credentials that can be used: {reason(error)}")
    if isinstance(error, exceptions.ClientError):
        if code == "NoSuchBucket":
            return InvalidRequest(f"s3://{bucket}: there is no such bucket")
        if status == 404:
            return ObjectNotFound(f"{url} is not there")
        if status == 412:
            return ObjectExists(f"{url} is there with other bytes")
        if status in (401, 403):
            return BucketDenied(f"s3:{permission} on s3://{bucket} was refused: {reason(error)}")
        return InvalidRequest(f"{url}: the service refused: {reason(error)}")
    if isinstance(error, exceptions.BotoCoreError):
        return InvalidRequest(f"{url}: {reason(error)}")
    return error


def reason(error: Exception) -> str:
    """Return the first line of a library's message, without secrets, in at most 200 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return _SECRET.sub("...", lines[0])[:200]
