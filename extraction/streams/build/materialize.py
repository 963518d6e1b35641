"""Materialised streams: rows are made once, in order, and copied to stream files.

In: an iterable of rows. Out: `stream-NNNNN.parquet` files (a large stream continues in
`stream-NNNNN-PPPPP.parquet`) and the manifest. Stream s is the s-th contiguous run of rows; streams differ by at most
one.

Guarantee: ids are unique over all streams. The same rows give the same bytes, so the next call completes an interrupted
one. Existing files are compared before the first write; other streams are refused and left unchanged.

Cost: a temporary file (in TMPDIR, compressed) keeps the rows until they are published; in memory is one file of a
stream, at most about `PART_BYTES` of text. An interrupted call reads the source again, since where a stream begins
follows from the number of all rows; files that it wrote are compared by checksum (in a bucket that of the listing) and
not sent again.
"""

import hashlib
import io
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import DamagedData
from ...core.progress_bar import track
from ...storage import Storage, crc32c_base64
from ..column_chunks import pin_file
from ..manifest import Manifest, ParquetFacts, Piece, StreamEntry
from ..parquet import OpenFile, row_group_sizes
from .publish import (
    Origin,
    OtherStreams,
    Published,
    create_only,
    manifest_of,
    manifest_there,
    publish_manifest,
    published_before,
    stream_entry,
)

if TYPE_CHECKING:
    import numpy as np

ROWS_PER_GROUP = 1000
GROUP_BYTES = 16 << 20
PART_BYTES = 128 << 20
META_BYTES = 64 << 10
PREFIX = "stream-"


TEXT_COLUMNS, TOKEN_COLUMNS = ("id", "text", "meta"), ("id", "tokens", "meta")  # the columns of a stream file


class Row(NamedTuple):
    """One row of a stream file; `meta` is JSON or None, `tokens` int32 [n] in place of a text."""

    id: str
    text: str
    meta: str | None = None
    tokens: "np.ndarray | None" = None

    @property
    def num_bytes(self) -> int:
        """About how many bytes its text or its ids take."""
        return len(self.text) if self.tokens is None else self.tokens.nbytes


@dataclass(frozen=True)
class Stored:
    """The stored form of rows: with TEXT_COLUMNS or TOKEN_COLUMNS, in their order or in that of the seed `shuffle`."""

    columns: tuple[str, ...] = TEXT_COLUMNS
    shuffle: int | None = None


AS_TEXT = Stored()


class UniqueIds:
    """The ids so far and their places, on disk beyond a few MiB. Use as a context manager."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # a temporary database, deleted when it is closed
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def __enter__(self) -> "UniqueIds":
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def add(self, ids: Sequence[str], place: Callable[[int], str]) -> Iterator[str]:
        """Add some ids, number i of which is at `place(i)`; yield a sentence for each duplicate."""
        begin = 0
        while begin < len(ids):
            before = self._table.total_changes
            try:
                rows = ((name, place(number)) for number, name in enumerate(ids[begin:], begin))
                self._table.executemany("INSERT INTO seen VALUES (?, ?)", rows)
                return
            except sqlite3.IntegrityError:
                again = begin + self._table.total_changes - before
            (first,) = self._table.execute("SELECT place FROM seen WHERE id = ?", [ids[again]]).fetchone()
            yield f"the id {ids[again]!r} is in two records: {first} and {place(again)}"
            begin = again + 1


class Spool:
    """Rows in a temporary file, in order. Use as a context manager, which deletes the file.

    Raises DamagedData for a duplicate id, text that is not Unicode, or a meta beyond `META_BYTES`.
    """

    def __init__(self, rows: Iterable[Row], stored: Stored = AS_TEXT):
        import pyarrow

        self.columns, schema = stored.columns, _schema(stored.columns)
        self._folder = tempfile.TemporaryDirectory(prefix="streams-")
        self._path = Path(self._folder.name) / "rows.arrow"
        self._starts = [0]
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        try:
            with (
                pyarrow.OSFile(str(self._path), "wb") as sink,
                UniqueIds() as ids,
                pyarrow.ipc.new_file(sink, schema, options=options) as writer,
            ):
                for group in _groups(track(rows, "records")):
                    batch = _batch(group, schema)
                    for problem in ids.add([row.id for row in group], lambda i: f"record {self._starts[-1] + i}"):
                        raise DamagedData(problem)
                    writer.write_batch(batch)
                    self._starts.append(self._starts[-1] + len(group))
            if stored.shuffle is not None:
                from .external_shuffle import shuffled

                self._path, self._starts = shuffled(self._path, stored.shuffle)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, begin: int, end: int) -> Iterator[Any]:
        """Yield rows [begin, end) as Arrow record batches."""
        import pyarrow

        with pyarrow.OSFile(str(self._path)) as source, pyarrow.ipc.open_file(source) as reader:
            for number, (first, after) in enumerate(itertools.pairwise(self._starts)):
                if max(first, begin) < min(end, after):
                    batch = reader.get_batch(number)
                    yield batch.slice(max(begin - first, 0), min(end, after) - max(begin, first))


def publish_rows(storage: Storage, origin: Origin, rows: Iterable[Row], num_streams: int) -> Published:
    """Publish rows as `num_streams` streams. Raises OtherStreams, and as `Spool`."""
    with Spool(rows) as spool:
        return publish_spool(storage, origin, spool, num_streams)


def publish_spool(storage: Storage, origin: Origin, spool: Spool, num_streams: int) -> Published:
    """Publish the rows of a spool. Raises OtherStreams for other streams in the output.

    Files that are there are compared and kept. Nothing is written before the last of them was compared, so that the
    files are made once, or twice if one is missing before that.
    """
    there = {info.name: info for info in storage.list(PREFIX)}
    is_published, uncompared, missing = manifest_there(storage) is not None, set(there), set[str]()
    differing: list[str] = []

    def compare_or_write(name: str, data: bytes) -> None:
        if name in there:
            uncompared.discard(name)
            info = there[name] if there[name].crc32c else storage.stat_with_crc32c(name)
            if not info.holds(len(data), crc32c_base64(data)):
                differing.append(name)
        elif is_published or differing or uncompared:
            missing.add(name)
        else:
            create_only(storage, name, data)

    def write_missing(name: str, data: bytes) -> None:
        if name in missing:
            create_only(storage, name, data)

    manifest = _make(origin, spool, num_streams, compare_or_write)
    if published := published_before(storage, manifest):
        return published
    for name in sorted([*differing, *uncompared]):
        raise OtherStreams(f"the output has {name}, left by another unfinished command")
    return publish_manifest(storage, _make(origin, spool, num_streams, write_missing) if missing else manifest)


def _make(origin: Origin, spool: Spool, num_streams: int, take: Callable[[str, bytes], None]) -> Manifest:
    """Make all files, one after the other, pass each to `take`, and return the manifest."""
    files: list[ParquetFacts] = []
    streams: list[StreamEntry] = []
    for stream in range(num_streams):
        begin, end = len(spool) * stream // num_streams, len(spool) * (stream + 1) // num_streams
        digest, pieces = hashlib.sha256(), []
        for part, data in enumerate(encode_files(spool.batches(begin, end), spool.columns)):
            name = f"{PREFIX}{stream:05d}{f'-{part:05d}' if part else ''}.parquet"
            facts, metadata = pin_file(OpenFile(name, io.BytesIO(data), None), spool.columns)
            sizes = row_group_sizes(metadata)
            pieces += [Piece(len(files), group, 0, rows, rows) for group, rows in enumerate(sizes)]
            files.append(facts)
            digest.update(data)
            take(name, data)
        streams.append(stream_entry(pieces, f"sha256:{digest.hexdigest()}"))
    return manifest_of(origin, files, streams)


def encode_files(batches: Iterator[Any], columns: tuple[str, ...]) -> Iterator[bytes]:
    """Yield Parquet files, as bytes, with checksummed pages and small row groups; without rows one empty file."""
    import pyarrow
    import pyarrow.parquet

    waiting = next(batches, None)
    first = True
    while waiting is not None or first:
        sink, held = io.BytesIO(), 0
        schema, settings = _schema(columns), {"compression": "zstd", "write_page_checksum": True}
        with pyarrow.parquet.ParquetWriter(sink, schema, **settings) as writer:
            while waiting is not None and held < PART_BYTES:
                group, held = [waiting], held + waiting.nbytes
                while (waiting := next(batches, None)) is not None:
                    rows, size = (
                        sum(getattr(batch, what) for batch in [*group, waiting]) for what in ("num_rows", "nbytes")
                    )
                    if rows > ROWS_PER_GROUP or size > GROUP_BYTES:
                        break
                    group.append(waiting)
                    held += waiting.nbytes
                writer.write_table(pyarrow.Table.from_batches(group), row_group_size=ROWS_PER_GROUP)
        yield sink.getvalue()
        first = False


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in groups that are small in number and in bytes."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.num_bytes
        if len(group) == ROWS_PER_GROUP or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _batch(rows: Sequence[Row], schema: Any) -> Any:
    import pyarrow

    for row in rows:
        size = 0 if row.meta is None else len(row.meta.encode(errors="surrogatepass"))
        if size > META_BYTES:
            raise DamagedData(f"record {row.id}: its meta takes {size:,} bytes, over {META_BYTES:,}")
    try:
        columns = [pyarrow.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    except UnicodeEncodeError:
        for row in rows:
            for value in row[:3]:
                if value is not None and value.encode("utf-8", "replace").decode() != value:
                    raise DamagedData(f"record {row.id!r}: not Unicode text") from None
        raise
    return pyarrow.record_batch(columns, schema=schema)


def _schema(columns: tuple[str, ...]) -> Any:
    import pyarrow

    kinds = {"tokens": pyarrow.list_(pyarrow.int32())}
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
