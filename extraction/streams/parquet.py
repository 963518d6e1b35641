"""Parquet files in any storage: opening them, and their footers.

In: the name of a file as a manifest gives it: relative to the streams folder, absolute, or a URL (`gs://bucket/...`,
`hf://datasets/owner/name@commit/...`). Out: files for reading, `ParquetFacts`, footers.

Guarantee: a file that is missing, cut, changed or not Parquet raises `DamagedData` naming it; a temporary failure to
read raises `TryAgain`. Cost: a footer is one read of the last 64 KiB, and a second one if it is larger.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import DamagedData, InvalidRequest, ObjectNotFound, TryAgain
from ..format.digests import digest_of
from ..storage import ObjectInfo, Storage, backend_of, open_storage
from ..storage.base import RangedFile
from .manifest import ParquetFacts, is_outside

if TYPE_CHECKING:
    import pyarrow.parquet

MAGIC = b"PAR1"
TAIL_BYTES = 8
FOOTER_GUESS = 1 << 16


@dataclass(frozen=True)
class OpenFile:
    """A file opened for reading, and the tag that its store has of its content, if any."""

    name: str
    handle: io.BufferedReader | io.BytesIO | RangedFile
    etag: str | None


class Files:
    """Opens files by their names in a manifest. Relative names are in `home`, the streams folder.

    One connection is kept for each bucket and repository. May be used by several threads.
    """

    def __init__(self, home: Storage | None = None):
        self._home = home
        self._places: dict[str, Storage] = {}

    def open(self, name: str, info: ObjectInfo | None = None) -> OpenFile:
        """Open a file; `info`, if known, saves a request. Raises DamagedData when the file does not exist."""
        try:
            if not is_outside(name):
                if self._home is None:
                    raise InvalidRequest(f"{name}: not an absolute path or a URL, and no streams folder was given")
                return OpenFile(name, self._home.open(name), None)
            if "://" not in name:
                folder, _, base = name.rpartition("/")
                return OpenFile(name, open_storage(folder or "/").open(base), None)
            storage, base = self.locate(name)
            info = info or storage.stat(base)
            # Arrow asks for a column chunk in one read: a buffer would only make two requests of it.
            return OpenFile(name, storage.open_version(info), etag_of(info))
        except ObjectNotFound:
            whose = "the streams point to it, so every worker needs it" if is_outside(name) else "restore it"
            raise DamagedData(f"{name}: the file is missing; {whose}") from None

    def locate(self, name: str) -> tuple[Storage, str]:
        """Return the storage of the bucket or repository that a URL is in, and the name there."""
        root, path = backend_of(name).split(name)
        if root not in self._places:
            self._places[root] = open_storage(root)
        return self._places[root], path


def etag_of(info: ObjectInfo) -> str | None:
    """Return a string that identifies the content of a stored object; None where its store has none."""
    if info.etag:  # a listing of S3 has it, and no checksum
        return f"etag:{info.etag}"
    return f"crc32c:{info.crc32c}" if info.crc32c else None


@contextlib.contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn Arrow's errors about bad bytes into DamagedData that names the place; a failing disk becomes TryAgain."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise TryAgain(f"{what} cannot be read now: {error}") from error
        said = " ".join(str(error).split())  # Arrow's may have several lines
        raise DamagedData(f"{what} cannot be read: {said}") from error


def read_footer(file: OpenFile) -> tuple[ParquetFacts, "pyarrow.parquet.FileMetaData"]:
    """Return the pins of a Parquet file, and its parsed footer. Raises DamagedData when it is cut or not Parquet."""
    import pyarrow.parquet

    name, handle = file.name, file.handle
    with damage_named(name):
        size = handle.seek(0, io.SEEK_END)
        begin = handle.seek(max(0, size - FOOTER_GUESS))
        end = handle.read(size - begin)
        length = int.from_bytes(end[-TAIL_BYTES : -len(MAGIC)], "little")
        if end[-len(MAGIC) :] != MAGIC or length > size - TAIL_BYTES - len(MAGIC):
            raise DamagedData(f"{name} ({size} bytes) does not end as a Parquet file does: cut, or not Parquet")
        if (missing := TAIL_BYTES + length - len(end)) > 0:
            handle.seek(begin - missing)
            end = handle.read(missing) + end
        tail = end[-TAIL_BYTES - length :]
        metadata = pyarrow.parquet.read_metadata(io.BytesIO(MAGIC + tail))
    return ParquetFacts(name, size, metadata.num_rows, digest_of(tail[:-TAIL_BYTES]), file.etag), metadata


def check_pinned(found: ParquetFacts, pinned: ParquetFacts) -> None:
    """Raise DamagedData unless a file is the one that the manifest pinned."""
    for fact, unit in (("size", "bytes"), ("num_rows", "rows")):
        now, then = getattr(found, fact), getattr(pinned, fact)
        if now != then:
            raise DamagedData(f"{pinned.name} has {now} {unit}, the manifest says {then}: the file was changed")
    if found.footer != pinned.footer:
        raise DamagedData(f"{pinned.name} has another footer than the manifest says: the file was replaced")
    if pinned.etag is not None and found.etag != pinned.etag:
        raise DamagedData(f"{pinned.name} is {found.etag}, the manifest says {pinned.etag}: the file was replaced")


def row_group_sizes(metadata: "pyarrow.parquet.FileMetaData") -> list[int]:
    """Return the rows of each row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
