"""The errors of the Google Cloud Storage client: whether to retry, and a line of text for messages.

In: exceptions of the client and its libraries (google-auth, requests, urllib3). Out: yes or no, or one line of text.
Guarantee: the text contains no credential, and no address of an upload session. Cost: none.
"""

import json
import os
import re

from ..core.google_machine import metadata_host
from .retries import is_passing_status

_SECRET = re.compile(r"(?:upload_id=|ya29\.|1//|Bearer )\S+|[\w+/=-]{40,}")
_RATE_LIMIT = re.compile(r"rateLimitExceeded|quotaExceeded", re.IGNORECASE)  # reasons in an answer


def is_bucket_missing(error: Exception) -> bool:
    """Return whether a 404 is about the bucket and not about an object in it."""
    return "bucket does not exist" in str(error)


def is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed later: the network, a busy service or a token server failed."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    network = RequestException | HTTPError | ConnectionError | TimeoutError | TransportError | InvalidResponse
    if isinstance(error, network | json.JSONDecodeError | KeyError):  # the last two: an answer that was cut, or is odd
        return True
    if isinstance(error, AttributeError) and isinstance(error.obj, bytes):  # an answer without content is handed on
        return True
    if isinstance(error, GoogleAuthError):  # a metadata server that does not answer is wrapped in a refused refresh
        return error.retryable or isinstance(error.__cause__, TransportError) or _is_server_still_silent(error)
    if isinstance(error, exceptions.GoogleAPICallError):
        return is_passing_status(error.code or 0) or (error.code == 403 and _is_rate_limit(error))
    return isinstance(error, exceptions.RetryError)


def _is_server_still_silent(error: Exception) -> bool:
    """Return whether no credentials were found on a machine of Google's, whose metadata server should have them.

    The server of a pod answers some time after the pod begins.
    """
    from google.auth.exceptions import DefaultCredentialsError

    is_asked = not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") and os.environ.get("NO_GCE_CHECK") != "true"
    is_none = isinstance(error, DefaultCredentialsError) and "were not found" in str(error)
    return is_asked and is_none and metadata_host() is not None


def _is_rate_limit(error: Exception) -> bool:
    """Return whether a refusal is about the rate of requests, by one of its reasons."""
    return _RATE_LIMIT.search(f"{error} {getattr(error, 'errors', '')}") is not None


def is_worth_another_upload(error: Exception) -> bool:
    """Return whether to restart an upload that failed with this error and left no object.

    Content corrupted in transit (400), a lost upload session (404, 410), an object that existed for a moment (412).
    """
    code = getattr(error, "code", None)
    return code in (404, 410, 412) or (code == 400 and "crc32c" in str(error).lower())


def reason(error: Exception) -> str:
    """Return the first line of a library's message, without secrets, in at most 200 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return _SECRET.sub("...", lines[0])[:200]
