"""One reading of a source: what was read of each file, and the records that were left out.

In: a `Source`, and whether damaged records are left out or end the reading. Out: what the manifest says of both.
Guarantee: a record that is left out is counted, and the first `NAMED` are named by file and row. Each file that was read
to its end is pinned by its content: a bucket's checksum, the hub's etag, or a sha256 of its bytes, made as they are
read. Cost: a sha256 of local files; Parquet, of which only columns are read, is read once more for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import DamagedData, InvalidRequest
from ..manifest import canonical_json, sha256
from ..parquet import etag_of
from ..storage import Storage
from .publish import Origin, Published
from .rows import Row, Spool, publish_spool
from .sources import Source, SourceFile

SKIPPED, FILES = "skipped", "source_files"
NAMED = 100
MOST_FILES = 1000


class MissingColumn(DamagedData):
    """A row without a column that was asked for; of the first row, it is the request that is wrong."""


class Reading:
    """What a reading of a source comes to, for the manifest."""

    def __init__(self, source: Source, skip_bad: bool):
        self.source = source
        self._skip_bad = skip_bad
        self._num_skipped = 0
        self._first: list[str] = []
        self._files: dict[str, list[Any]] = {file.name: [file.name, file.size, None] for file in source.files}

    def refuse(self, error: DamagedData, is_first: bool = False) -> None:
        """Leave out the record that the error tells of, or raise it."""
        if not self._skip_bad:
            raise InvalidRequest(str(error)) if is_first and isinstance(error, MissingColumn) else error
        self._num_skipped += 1
        if len(self._first) < NAMED:
            self._first.append(str(error)[:300])

    def finish(self, file: SourceFile, digest: str) -> None:
        """Say that a file was read to its end; `digest` is of its content."""
        self._files[file.name] = [file.name, file.size, etag_of(file.info) if file.info else digest]

    def nothing(self, what: str = "records") -> InvalidRequest:
        """The error for a source without a single one of these."""
        skipped = f": all {self._num_skipped} are damaged, the first: {self._first[0]}" if self._num_skipped else ""
        return InvalidRequest(f"{self.source.place}: no {what} there{skipped}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in the options of the manifest: the files, and the records that were left out, if there are."""
        value: dict[str, Any] = {}
        if self._files:
            value[FILES] = _pinned(list(self._files.values()))
        if self._num_skipped:
            value[SKIPPED] = {"count": self._num_skipped, "first": self._first}
        return value


def _pinned(files: list[list[Any]]) -> dict[str, Any]:
    """[name, size, digest] of each file, or a digest of that list where it is long."""
    facts = {"count": len(files), "size": sum(size for _, size, _ in files)}
    return facts | ({"digest": sha256(canonical_json(files))} if len(files) > MOST_FILES else {"files": files})


def told_skipped(options: Mapping[str, Any]) -> list[str]:
    """Sentences about the records that were left out, from the options of a manifest."""
    skipped = options.get(SKIPPED)
    if not skipped:
        return []
    return [f"{skipped['count']} records were skipped when the streams were made:", *skipped["first"]]


def make_rows(rows: Iterable[Any], make: Callable[[int, Any], Row], reading: Reading) -> Iterator[Row]:
    """A record of each located row, `make(number, row)`, without those that are damaged.

    Raises InvalidRequest when it is the first row that misses a column.
    """
    for number, located in enumerate(rows):
        try:
            if located.problem is not None:
                raise located.problem
            row = make(number, located)
        except DamagedData as error:
            reading.refuse(error, number == 0)
        else:
            yield row


def publish_read(storage: Storage, origin: Origin, rows: Iterable[Row], reading: Reading, num_streams: int) -> Published:
    """Publish the records of a reading as streams. Raises InvalidRequest when there are none, and as `publish_rows`."""
    with Spool(rows) as spool:
        if not len(spool):
            raise reading.nothing()
        options = origin.options | reading.to_json()
        return publish_spool(storage, replace(origin, options=options), spool, num_streams)
