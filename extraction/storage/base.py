"""The interface of a storage: its operations, object metadata, and the spelling of names and checksums.

In: names and bytes. Out: `ObjectInfo`. Guarantee: a name that passes `check_name` stays inside its location.
Cost: one pass of crc32c over the data.
"""

import abc
import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, NamedTuple

import google_crc32c

from ..core.errors import DamagedData

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_RANGE, _READERS = 8 << 20, 8
_NOT_IN_NAMES = re.compile(r"[\\\0\ud800-\udfff]")
BLOCK = 1 << 22  # bytes in memory while a checksum is computed


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: `size` in bytes, `crc32c` in base64 (big-endian), `updated` in seconds since 1970 by the store.

    `etag` identifies the content in a store without checksums.
    """

    name: str
    size: int
    crc32c: str
    generation: int | None = None
    updated: float | None = None
    etag: str | None = None

    def holds(self, size: int, crc32c: str) -> bool:
        """Return whether the object has this size and checksum."""
        return (self.size, self.crc32c) == (size, crc32c)


class Part(NamedTuple):
    """Bytes of an object, the size of the whole object, and its crc32c if they are all of it; None or "" if unknown."""

    data: bytes | memoryview
    size: int | None
    crc32c: str = ""


def size_said(content_range: str | None) -> int | None:
    """Return the size of the object that an answer is a part of, by its Content-Range; None if it does not say it."""
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None


def crc32c_base64(data: bytes | memoryview) -> str:
    """Return the crc32c of the data as Google Cloud Storage spells it."""
    checksum = google_crc32c.Checksum()
    view = memoryview(data).cast("B")
    for start in range(0, len(view), BLOCK):
        checksum.update(bytes(view[start : start + BLOCK]))
    return base64.b64encode(checksum.digest()).decode()


def crc32c_of_file(file: "IO[bytes] | RangedFile") -> str:
    """Return the crc32c of a file from where it is to its end, with 8 MiB of it in memory."""
    checksum = google_crc32c.Checksum()
    while block := file.read(_RANGE):
        checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


def check_name(name: str) -> str:
    """Return the name if it stays inside the location. Raises DamagedData."""
    if _NOT_IN_NAMES.search(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise DamagedData(f"{name!r} is not the name of an object inside this location")
    return name


class Storage(abc.ABC):
    """Objects under one location."""

    revision: str | None = None  # the revision that is read, in a store with revisions
    holds_models = True  # whether `--model` may name a folder of this storage

    def __init__(self, location: str):
        self.location = location

    def __str__(self) -> str:
        return self.location

    @classmethod
    def split(cls, location: str) -> tuple[str, str]:
        """Return the root of a location, which one storage can serve, and the path below it: `gs://bucket`, `a/b`."""
        scheme, _, rest = location.partition("://")
        root, _, path = rest.partition("/")
        return f"{scheme}://{root}", path.strip("/")

    @property
    def unpinned_location(self) -> str:
        """The location without the revision."""
        return self.location

    @abc.abstractmethod
    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        """Store a new object, whole. Adopt an object with the same bytes; raise ObjectExists for other bytes."""

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes [start, end) of an object, to its end if None. Raises ObjectNotFound."""

    def read_small(self, name: str, most: int) -> bytes:
        """Return a whole object of at most `most` bytes. Raises ObjectNotFound, DamagedData for a larger one."""
        data = self.read(name, 0, most + 1)
        if len(data) > most:
            raise DamagedData(f"{self}/{name}: it is larger than {most:,} bytes, which no such object is")
        return data

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        """Return the same as `read`, for large ranges: memory-mapped from a local disk, in parallel from a bucket."""
        return memoryview(self.read(name, start, end))

    def read_part(self, name: str, start: int, end: int) -> Part:
        """Return the same as `view`, in one request, with the size of the whole object where the answer says it.

        That is so in a folder, in the buckets and on the hub. Raises ObjectNotFound.
        """
        return Part(self.view(name, start, end), None)

    @abc.abstractmethod
    def stat(self, name: str) -> ObjectInfo:
        """Return size and checksum of an object, "" where the store knows none. Raises ObjectNotFound."""

    def stat_with_crc32c(self, name: str) -> ObjectInfo:
        """Return the same as `stat`, with the checksum of the bytes where the store knows none.

        Those are read then: a request for each 8 MiB, of which one is in memory. Raises DamagedData as well, if they
        change meanwhile.
        """
        info = self.stat(name)
        if info.crc32c:
            return info
        with self.open_version(info) as file:
            return replace(info, crc32c=crc32c_of_file(file))

    @abc.abstractmethod
    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects in the order of their names; on a local disk without checksums."""

    @abc.abstractmethod
    def folders(self) -> Sequence[str]:
        """Return the names of the folders directly under the location, in order, whatever they contain."""

    @abc.abstractmethod
    def now(self) -> float:
        """Return the time of the clock that sets `ObjectInfo.updated`, in seconds since 1970."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Overwrite an object that nothing relies on. There is one attempt, so that the caller does not wait."""

    def check_writable(self) -> None:  # noqa: B027 - a bucket says at the first object that it refuses
        """Raise the error of a later `create` now, if this machine can tell that it will fail."""

    @abc.abstractmethod
    def open(self, name: str) -> io.BufferedReader:
        """Return a seekable binary file for reading. Raises ObjectNotFound."""

    def open_version(self, info: ObjectInfo) -> "io.BufferedReader | RangedFile":
        """Return the object that `info` describes as a file, unbuffered where that saves requests."""
        return self.open(info.name)


def read_in_parallel(read: Callable[[int, int], bytes], start: int, end: int, url: str) -> memoryview:
    """Return bytes [start, end), which `read(first, last)` reads, in ranges of 8 MiB, several at a time.

    Raises DamagedData if the object ends before.
    """
    starts = range(start, end, _RANGE)
    if len(starts) < 2:
        return memoryview(read(start, end))
    buffer = bytearray(end - start)

    def fetch(at: int) -> None:
        data = read(at, min(at + _RANGE, end))
        here = memoryview(buffer)[at - start :][:_RANGE]
        if len(data) != len(here):
            raise DamagedData(f"{url} ends before byte {end}")
        here[:] = data

    with ThreadPoolExecutor(min(_READERS, len(starts))) as pool:
        for _ in pool.map(fetch, starts):
            pass
    return memoryview(buffer)


class RangedFile(io.RawIOBase):
    """An object of `size` bytes as a seekable file; `read(start, end)` returns its bytes [start, end)."""

    def __init__(self, read: Callable[[int, int], bytes], size: int):
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the file."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, without the copies that `readinto` makes."""
        if size is None or size < 0:
            return self.readall()
        data = self._read(self._at, min(self._at + size, self._size))
        self._at += len(data)
        return data

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self._read(self._at, min(self._at + len(view), self._size))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
