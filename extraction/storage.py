"""Storage: whole, create-only objects by name, on a local disk or in a Google Cloud Storage bucket.

In: names relative to a location, and bytes. Out: `ObjectInfo`s and bytes.

Guarantee: `create` returns only when the object is stored whole, with the size and crc32c of the data, under a name that
held nothing or the same bytes before; no object is ever visible in part, replaced or deleted. An answer that was lost
or odd is settled by reading back. Every wait is bounded, and what lies beyond the bound is `TryAgain`.

Cost: one request for each operation (a large upload: one to open it, one for each 32 MiB); locally two fsyncs.
"""

import abc
import base64
import ctypes
import errno
import io
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from .errors import (
    DamagedData,
    InvalidRequest,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    TryAgain,
)

READ_AHEAD = 1 << 20
_BLOCK = 1 << 22
_SINGLE_REQUEST = 8 << 20
_CHUNK = 32 << 20
_READ_TRIES = 3
_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes of an answer
_DEFAULT_DEADLINE = 120.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: `size` in bytes, `crc32c` in base64 (big-endian), `updated` in seconds since 1970 by the store."""

    name: str
    size: int
    crc32c: str
    generation: int | None = None
    updated: float | None = None

    def holds(self, size: int, crc32c: str) -> bool:
        return (self.size, self.crc32c) == (size, crc32c)


def crc32c_base64(data: bytes | memoryview) -> str:
    """crc32c of the data as Google Cloud Storage writes it."""
    checksum = google_crc32c.Checksum()
    view = memoryview(data).cast("B")
    for start in range(0, len(view), _BLOCK):
        checksum.update(bytes(view[start : start + _BLOCK]))
    return base64.b64encode(checksum.digest()).decode()


def check_name(name: str) -> str:
    """The name, if it stays inside the location. Raises DamagedData."""
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise DamagedData(f"{name!r} is no name of an object inside this location")
    return name


class Storage(abc.ABC):
    """Objects under one location."""

    location: str

    def __str__(self) -> str:
        return self.location

    @abc.abstractmethod
    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        """Store a new object, whole. An object with the same bytes is adopted; other bytes raise ObjectExists."""

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object, to its end if None. Raises ObjectNotFound."""

    @abc.abstractmethod
    def stat(self, name: str) -> ObjectInfo:
        """Size and checksum of an object. Raises ObjectNotFound."""

    @abc.abstractmethod
    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects in the order of their names; on a local disk without checksums."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Overwrite an object that nobody relies on."""

    @abc.abstractmethod
    def open(self, name: str) -> io.BufferedIOBase | io.RawIOBase:
        """A seekable binary file for reading. Raises ObjectNotFound."""


def open_storage(location: str) -> Storage:
    """The storage at `gs://bucket/prefix` or in a folder. Raises InvalidRequest for any other scheme."""
    if location.startswith("gs://"):
        return GcsStorage(location)
    if "://" in location:
        raise InvalidRequest(f"{location}: give a folder or gs://bucket/prefix")
    return LocalStorage(location)


# ------------------------------------------------------------------------------------------------ local disk


class LocalStorage(Storage):
    """Files under a folder. A write goes to a hidden temporary file, is synced, and gets its name by a hard link."""

    def __init__(self, location: str):
        self.location = location
        self._root = Path(location)

    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        view, path = memoryview(data).cast("B"), self._root / check_name(name)
        with _os_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _write_temporary(path, view)
            try:
                _give_name(temporary, path)
            except FileExistsError:
                info = self.stat(name)
                if not info.holds(len(view), crc32c_base64(view)):
                    raise ObjectExists(f"{path} is there with other bytes") from None
                return info
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return ObjectInfo(name, len(view), crc32c_base64(view))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        path = self._root / check_name(name)
        with _os_errors(str(path)), path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else max(end - start, 0))

    def stat(self, name: str) -> ObjectInfo:
        path, checksum = self._root / check_name(name), google_crc32c.Checksum()
        with _os_errors(str(path)), path.open("rb") as file:
            while block := file.read(_BLOCK):
                checksum.update(block)
            facts = os.fstat(file.fileno())
        return ObjectInfo(name, facts.st_size, base64.b64encode(checksum.digest()).decode(), None, facts.st_mtime)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        with _os_errors(str(self._root / folder)):
            paths = [path for path in (self._root / folder).rglob("*") if path.is_file()]
            names = sorted(str(path.relative_to(self._root)) for path in paths if not path.name.startswith(_TEMPORARY))
        for name in names:
            if name.startswith(prefix) and name > start_after:
                facts = (self._root / name).stat()
                yield ObjectInfo(name, facts.st_size, "", None, facts.st_mtime)

    def replace(self, name: str, data: bytes) -> None:
        path = self._root / check_name(name)
        with _os_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_temporary(path, memoryview(data)).replace(path)

    def open(self, name: str) -> io.BufferedReader:
        path = self._root / check_name(name)
        with _os_errors(str(path)):
            return path.open("rb")


class _os_errors:
    """Turns OSError into domain errors that name the path."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise ObjectNotFound(f"{self._path} is not there") from error
        if isinstance(error, NotADirectoryError | IsADirectoryError):
            raise InvalidRequest(f"{self._path}: {error.strerror}") from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise PermissionDenied(f"{self._path}: {error.strerror}; it must be readable and writable") from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise TryAgain(f"{self._path}: {error.strerror}: the disk is full or failing") from error


def _write_temporary(path: Path, data: memoryview) -> Path:
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _give_name(temporary: Path, path: Path) -> None:
    """Name a finished file. Raises FileExistsError if the name is taken, by whatever means the file system offers."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_without_replacing(temporary, path)


def _rename_without_replacing(temporary: Path, path: Path) -> None:
    at_working_folder, no_replace = -100, 1  # AT_FDCWD and RENAME_NOREPLACE of linux/fs.h
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(
        at_working_folder, os.fsencode(temporary), at_working_folder, os.fsencode(path), no_replace
    ):
        code = ctypes.get_errno() if rename else errno.ENOSYS
        if code == errno.EEXIST:
            raise FileExistsError(code, os.strerror(code), str(path))
        raise InvalidRequest(
            f"{path}: this file system can neither link nor rename without replacing; use another folder or a bucket"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ GCS


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

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        after = start_after
        while True:
            page = self._call("list", prefix, lambda: self._page(prefix, after))
            for info in page:
                if info.name > after:
                    yield info
            if len(page) < 2:
                return
            after = page[-1].name

    def _page(self, prefix: str, after: str) -> Sequence[ObjectInfo]:
        blobs = self._client.list_blobs(
            self._bucket, prefix=self._prefix + prefix, start_offset=self._prefix + after if after else None,
            max_results=1000, fields="items(name,size,crc32c,generation,updated),nextPageToken",
            timeout=_TIMEOUT, retry=None,
        )
        return [self._info(blob) for blob in blobs]

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
