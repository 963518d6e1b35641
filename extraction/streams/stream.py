"""The records of one stream, from any position.

In: a manifest, and the streams folder for its relative names. Out: `Record`s of one stream in order, from any start.

Guarantee: every record comes from the pinned bytes, which are compared as they are read, and record k is the same for
every start. A file that is missing, cut, replaced or not readable, a text that is null or not UTF-8, and a row group
whose number of records differs from the manifest raise `DamagedData` naming the file and the row; only the rows that
the manifest lists are skipped.

Cost: a file's footer is read with the first of its records. A start decodes the rows of its row group before it. Rows
are prefetched. Memory: the requested columns of the rows that fit into `PREFETCH_BYTES`, and of one row group as it is
compressed.
"""

import contextlib
import itertools
from bisect import bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from ..core.count_of import count_of
from ..core.errors import DamagedData, InvalidRequest
from ..core.threads import Budget, read_ahead
from ..format.records import Record
from ..storage import Storage, open_storage
from .column_chunks import TABLE_BYTES, ColumnChunks, open_chunks
from .columns import (
    ROW_ID,
    TOKENS_OPTION,
    Columns,
    as_strings,
    columns_of,
    meta_text,
    python_values,
    token_arrays,
    unreadable,
)
from .extensions import home_of
from .manifest import Manifest, Piece, is_outside
from .parquet import Files, row_group_sizes

ROWS_AT_A_TIME = 256
PREFETCH_BYTES = 64 << 20
ROW_ID_BYTES = 64


@dataclass(frozen=True)
class _Rows:
    """Records of a stream as an Arrow table: `rows[i]` is the row within the row group of the table's row i."""

    place: str
    first_record: int
    table: Any
    rows: Any


class Stream:
    """One stream of a manifest. It keeps no state between calls: each opens its files and closes them."""

    def __init__(self, manifest: Manifest, home: Storage | None, index: int, streams_before: int = 0) -> None:
        self.index = streams_before + index
        self._files, self._entry, self._home = manifest.files, manifest.streams[index], home
        self._filter = manifest.filter
        self._is_ours = bool(self._entry.pieces) and not is_outside(self._files[self._entry.pieces[0].file].name)
        ours = Columns(meta=("meta",), tokens="tokens" if TOKENS_OPTION in manifest.options else None)
        self._columns = ours if self._is_ours else columns_of(manifest.options)
        self._ends = list(itertools.accumulate(piece.records for piece in self._entry.pieces))

    @property
    def num_records(self) -> int:
        """The number of records of the stream."""
        return self._entry.num_records

    def read_records(self, start: int = 0) -> Iterator[Record]:
        """Return the records from number `start` on. Raises InvalidRequest at once for a start beyond the end."""
        self._check_range(start, self.num_records)
        columns = self._columns
        content = columns.tokens or columns.text
        rows = self._values((columns.id, content), columns.meta, (start, self.num_records))
        return (
            Record(index, row[0], "", self._meta(row), row[1])
            if columns.tokens
            else Record(index, row[0], row[1], self._meta(row))
            for index, row in enumerate(rows, start)
        )

    def _meta(self, row: tuple[Any, ...]) -> str | None:
        """Return the meta of a row: ours as it is, else its values of the columns that the manifest names."""
        values = row[2:]
        if not values or self._is_ours:
            return values[0] if values else None
        return meta_text(dict(zip(self._columns.meta, values, strict=True)))

    def read_ids(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Return the ids of records [start, stop), from the id column alone (and those of the manifest's filter)."""
        stop = self.num_records if stop is None else stop
        self._check_range(start, stop)
        return (row[0] for row in self._values((self._columns.id,), (), (start, stop)))

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_records:
            raise InvalidRequest(
                f"stream {self.index} has {count_of(self.num_records, 'record')}; "
                f"the requested ones are {start} to {stop}"
            )

    # ------------------------------------------------------------------------------------------ in the background

    def _groups(self, columns: tuple[str, ...], span: tuple[int, int], budget: Budget) -> Iterator[tuple[_Rows, int]]:
        """Yield records [start, stop) row group by row group, each with the bytes that it reserved."""
        start, stop = span
        if start == stop:
            return
        number, chunks = -1, None
        with contextlib.ExitStack() as opened:
            for position in range(bisect_right(self._ends, start), len(self._ends)):
                piece, end = self._entry.pieces[position], self._ends[position]
                begin = end - piece.records
                if begin >= stop:
                    return
                if chunks is None or piece.file != number:
                    opened.close()
                    number, chunks = piece.file, self._open(piece.file, columns, opened)
                for part in self._single_groups(chunks.metadata, piece):
                    if begin < stop and begin + part.records > start:
                        yield from self._tables(chunks, part, columns, (begin, start, stop), budget)
                    begin += part.records

    def _tables(
        self,
        chunks: ColumnChunks,
        piece: Piece,
        columns: tuple[str, ...],
        records: tuple[int, int, int],
        budget: Budget,
    ) -> Iterator[tuple[_Rows, int]]:
        """Yield the wanted records of a piece of one row group table by table, each with the bytes that it reserved.

        `records` are the number of the piece's first record, and those of the first wanted one and of the end.
        """
        begin, start, stop = records
        group = chunks.metadata.row_group(piece.row_group)
        size = min(_uncompressed(group, columns) * piece.rows // max(group.num_rows, 1), TABLE_BYTES)
        with contextlib.closing(self._read(chunks, piece, columns, (begin, start))) as tables:
            while budget.reserve(size):
                whole = next(tables, None)
                if whole is None or whole.first_record >= stop:
                    budget.release(size)
                    return
                cut = _cut(whole, start, stop)
                yield cut, size
                del whole, cut

    def _single_groups(self, metadata: Any, piece: Piece) -> Iterator[Piece]:
        """Yield a piece as pieces of one row group each. Raises DamagedData when the file has fewer rows."""
        last = piece.row_group + 1 if piece.records < piece.rows else metadata.num_row_groups
        sizes = row_group_sizes(metadata)[piece.row_group : last]
        if piece.first_row + piece.rows > sum(sizes) or piece.first_row > sizes[0]:
            asked = f"the manifest asks for {piece.rows} from row {piece.first_row} on"
            place = f"{self._files[piece.file].name}: row group {piece.row_group}"
            raise DamagedData(f"{place} and those behind it have {count_of(sum(sizes), 'row')}, {asked}")
        first, left = piece.first_row, piece.rows
        for group, size in enumerate(sizes, piece.row_group):
            if rows := min(left, size - first):
                yield Piece(piece.file, group, first, rows, piece.records if piece.records < piece.rows else rows)
            first, left = 0, left - rows

    def _open(self, number: int, columns: tuple[str, ...], opened: contextlib.ExitStack) -> ColumnChunks:
        pinned = self._files[number]
        chunks = opened.enter_context(open_chunks(Files(self._home), pinned))
        for column in _stored(columns):
            if chunks.metadata.schema.to_arrow_schema().names.count(column) != 1:
                raise DamagedData(f"{pinned.name} has no single column {column!r}")
        return chunks

    def _read(
        self, chunks: ColumnChunks, piece: Piece, columns: tuple[str, ...], records: tuple[int, int]
    ) -> Generator[_Rows, None, None]:
        """Yield the records of a piece that is of one row group.

        `records` are the number of its first record, and that of the first which is wanted.
        """
        at, wanted = records
        pinned = self._files[piece.file]
        place = f"{pinned.name}: row group {piece.row_group}"
        first, last = piece.first_row, piece.first_row + piece.rows
        is_whole = piece.records == piece.rows
        if is_whole:  # each row is a record, so that its place is known
            skipped = max(min(wanted - at, piece.rows - 1), 0)
            first, at = first + skipped, at + skipped
        end = records[0] + piece.records
        for begin, table in chunks.read(piece.row_group, _stored(columns), pinned, (first, last)):
            kept = _Rows(place, at, *self._kept(table, columns, piece, (begin, int(chunks.starts[piece.row_group]))))
            at += kept.table.num_rows
            if at > end:
                break
            yield kept
            del table, kept
        if at != end:
            found = at - records[0]
            raise DamagedData(f"{place} has {count_of(found, 'such record')}, the manifest says {piece.records}")

    def _kept(self, table: Any, columns: tuple[str, ...], piece: Piece, place: tuple[int, int]) -> tuple[Any, Any]:
        """Return the rows that are records, with ids, and their numbers in the row group, int64.

        `place` is the number of the first row in the row group, and that of the row group's first row in the file.
        """
        import numpy
        import pyarrow

        pinned = self._files[piece.file]
        rows = numpy.arange(place[0], place[0] + table.num_rows)
        if ROW_ID in columns:
            ids = self._columns.row_ids(pinned.name, place[1] + rows)
            table = table.append_column(ROW_ID, pyarrow.array(ids, pyarrow.string()))
        skipped = pinned.skipped_in(piece.row_group)
        if self._filter.columns or skipped:
            mask = self._filter.mask(table).to_numpy() & ~numpy.isin(rows, skipped)
            table, rows = table.filter(mask), rows[mask]
        return table, rows

    # ------------------------------------------------------------------------------------------ in the foreground

    def _values(
        self, names: tuple[str, ...], optional: tuple[str, ...], span: tuple[int, int]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the values of records [start, stop): strings or token ids in `names`, any values in `optional`."""
        columns = tuple(dict.fromkeys(names + optional + self._filter.columns))
        groups = read_ahead(lambda budget: self._groups(columns, span, budget), PREFETCH_BYTES)
        with contextlib.closing(groups):
            for group in groups:
                for offset in range(0, group.table.num_rows, ROWS_AT_A_TIME):
                    part = group.table.slice(offset, ROWS_AT_A_TIME)
                    needed = [self._needed(part, name) for name in names]
                    rows = zip(*needed, *(python_values(part[name]) for name in optional), strict=True)
                    for row, values in enumerate(rows, offset):
                        for name, value in zip(names, values, strict=False):
                            if not isinstance(value, str) and (value is None or name != self._columns.tokens):
                                raise self._bad_value(group, row, name, value)
                        for name, value in zip(optional, values[len(names) :], strict=True):
                            if unreadable(value):
                                raise self._bad_value(group, row, name, value)
                        yield values
                    del part, rows, needed
                del group  # or a row group more would be in memory while the next one is read

    def _needed(self, part: Any, name: str) -> list[Any]:
        """Return the values of a column that each record needs: strings, or arrays of token ids."""
        return token_arrays(part[name]) if name == self._columns.tokens else python_values(as_strings(part[name]))

    def _bad_value(self, group: _Rows, row: int, column: str, value: object) -> DamagedData:
        what = "null" if value is None else unreadable(value) or "not a string"
        if column == self._columns.tokens:
            what = "null, or holds a number that is not a token id"
        file, _, number = group.place.rpartition(": row group ")
        return DamagedData(
            f"{file}: row {group.rows[row]} of row group {number} "
            f"(record {group.first_record + row} of stream {self.index}): {column} is {what}"
        )


def _stored(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that are in a file."""
    return tuple(column for column in columns if column != ROW_ID)


def _uncompressed(group: Any, columns: tuple[str, ...]) -> int:
    """Return the uncompressed bytes of columns of a row group, and of the ids that are made of row numbers."""
    chunks = (group.column(number) for number in range(group.num_columns))
    stored = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns)
    return stored + (ROW_ID_BYTES * group.num_rows if ROW_ID in columns else 0)


def _cut(whole: _Rows, start: int, stop: int) -> _Rows:
    """Return the records in [start, stop)."""
    begin = max(start - whole.first_record, 0)
    end = min(stop - whole.first_record, whole.table.num_rows)
    table = whole.table.slice(begin, end - begin)
    return _Rows(whole.place, whole.first_record + begin, table, whole.rows[begin:end])


def open_stream(manifest: Manifest, location: Storage | str, index: int) -> Stream:
    """Return stream number `index` of the manifest read from `location`. Raises InvalidRequest when there is none."""
    if not 0 <= index < manifest.num_streams:
        raise InvalidRequest(f"there is no stream {index}: {location} has {manifest.num_streams}, numbered from 0")
    home, before = open_storage(location) if isinstance(location, str) else location, 0
    for part in manifest.parts:
        if index < before + part.manifest.num_streams:
            return Stream(part.manifest, home_of(home, part), index - before, before)
        before += part.manifest.num_streams
    return Stream(manifest, home, index)
