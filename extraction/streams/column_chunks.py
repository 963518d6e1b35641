"""Column chunks of a Parquet file, read whole and compared with the manifest before any value is decoded.

In: an open file, its footer, and its content digests in the manifest. Out: Arrow tables of single row groups.
Guarantee: each value comes from bytes whose crc32c was compared, if the manifest has one; otherwise the store's etag of
the whole file was compared when the file was opened. Cost: one read for each chunk, and a pass of crc32c over its
bytes; in memory are the chunks of one row group, compressed, and a table of `TABLE_BYTES`.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import google_crc32c

from ..core.errors import DamagedData
from ..storage.base import RangedFile
from .manifest import ParquetFacts
from .parquet import Files, OpenFile, check_pinned, damage_named, read_footer, row_group_sizes

TABLE_BYTES = 16 << 20  # of a table, as stored without compression
LEAST_ROWS = 256
BUFFER = 1 << 20  # of a column chunk, which is decoded page by page

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    import pyarrow.parquet


@contextlib.contextmanager
def open_chunks(files: Files, pinned: ParquetFacts) -> Iterator["ColumnChunks"]:
    """Yield the column chunks of a file of a manifest. Raises DamagedData when it is not the pinned file."""
    file = files.open(pinned.name)
    with file.handle:
        facts, metadata = read_footer(file)
        check_pinned(facts, pinned)
        yield ColumnChunks(file, metadata)


def pin_file(file: OpenFile, columns: Sequence[str]) -> "tuple[ParquetFacts, pyarrow.parquet.FileMetaData]":
    """Return the pins of a file and of the content of these columns, which are read, and the parsed footer."""
    facts, metadata = read_footer(file)
    chunks = ColumnChunks(file, metadata)
    content: dict[str, tuple[int | None, ...]] = dict.fromkeys(columns, ())
    for group in range(metadata.num_row_groups):
        chunks.hold(group, columns)
        content = {column: (*values, chunks.crc32c(column)) for column, values in content.items()}
    return replace(facts, content=content), metadata


class _HeldBytes:
    """Ranges of a file that are in memory, in `ranges`: (first byte, bytes)."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, bytes]] = []

    def part(self, begin: int, end: int) -> bytes:
        """Return a range of the held bytes."""
        for first, data in self.ranges:
            if first <= begin < first + len(data):
                return data[begin - first : end - first]
        return b""


class ColumnChunks:
    """The column chunks of an open file. Not for use by several threads.

    Arrow keeps what its file reads from, and Python finds no cycle through Arrow: that is why the held bytes are an
    object of their own, which does not know this one.
    """

    def __init__(self, file: OpenFile, metadata: "pyarrow.parquet.FileMetaData"):
        import pyarrow.parquet

        self.metadata = metadata
        self._file = file
        self._row_group = 0
        self._spans: dict[str, list[tuple[int, int]]] = {}  # of the columns that are held
        self._held = _HeldBytes()
        with damage_named(file.name):
            size = file.handle.seek(0, io.SEEK_END)
            self._parquet = pyarrow.parquet.ParquetFile(
                RangedFile(self._held.part, size), metadata=metadata, pre_buffer=False, page_checksum_verification=True,
                buffer_size=BUFFER,
            )  # fmt: skip

    @cached_property
    def starts(self) -> "np.ndarray":
        """int64 [row groups]: the number of the first row of each, counted from 0 in the file."""
        import numpy as np

        sizes = np.array(row_group_sizes(self.metadata), np.int64)
        return np.cumsum(sizes) - sizes

    def hold(self, row_group: int, columns: Sequence[str]) -> None:
        """Read some columns of a row group, to be checked and decoded, and release the previous ones.

        Raises DamagedData when the file ends before them.
        """
        self._row_group, self._spans = row_group, {c: self._spans_of(row_group, c) for c in columns}
        self._held.ranges = []
        for begin, end in _joined(sorted(set(chain.from_iterable(self._spans.values())))):
            with damage_named(self._place):
                self._file.handle.seek(begin)
                data = self._file.handle.read(end - begin)
            if len(data) < end - begin:
                raise DamagedData(f"{self._place}: the file ends before byte {end}")
            self._held.ranges.append((begin, data))

    def crc32c(self, column: str) -> int:
        """Return the crc32c over the chunks of a column that is held."""
        checksum = google_crc32c.Checksum()
        for begin, end in self._spans[column]:
            for at in range(begin, end, BUFFER):  # a copy of a whole chunk would double the memory
                checksum.update(self._held.part(at, min(at + BUFFER, end)))
        return int.from_bytes(checksum.digest(), "big")

    def check(self, pinned: ParquetFacts) -> None:
        """Compare the columns that are held with the manifest. Raises DamagedData naming file, row group and column."""
        if pinned.content is None:
            return
        for column in self._spans:
            values = pinned.content.get(column, ())
            said = values[self._row_group] if self._row_group < len(values) else None
            if self.crc32c(column) != said:
                what = "pins no content of it" if said is None else "pins other content: the file was changed"
                raise DamagedData(f"{self._place}: column {column!r}: the manifest {what}")

    def decode(self, first: int = 0, last: int | None = None) -> "Iterator[tuple[int, pyarrow.Table]]":
        """Yield rows [first, last) of the columns that are held, as (first row, table) of about `TABLE_BYTES` each.

        Rows before the first are decoded, but not kept. Raises DamagedData when the columns are not Parquet.
        """
        import pyarrow

        group = self.metadata.row_group(self._row_group)
        last = group.num_rows if last is None else last
        sizes = (group.column(number) for number in range(group.num_columns))
        size = sum(one.total_uncompressed_size for one in sizes if one.path_in_schema.partition(".")[0] in self._spans)
        step = max(LEAST_ROWS, group.num_rows * TABLE_BYTES // max(size, 1))
        # Threads would release their decoding buffers later: up to three times the memory.
        settings = {"row_groups": [self._row_group], "columns": list(self._spans), "use_threads": False}
        begin = 0
        with damage_named(self._place):
            for batch in self._parquet.iter_batches(step, **settings):
                end = begin + batch.num_rows
                if end > first:
                    skip = max(first - begin, 0)
                    yield begin + skip, pyarrow.Table.from_batches([batch]).slice(skip, min(end, last) - begin - skip)
                begin = end
                if begin >= last:
                    return
        if begin < last:
            raise DamagedData(f"{self._place} has {begin} rows, {last} were expected")

    def read(
        self, row_group: int, columns: Sequence[str], pinned: ParquetFacts, rows: tuple[int, int]
    ) -> "Iterator[tuple[int, pyarrow.Table]]":
        """Yield rows [first, last) of some columns as `decode`, checked against what the manifest pins."""
        self.hold(row_group, columns)
        self.check(pinned)
        yield from self.decode(*rows)
        self._held.ranges = []

    def _spans_of(self, row_group: int, column: str) -> list[tuple[int, int]]:
        """Return (begin, end) of the chunks of a column; a nested column has several, with names below its own."""
        group, spans = self.metadata.row_group(row_group), []
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}."):
                begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
                spans.append((begin, begin + chunk.total_compressed_size))
        return spans

    @property
    def _place(self) -> str:
        return f"{self._file.name}: row group {self._row_group}"


def _joined(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans in order, adjacent ones as one, so that a store reads them in one request."""
    at: tuple[int, int] | None = None
    for begin, end in spans:
        if at is not None and begin > at[1]:
            yield at
            at = None
        at = (begin, end) if at is None else (at[0], max(at[1], end))
    if at is not None:
        yield at
