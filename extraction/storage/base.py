"""What a storage is: its operations, the facts of an object, and how names and checksums are written.

In: names and bytes. Out: `ObjectInfo`. Guarantee: a name that passes `check_name` stays inside its location.
Cost: one pass of crc32c over the data.
"""

import abc
import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import google_crc32c

from ..core.errors import DamagedData

BLOCK = 1 << 22  # bytes in hand at once while a checksum is made


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: `size` in bytes, `crc32c` in base64 (big-endian), `updated` in seconds since 1970 by the store.

    `etag` is what a store without checksums changes with the content.
    """

    name: str
    size: int
    crc32c: str
    generation: int | None = None
    updated: float | None = None
    etag: str | None = None

    def holds(self, size: int, crc32c: str) -> bool:
        return (self.size, self.crc32c) == (size, crc32c)


def crc32c_base64(data: bytes | memoryview) -> str:
    """crc32c of the data as Google Cloud Storage writes it."""
    checksum = google_crc32c.Checksum()
    view = memoryview(data).cast("B")
    for start in range(0, len(view), BLOCK):
        checksum.update(bytes(view[start : start + BLOCK]))
    return base64.b64encode(checksum.digest()).decode()


def check_name(name: str) -> str:
    """The name, if it stays inside the location. Raises DamagedData."""
    inside = "\\" not in name and "\0" not in name and {"", ".", ".."}.isdisjoint(name.split("/"))
    if not inside or any("\ud800" <= character <= "\udfff" for character in name):
        raise DamagedData(f"{name!r} is no name of an object inside this location")
    return name


class Storage(abc.ABC):
    """Objects under one location."""

    location: str
    revision: str | None = None  # where places have revisions, the one that is read
    holds_models = True  # whether `--model` may name a folder there

    def __str__(self) -> str:
        return self.location

    @classmethod
    def split(cls, location: str) -> tuple[str, str]:
        """The place that a location and its neighbours can be opened at once, and the path there: `gs://bucket`, `a/b`."""
        scheme, _, rest = location.partition("://")
        root, _, path = rest.partition("/")
        return f"{scheme}://{root}", path.strip("/")

    @property
    def place(self) -> str:
        """The location, without the revision."""
        return self.location

    @abc.abstractmethod
    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        """Store a new object, whole. An object with the same bytes is adopted; other bytes raise ObjectExists."""

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object, to its end if None. Raises ObjectNotFound."""

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        """As `read`, for much: mapped into memory from a local disk, ranges in parallel from a bucket."""
        return memoryview(self.read(name, start, end))

    @abc.abstractmethod
    def stat(self, name: str) -> ObjectInfo:
        """Size and checksum of an object. Raises ObjectNotFound."""

    @abc.abstractmethod
    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects in the order of their names; on a local disk without checksums."""

    @abc.abstractmethod
    def folders(self) -> Sequence[str]:
        """Names of the folders directly under the location, in order, whatever lies in them."""

    @abc.abstractmethod
    def now(self) -> float:
        """The time by the clock that `ObjectInfo.updated` is read from, in seconds since 1970."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Overwrite an object that nobody relies on. Tried once: what matters more must not wait for it."""

    @abc.abstractmethod
    def open(self, name: str) -> io.BufferedIOBase | io.RawIOBase:
        """A seekable binary file for reading. Raises ObjectNotFound."""

    def open_version(self, info: ObjectInfo) -> io.BufferedIOBase | io.RawIOBase:
        """The object that `info` was said of, as a file without a buffer where that saves requests."""
        return self.open(info.name)


class RangedFile(io.RawIOBase):
    """An object of `size` bytes as a seekable file; `read(start, end)` gives its bytes [start, end)."""

    def __init__(self, read: Callable[[int, int], bytes], size: int):
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """As any file reads, but without the copies that `readinto` makes of what is asked for at once."""
        if size is None or size < 0:
            return self.readall()
        data = self._read(self._at, min(self._at + size, self._size))
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self._read(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
