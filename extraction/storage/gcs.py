"""Storage in a Google Cloud Storage bucket, over the service's own client with the retries of `retries`.

In: names and bytes. Out: objects of the bucket under a prefix. Guarantee: as in the package; after a write with a lost
or unexpected answer the object is read back. Cost: one request for an operation (a large upload: one more for each
32 MiB).
"""

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

from ..core.errors import (
    BucketDenied,
    DamagedData,
    InvalidRequest,
    NoCredentials,
    ObjectExists,
    ObjectNotFound,
)
from .base import ObjectInfo, Part, RangedFile, Storage, check_name, crc32c_base64, read_in_parallel, size_said
from .gcs_errors import is_bucket_missing, is_passing, is_worth_another_upload, reason
from .retries import Passing, RetryPolicy

READ_AHEAD = 1 << 20
_SINGLE_REQUEST = 8 << 20
_CHUNK = 32 << 20
_READ_TRIES = 6
_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes of an answer
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
Result = TypeVar("Result")


class GcsStorage(Storage):
    """Objects of a bucket under a prefix, with credentials from the environment.

    With STORAGE_EMULATOR_HOST set, requests go to that server, without credentials.
    """

    def __init__(self, location: str):
        path = location.removeprefix("gs://").rstrip("/")
        self.location = f"gs://{path}"
        self._bucket_name, _, prefix = path.partition("/")
        if not _BUCKET.fullmatch(self._bucket_name):
            raise InvalidRequest(
                f"{location}: give gs://bucket/prefix; a bucket's name has three or more of a-z, 0-9, - . _"
            )
        self._prefix = prefix + "/" if prefix else ""
        self._retries, self._service = RetryPolicy(), ""
        self._client = self._call("connect", "", _make_client)
        self._bucket = self._client.bucket(self._bucket_name)
        self._service = f"{self._client._connection.API_BASE_URL}/{self._bucket_name}"

    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        view = memoryview(data).cast("B")
        checksum = crc32c_base64(view)

        def attempt() -> ObjectInfo:
            try:
                return self._upload(name, view, checksum)
            except Exception as error:
                # After any error the object may exist: look for it first.
                info = self._find(name)
                if info is None and is_worth_another_upload(error):
                    raise ConnectionError(f"the upload left nothing: {reason(error)}") from error
                if info is None:
                    raise
                return info

        info = self._call("create", name, attempt)
        if not info.holds(len(view), checksum):
            info = self.stat(name)  # the answer may be wrong
        if not info.holds(len(view), checksum):
            raise ObjectExists(f"{self._url(name)} is there with other bytes")
        return info

    def _upload(self, name: str, view: memoryview, checksum: str) -> ObjectInfo:
        blob = self._bucket.blob(self._key(name), chunk_size=_CHUNK if len(view) > _SINGLE_REQUEST else None)
        # The service compares the content with the checksum in the metadata before the object appears. The client's own
        # check runs later and deletes an object that fails it, which a rival may have adopted by then: it is off.
        blob.crc32c = checksum
        blob.upload_from_file(
            _Reader(view),
            size=len(view),
            content_type="application/octet-stream",
            if_generation_match=0,
            checksum=None,
            timeout=_TIMEOUT,
            retry=None,
        )
        return self._info(blob) if blob.crc32c and blob.generation else self._stat(name)

    def _find(self, name: str) -> ObjectInfo | None:
        from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

        try:
            return self._stat(name)
        except NotFound as error:
            if is_bucket_missing(error):
                raise
            return None
        except (Forbidden, Unauthorized) as error:
            if is_passing(error):
                raise
            raise self._domain_error(error, "get", name) from error

    def _stat(self, name: str) -> ObjectInfo:
        blob = self._bucket.blob(self._key(name))
        blob.reload(timeout=_TIMEOUT, retry=None)
        return self._info(blob)

    def stat(self, name: str) -> ObjectInfo:
        return self._call("get", name, lambda: self._stat(name))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return bytes(self._read(name, None, start, end).data)

    def read_part(self, name: str, start: int, end: int) -> Part:
        return self._read(name, None, start, end)

    def read_generation(self, name: str, generation: int | None, start: int, end: int | None) -> bytes:
        """Return the same as `read`, from one generation. Raises ObjectNotFound when the generation is gone."""
        return bytes(self._read(name, generation, start, end).data)

    def _read(self, name: str, generation: int | None, start: int, end: int | None) -> Part:
        if end is not None and end <= start:
            return Part(b"", None)
        last = "" if end is None else end - 1
        asked = {} if start == 0 and end is None else {"Range": f"bytes={start}-{last}"}
        path = f"/download/storage/v1/b/{self._bucket_name}/o/{quote(self._key(name), safe='')}?alt=media"
        if generation is not None:
            path += f"&generation={generation}"
        for _ in range(_READ_TRIES):
            part = self._call("get", name, lambda: self._download(path, asked))
            if part.crc32c in ("", crc32c_base64(part.data)):
                return part
        raise DamagedData(f"{self._url(name)}: the bytes read do not match its crc32c, {_READ_TRIES} times")

    def _download(self, path: str, headers: dict[str, str]) -> Part:
        """Return the content of an answer. `download_as_bytes` takes twice the CPU."""
        from google.api_core.exceptions import from_http_response

        url = self._client._connection.API_BASE_URL + path
        headers = headers | {"Accept-Encoding": "identity"}
        with self._client._http.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as answer:
            if answer.status_code == 416:  # the range begins beyond the end
                return Part(b"", None)
            if answer.status_code not in (200, 206):
                raise from_http_response(answer)
            if answer.status_code == 200 and headers.get("Range", "bytes=0-") != "bytes=0-":
                raise InvalidRequest(f"{url}: the service does not give parts of it; store it without Content-Encoding")
            found = re.search(r"crc32c=([\w+/=]+)", answer.headers.get("X-Goog-Hash", ""))
            data, length = answer.raw.read(), answer.headers.get("Content-Length")
            if length is not None and len(data) != int(length):
                raise ConnectionError("the answer was cut")
            said = answer.headers.get("Content-Range")
            whole = answer.status_code == 200 or said == f"bytes 0-{len(data) - 1}/{len(data)}"
            size = len(data) if answer.status_code == 200 else size_said(said)
            return Part(data, size, found[1] if found and whole else "")

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        end = self.stat(name).size if end is None else end
        return read_in_parallel(lambda first, last: self.read(name, first, last), start, end, self._url(name))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        token, more = None, True
        while more:
            page, token = self._call("list", prefix, lambda token=token: self._page(prefix, start_after, token))
            yield from (info for info in page if info.name > start_after)
            more = token is not None

    def _page(self, prefix: str, start_after: str, token: str | None) -> tuple[Sequence[ObjectInfo], str | None]:
        """Return up to 1,000 objects, and the token of the next page."""
        start_offset = self._prefix + start_after if start_after else None
        blobs = self._client.list_blobs(
            self._bucket,
            prefix=self._prefix + prefix,
            start_offset=start_offset,
            page_token=token,
            page_size=1000,
            fields="items(name,size,crc32c,generation,updated),nextPageToken",
            timeout=_TIMEOUT,
            retry=None,
        )
        return [self._info(blob) for blob in next(blobs.pages, ())], blobs.next_page_token

    def folders(self) -> Sequence[str]:
        def attempt() -> Sequence[str]:
            blobs = self._client.list_blobs(
                self._bucket,
                prefix=self._prefix,
                delimiter="/",
                fields="prefixes,nextPageToken",
                timeout=_TIMEOUT,
                retry=None,
            )
            for _ in blobs.pages:
                pass
            return sorted(prefix.removeprefix(self._prefix).rstrip("/") for prefix in blobs.prefixes)

        return self._call("list", "", attempt)

    def now(self) -> float:
        path = f"/storage/v1/b/{self._bucket_name}/o?maxResults=1&fields=nextPageToken"
        url = self._client._connection.API_BASE_URL + path
        return self._call("list", "", lambda: self._date_of(url))

    def _date_of(self, url: str) -> float:
        """Return the time of an answer of the service, which an error page or a proxy's answer is not."""
        from google.api_core.exceptions import from_http_response

        answer = self._client._http.get(url, timeout=_TIMEOUT)
        if answer.status_code != 200:
            raise from_http_response(answer)
        answer.json()
        try:
            return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        except ValueError as error:
            raise ConnectionError("the answer has no Date") from error

    def replace(self, name: str, data: bytes) -> None:
        blob = self._bucket.blob(self._key(name))
        self._call("create", name, lambda: blob.upload_from_string(data, timeout=(5, 5), retry=None), tries=1)

    def open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(self.open_version(self.stat(name)), READ_AHEAD)

    def open_version(self, info: ObjectInfo) -> RangedFile:
        def read(start: int, end: int) -> bytes:
            try:
                return self.read_generation(info.name, info.generation, start, end)
            except ObjectNotFound as error:
                raise DamagedData(f"{self}/{info.name}: it was replaced or removed while it was read") from error

        return RangedFile(read, info.size)

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _url(self, name: str) -> str:
        return f"gs://{self._bucket_name}/{self._prefix}{name}"

    def _info(self, blob: Any) -> ObjectInfo:
        name, updated = blob.name.removeprefix(self._prefix), blob.updated  # a property that parses at each access
        return ObjectInfo(name, blob.size, blob.crc32c, blob.generation, updated.timestamp() if updated else None)

    def _call(self, permission: str, name: str, attempt: Callable[[], Result], tries: float = math.inf) -> Result:
        """Return the result of `attempt`, retried; `permission` is what it needs of `storage.objects`."""

        def judge(error: Exception) -> Passing | Exception:
            if is_passing(error):
                return Passing(reason(error))
            return self._domain_error(error, permission, name)

        return self._retries.call(self._url(name), attempt, judge, tries, f"{permission} on {self._service}")

    def _domain_error(self, error: Exception, permission: str, name: str) -> Exception:
        """Return the domain error for an error of the client; the error itself if it is not one of the client's."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError

        if isinstance(error, GoogleAuthError):
            what = f"gs://{self._bucket_name}: there are no Google credentials that can be used"
            return NoCredentials(f"{what}: {reason(error)}")
        if isinstance(error, exceptions.NotFound) and is_bucket_missing(error):
            return InvalidRequest(f"gs://{self._bucket_name}: there is no such bucket")
        if isinstance(error, exceptions.NotFound):
            return ObjectNotFound(f"{self._url(name)} is not there")
        if isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
            what = f"storage.objects.{permission} on gs://{self._bucket_name}"
            return BucketDenied(f"{what} was refused: {reason(error)}")
        if isinstance(error, exceptions.GoogleAPICallError):
            return InvalidRequest(f"{self._url(name)}: the service refused: {reason(error)}")
        return error


def _make_client() -> Any:
    import requests.adapters
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError

    # Otherwise the client requests the bucket's metadata for traces, for which a worker has no permission.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    from google.cloud import storage

    emulated = os.environ.get("STORAGE_EMULATOR_HOST")
    try:
        # Objects need no project, and credentials of a person often name none.
        client: Any = storage.Client(project=None, credentials=AnonymousCredentials() if emulated else None)
    except OSError as error:
        raise DefaultCredentialsError(f"the credentials cannot be read: {error}") from error
    session = client._http
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=32))
    # `requests` would read these settings from the environment at each request, a fifth of its time: read them once.
    settings = session.merge_environment_settings(client._connection.API_BASE_URL, {}, None, None, None)
    session.proxies, session.verify, session.trust_env = settings["proxies"], settings["verify"], False
    return client


class _Reader(io.RawIOBase):
    """A buffer as a file, without copying it first."""

    def __init__(self, view: memoryview):
        self._view, self._at = view, 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else min(self._at + size, len(self._view))
        data = bytes(self._view[self._at : end])
        self._at = end
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        return self._at
