"""One reading of a source: the digest of each file, and the records that were left out.

In: a `Source`, and whether damaged records are left out or end the reading. Out: both in the options of a manifest.
Guarantee: a record that is left out is counted and named (`skipped_records`). Each file that was read to its end is
pinned by its content: a bucket's checksum, the hub's etag, or a sha256 of the bytes read. Cost: a sha256 of local
files; local Parquet, of which only columns are read, is read again for it.
"""

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

from ...core.count_of import count_of
from ...core.errors import DamagedData, InvalidRequest, ObjectNotFound
from ...core.progress_bar import track
from ...format.digests import digest_of
from ...storage import Storage
from ..manifest import Manifest, canonical_json
from ..parquet import Files, etag_of
from .materialize import AS_TEXT, Row, Spool, Stored, publish_spool
from .publish import Origin, Published
from .skipped_records import Skipped
from .sources import Source, SourceFile

FILES = "source_files"
Made = TypeVar("Made")
MOST_FILES = 1000


class MissingColumn(DamagedData):
    """A row lacks a requested column; in the first row this is an error of the request."""


class ReadLog:
    """The digests and skipped records of a reading, for the manifest."""

    def __init__(self, source: Source, skip_bad: bool):
        self.source = source
        self._skip_bad = skip_bad
        self._skipped = Skipped()
        self.num_rows = 0
        self._files: dict[str, list[Any]] = {file.name: [file.name, file.size, None] for file in source.files}

    def skip_or_raise(self, error: DamagedData, is_first: bool = False) -> None:
        """Leave out the damaged record of the error, or raise the error."""
        if not self._skip_bad:
            raise InvalidRequest(str(error)) if is_first and isinstance(error, MissingColumn) else error
        self._skipped.add(str(error)[:300])

    def finish(self, file: SourceFile, digest: str) -> None:
        """Note that a file was read to its end; `digest` is of its content."""
        self._files[file.name] = [file.name, file.size, etag_of(file.info) if file.info else digest]

    def no_records_error(self, what: str = "records") -> InvalidRequest:
        """Return the error for a source without records."""
        skipped = self._skipped
        why = f": the flags keep none of its {count_of(self.num_rows, 'row')}" if self.num_rows else ""
        if skipped.count:
            all_of_them = "all " if skipped.count == self.num_rows else ""
            why = f": {all_of_them}{skipped.count} are damaged, the first: {skipped.first[0]}"
        return InvalidRequest(f"{self.source.place}: it has no {what}{why}")

    def to_json(self) -> dict[str, Any]:
        """Return the options of a manifest: the files, and the records that were left out, if any."""
        files = {FILES: _pinned(list(self._files.values()))} if self._files else {}
        return files | self._skipped.to_json()


def _pinned(files: list[list[Any]]) -> dict[str, Any]:
    """Return [name, size, digest] of each file, or a digest of that list where it is long."""
    facts = {"count": len(files), "size": sum(size for _, size, _ in files)}
    return facts | ({"digest": digest_of(canonical_json(files))} if len(files) > MOST_FILES else {"files": files})


def changed_sources(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each source file that changed since it was copied; at a commit of the hub none can."""
    listed = manifest.options.get(FILES, {}).get("files", []) if manifest.revision is None else []
    for name, size, digest in track(listed, "source files", len(listed)):
        now = _facts_now(name)
        if now is None:
            yield f"{name} is gone since the streams were made"
        elif now != (size, digest or now[1]):
            yield f"{name} has changed since the streams were made"


def _facts_now(name: str) -> tuple[int, str | None] | None:
    """Return size and digest of a source file, if it exists."""
    try:
        if "://" in name:
            storage, base = Files().locate(name)
            info = storage.stat(base)
            return info.size, etag_of(info)
        with open(name, "rb") as file:
            return os.fstat(file.fileno()).st_size, file_sha256(file)
    except (FileNotFoundError, ObjectNotFound):
        return None


def file_sha256(file: io.BufferedReader) -> str:
    """Return the digest of a file's bytes as the manifest spells it."""
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def without_damaged(rows: Generator[Any, None, None], make: Callable[[int, Any], Made], log: ReadLog) -> Iterator[Made]:
    """Yield `make(number, row)` of each located row, without damaged rows.

    Raises InvalidRequest when the first row lacks a column.
    """
    with closing(rows):
        for number, located in enumerate(rows):
            try:
                if located.problem is not None:
                    raise located.problem
                made = make(number, located)
            except DamagedData as error:
                log.skip_or_raise(error, number == 0)
            else:
                yield made


def publish_read(
    storage: Storage,
    origin: Origin,
    rows: Iterable[Row],
    log: ReadLog,
    num_streams: int,
    stored: Stored = AS_TEXT,
) -> Published:
    """Publish the records of a reading as streams. Raises InvalidRequest when there are none, and as `publish_rows`."""
    with Spool(rows, stored) as spool:
        if not len(spool):
            raise log.no_records_error()
        options = origin.options | log.to_json()
        return publish_spool(storage, replace(origin, options=options), spool, num_streams)
