"""What an error of the Google Cloud Storage client means: worth another try, or not, and how it is told.

In: exceptions of the client and of what it stands on (google-auth, requests, urllib3). Out: yes or no, or one line of
text. Guarantee: nothing that could serve as a credential is in that text, the address of an upload session included.
"""

import json
import re

from .retries import is_passing_status

_SECRET = re.compile(r"(?:upload_id=|ya29\.|1//|Bearer )\S+|[\w+/=-]{40,}")


def is_bucket_missing(error: Exception) -> bool:
    """Whether a 404 speaks of the bucket and not of an object in it."""
    return "bucket does not exist" in str(error)


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later: trouble of the network, of a busy service or of a token server."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    network = RequestException | HTTPError | ConnectionError | TimeoutError | TransportError | InvalidResponse
    if isinstance(error, network | json.JSONDecodeError | KeyError):  # the last two: an answer that was cut, or is odd
        return True
    if isinstance(error, GoogleAuthError):  # a metadata server that does not answer is wrapped in a refused refresh
        return error.retryable or isinstance(error.__cause__, TransportError)
    if isinstance(error, exceptions.GoogleAPICallError):
        return is_passing_status(error.code or 0)
    return isinstance(error, exceptions.RetryError)


def is_worth_another_upload(error: Exception) -> bool:
    """Whether an upload that failed so and left no object should begin anew.

    Content corrupted on the way (400), an upload session that the service has forgotten (404, 410), an object that was
    in the way for a moment (412).
    """
    code = getattr(error, "code", None)
    return code in (404, 410, 412) or (code == 400 and "crc32c" in str(error).lower())


def reason(error: Exception) -> str:
    """The first line of what a library says, without secrets, in at most 200 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return _SECRET.sub("...", lines[0])[:200]
