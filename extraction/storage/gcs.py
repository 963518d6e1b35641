"""Storage in a Google Cloud Storage bucket, over the service's own client with retries of our own.

In: names and bytes. Out: objects of the bucket under a prefix. Guarantee: as in the package; a write whose answer was
lost or odd is settled by looking. Cost: one request for an operation (a large upload: one more for each 32 MiB).
"""

import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

from ..errors import DamagedData, InvalidRequest, ObjectExists, ObjectNotFound, PermissionDenied, TryAgain
from .base import ObjectInfo, Storage, check_name, crc32c_base64

READ_AHEAD = 1 << 20
_SINGLE_REQUEST = 8 << 20
_CHUNK = 32 << 20
_READ_TRIES = 3
_READERS = 8
_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes of an answer
_DEFAULT_DEADLINE = 120.0


class GcsStorage(Storage):
    """Objects of a bucket under a prefix, with credentials from the environment.

    With STORAGE_EMULATOR_HOST set: that server, without credentials. EXTRACT_RETRY_DEADLINE is the bound, in seconds,
    for retrying one operation.
    """

    def __init__(self, location: str):
        self.location = location.rstrip("/")
        self._bucket_name, _, prefix = self.location.removeprefix("gs://").partition("/")
        if not self._bucket_name:
            raise InvalidRequest(f"{location}: give gs://bucket/prefix")
        self._prefix = prefix + "/" if prefix else ""
        self._deadline = float(os.environ.get("EXTRACT_RETRY_DEADLINE", _DEFAULT_DEADLINE))
        self._client = self._call("get", self.location, _make_client)
        self._bucket = self._client.bucket(self._bucket_name)

    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        view = memoryview(data).cast("B")
        checksum = crc32c_base64(view)

        def attempt() -> ObjectInfo:
            try:
                return self._upload(name, view)
            except Exception as error:
                # Whatever went wrong, the object may have landed: look before anything else is believed.
                info = self._find(name)
                if info is None:
                    if isinstance(error, KeyError | json.JSONDecodeError):  # a cut answer, and nothing has landed
                        raise ConnectionError(str(error)) from error
                    raise
                return info

        info = self._call("create", name, attempt)
        if not info.holds(len(view), checksum):
            raise ObjectExists(f"{self._url(name)} is there with other bytes")
        return info

    def _upload(self, name: str, view: memoryview) -> ObjectInfo:
        blob = self._bucket.blob(self._key(name), chunk_size=_CHUNK if len(view) > _SINGLE_REQUEST else None)
        blob.upload_from_file(
            _Reader(view), size=len(view), content_type="application/octet-stream", if_generation_match=0,
            checksum="crc32c", timeout=_TIMEOUT, retry=None,
        )
        return self._info(blob) if blob.crc32c else self._stat(name)

    def _find(self, name: str) -> ObjectInfo | None:
        from google.api_core.exceptions import NotFound

        try:
            return self._stat(name)
        except NotFound as error:
            if _is_bucket_missing(error):
                raise
            return None

    def _stat(self, name: str) -> ObjectInfo:
        blob = self._bucket.blob(self._key(name))
        blob.reload(timeout=_TIMEOUT, retry=None)
        return self._info(blob)

    def stat(self, name: str) -> ObjectInfo:
        return self._call("get", name, lambda: self._stat(name))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        from google.api_core.exceptions import RequestRangeNotSatisfiable
        from google.cloud.storage.exceptions import DataCorruption

        if end is not None and end <= start:
            return b""
        last = None if end is None else end - 1
        whole = start == 0 and end is None

        def attempt() -> bytes:
            blob = self._bucket.blob(self._key(name))
            try:
                return blob.download_as_bytes(
                    start=None if whole else start, end=last, checksum="crc32c" if whole else None,
                    raw_download=True, timeout=_TIMEOUT, retry=None,
                )
            except RequestRangeNotSatisfiable:
                return b""

        for _ in range(_READ_TRIES):
            try:
                return self._call("get", name, attempt)
            except DataCorruption:
                continue
        raise DamagedData(f"{self._url(name)}: what was read is not what its crc32c says, {_READ_TRIES} times")

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        end = self.stat(name).size if end is None else end
        starts = range(start, end, _CHUNK // 4)
        if len(starts) < 2:
            return memoryview(self.read(name, start, end))
        buffer = bytearray(end - start)

        def fetch(at: int) -> None:
            data, here = self.read(name, at, min(at + starts.step, end)), memoryview(buffer)[at - start :][: starts.step]
            if len(data) != len(here):
                raise DamagedData(f"{self._url(name)} ends before byte {end}")
            here[:] = data

        with ThreadPoolExecutor(min(_READERS, len(starts))) as pool:
            for _ in pool.map(fetch, starts):
                pass
        return memoryview(buffer)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        token, more = None, True
        while more:
            page, token = self._call("list", prefix, lambda token=token: self._page(prefix, start_after, token))
            yield from (info for info in page if info.name > start_after)
            more = token is not None

    def _page(self, prefix: str, start_after: str, token: str | None) -> tuple[Sequence[ObjectInfo], str | None]:
        """Up to 1,000 objects, and the token of the next page."""
        start_offset = self._prefix + start_after if start_after else None
        blobs = self._client.list_blobs(
            self._bucket, prefix=self._prefix + prefix, start_offset=start_offset,
            page_token=token, page_size=1000, fields="items(name,size,crc32c,generation,updated),nextPageToken",
            timeout=_TIMEOUT, retry=None,
        )
        return [self._info(blob) for blob in next(blobs.pages, ())], blobs.next_page_token

    def folders(self) -> Sequence[str]:
        def attempt() -> Sequence[str]:
            blobs = self._client.list_blobs(
                self._bucket, prefix=self._prefix, delimiter="/", fields="prefixes,nextPageToken",
                timeout=_TIMEOUT, retry=None,
            )
            for _ in blobs.pages:
                pass
            return sorted(prefix.removeprefix(self._prefix).rstrip("/") for prefix in blobs.prefixes)

        return self._call("list", "", attempt)

    def now(self) -> float:
        path = f"/storage/v1/b/{self._bucket_name}/o?maxResults=1&fields=nextPageToken"
        url = self._client._connection.API_BASE_URL + path
        answer = self._call("list", "", lambda: self._client._http.get(url, timeout=_TIMEOUT))
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()

    def replace(self, name: str, data: bytes) -> None:
        blob = self._bucket.blob(self._key(name))
        self._call("create", name, lambda: blob.upload_from_string(data, timeout=_TIMEOUT, retry=None))

    def open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(_RangedFile(self, name, self.stat(name).size), READ_AHEAD)

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _url(self, name: str) -> str:
        return f"gs://{self._bucket_name}/{self._prefix}{name}"

    def _info(self, blob: object) -> ObjectInfo:
        name = blob.name.removeprefix(self._prefix)
        updated = blob.updated.timestamp() if blob.updated else None
        return ObjectInfo(name, blob.size, blob.crc32c, blob.generation, updated)

    def _call(self, permission: str, name: str, attempt: Callable):
        """The result of `attempt`, tried again with growing, jittered pauses up to the deadline; domain errors."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.cloud.storage.exceptions import InvalidResponse
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        end, pause = time.monotonic() + self._deadline, 0.1
        while True:
            try:
                return attempt()
            except exceptions.NotFound as error:
                if _is_bucket_missing(error):
                    raise InvalidRequest(f"gs://{self._bucket_name}: there is no such bucket") from error
                raise ObjectNotFound(f"{self._url(name)} is not there") from error
            except (exceptions.Forbidden, exceptions.Unauthorized) as error:
                raise self._denied(permission, error) from error
            except (exceptions.TooManyRequests, exceptions.ServerError, exceptions.RetryError) as error:
                trouble = error
            except (RequestException, HTTPError, ConnectionError, TimeoutError, TransportError, InvalidResponse) as error:
                trouble = error
            except GoogleAuthError as error:
                raise self._denied(permission, error) from error
            except exceptions.GoogleAPICallError as error:
                if error.code != 408:  # a time-out at the service, for which the client has no class
                    raise
                trouble = error
            if time.monotonic() + pause > end:
                first_line = str(trouble).splitlines()[0][:200]
                raise TryAgain(f"{self._url(name)}: no success within {self._deadline:g} s: {first_line}") from trouble
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 10.0)

    def _denied(self, permission: str, error: Exception) -> PermissionDenied:
        first_line = (str(error).splitlines() or [""])[0][:200]
        return PermissionDenied(f"storage.objects.{permission} on gs://{self._bucket_name} was refused: {first_line}")


def _make_client():
    import requests.adapters
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    else:
        client = storage.Client()
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=32))
    return client


def _is_bucket_missing(error: Exception) -> bool:
    return "bucket does not exist" in str(error)


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


class _RangedFile(io.RawIOBase):
    """An object as a seekable file of ranged reads."""

    def __init__(self, storage: GcsStorage, name: str, size: int):
        self._storage, self._name, self._size, self._at = storage, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        data = self._storage.read(self._name, self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
