"""Storage in a folder: a file appears whole, synced, under a name that was free.

In: names and bytes. Out: files under the folder. Guarantee: as in the package; names are given by a hard link or, on
a file system without links, by a rename that refuses to replace. A killed write leaves a hidden `.tmp-...` file that
nothing reads and that may be deleted. Cost: two fsyncs for an object; `stat` reads the file.
"""

import contextlib
import ctypes
import errno
import io
import mmap
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import (
    DamagedData,
    ExtractionError,
    InvalidRequest,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    TryAgain,
)
from .base import ObjectInfo, Part, Storage, check_name, crc32c_base64, crc32c_of_file

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_WRONG = {errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EFBIG}
_TEMPORARY = ".tmp-"
_PIECE = 1 << 20  # bytes of a read that brings a file into the page cache
_SAMPLED = 4 << 20  # one byte in this many is tested for being cached


class LocalStorage(Storage):
    """Files under a folder. A write goes to a hidden temporary file, is synced, and gets its name by a hard link."""

    def __init__(self, location: str):
        self.location = os.path.expanduser(location)
        self._root = Path(self.location)

    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        view, path = memoryview(data).cast("B"), self._root / check_name(name)
        with os_errors(str(path)):
            _make_folder(path.parent)
            temporary = _write_temporary(path, view)
            try:
                _give_name(temporary, path)
            except FileExistsError:
                info = self.stat(name)
                if not info.holds(len(view), crc32c_base64(view)):
                    raise ObjectExists(f"{path} is there with other bytes") from None
                _sync(path)  # its writer may have been killed before it was durable
            finally:
                temporary.unlink(missing_ok=True)
            _sync(path.parent)
        return ObjectInfo(name, len(view), crc32c_base64(view))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        path = self._root / check_name(name)
        with os_errors(str(path)), _open(path) as file:
            file.seek(start)
            return file.read(-1 if end is None else max(end - start, 0))

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        return self._pages(name, start, end)[start:end]

    def read_part(self, name: str, start: int, end: int) -> Part:
        pages = self._pages(name, start, end)
        return Part(pages[start:end], len(pages))

    def _pages(self, name: str, start: int, end: int | None) -> memoryview:
        """Return the whole file, of which [start, end) is in the page cache."""
        path = self._root / check_name(name)
        with os_errors(str(path)), _open(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _bring_in(file.fileno(), start, len(pages) if end is None else min(end, len(pages)))
        return memoryview(pages)

    def stat(self, name: str) -> ObjectInfo:
        path = self._root / check_name(name)
        with os_errors(str(path)), _open(path) as file:
            checksum, facts = crc32c_of_file(file), os.fstat(file.fileno())
        return ObjectInfo(name, facts.st_size, checksum, None, facts.st_mtime)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        top = self._root / (check_name(folder) if folder else "")
        with os_errors(str(top)):
            found = [(os.path.relpath(entry.path, self._root), entry.stat()) for entry in _files_under(top)]
        for name, facts in sorted(found, key=lambda pair: pair[0]):
            if name.startswith(prefix) and name > start_after:
                yield ObjectInfo(name, facts.st_size, "", None, facts.st_mtime)

    def folders(self) -> Sequence[str]:
        try:
            with os_errors(str(self._root)):
                return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())
        except ObjectNotFound:
            return []

    def now(self) -> float:
        return time.time()

    def replace(self, name: str, data: bytes) -> None:
        path = self._root / check_name(name)
        with os_errors(str(path)):
            _make_folder(path.parent)
            temporary = _write_temporary(path, memoryview(data))
            try:
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def check_writable(self) -> None:
        name = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with os_errors(str(self._root)):
            _make_folder(self._root)
            temporary = _write_temporary(name, memoryview(b""))
            try:
                _give_name(temporary, name)
            finally:
                temporary.unlink(missing_ok=True)
                name.unlink(missing_ok=True)

    def open(self, name: str) -> io.BufferedReader:
        path = self._root / check_name(name)
        with os_errors(str(path)):
            return _open(path)


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Turn OSError into domain errors that name the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"{path} is not there") from error
    except FileExistsError as error:
        raise InvalidRequest(f"{path}: a file is where a folder must be") from error
    except OSError as error:
        unknown = TryAgain(f"{path}: {error.strerror or error}: the file system does not answer as it should")
        raise disk_error(error, path) or unknown from error


def disk_error(error: OSError, path: str) -> ExtractionError | None:
    """Return the domain error for a refusal, a full disk or an impossible name; None for any other error."""
    if error.errno in _REFUSED:
        return PermissionDenied(f"{path}: {error.strerror}; it must be readable, and an output or a cache writable")
    if error.errno in _FULL:
        return TryAgain(f"{path}: {error.strerror}: the disk is full or failing")
    if error.errno in _WRONG:
        return InvalidRequest(f"{path}: {error.strerror}")
    return None


def _open(path: Path) -> io.BufferedReader:
    """Open a file for reading, and refuse a pipe, whose reader would wait for ever, and a device, which has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        if is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise DamagedData(f"{path}: this is a pipe or a device; copy its content into a file")
    return os.fdopen(descriptor, "rb")


def _bring_in(file: int, start: int, end: int) -> None:
    """Read [start, end) into the page cache: page faults would read it in the small steps of the disk's read-ahead."""
    if all(_is_cached(file, at) for at in range(end - 1, start - 1, -_SAMPLED)):
        return
    buffer = bytearray(min(_PIECE, end - start))
    for at in range(start, end, _PIECE):
        os.preadv(file, [memoryview(buffer)[: end - at]], at)


def _is_cached(file: int, at: int) -> bool:
    """Return whether a byte is in the page cache; False where the file system does not say."""
    try:
        return os.preadv(file, [bytearray(1)], at, getattr(os, "RWF_NOWAIT", 0)) == 1
    except OSError:
        return False


def _files_under(folder: str | Path) -> Iterator[os.DirEntry]:
    """Yield the finished files under a folder; none if there is no folder. Raises OSError for an unreadable folder."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_under(entry.path)
            elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
                yield entry


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError as error:  # as in /proc
            raise InvalidRequest(f"{folder}: no folder can be made in {folder.parent}; use another place") from error
        _sync(folder.parent)


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
    """Name a finished file, by a link or a rename. Raises FileExistsError if the name is taken."""
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
        if code not in _NO_LINKS | {errno.EINVAL}:
            raise OSError(code, os.strerror(code), str(path))
        raise InvalidRequest(
            f"{path}: this file system can neither link nor rename without replacing; use another folder or a bucket"
        )


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
