"""Content digests of a source's Parquet files, and a search for rows that cannot be read.

In: `FileGroups`, and the requested columns. Out: the same with the content of local files pinned by row group, and
without the rows whose text, id or meta cannot be read, which are counted; or an error that names the first such row.

Guarantee: the result does not depend on threads. Row groups with records are read: all of them in a file without an
etag, and elsewhere those whose footer leaves open that texts and ids exist and are UTF-8. Cost: one pass over the
columns of records of these row groups; the memory of a compressed row group for each of `THREADS`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ...core.errors import DamagedData
from ...core.progress_bar import track
from ..column_chunks import ColumnChunks, open_chunks
from ..columns import Columns, as_strings, may_be_unreadable, python_values, token_arrays, unreadable
from ..manifest import ParquetFacts
from ..parquet import Files
from .assign_row_groups import FileGroups
from .footers import Wanted
from .skipped_records import Skipped

if TYPE_CHECKING:
    import pyarrow

Found = TypeVar("Found")
THREADS = 4
GROUPS_AT_A_TIME = 16  # row groups that are read for one opening of their file


class _Group(NamedTuple):
    """The crc32c by column of a row group, and the problems of its rows by their number in it."""

    file: int
    row_group: int
    content: dict[str, int]
    bad: dict[int, str]


def read_contents(files: Sequence[FileGroups], wanted: Wanted, skip: bool) -> tuple[list[FileGroups], Skipped]:
    """Return the files with their content pinned and without bad records, and those records.

    Raises DamagedData for the first bad record unless they are to be skipped.
    """
    facts = [file.facts for file in files]
    read = [np.flatnonzero((file.records > 0) & (file.unclear | (file.facts.etag is None))).tolist() for file in files]
    found: list[list[_Group]] = [[] for _ in files]
    skipped = Skipped()
    groups = each_row_group(
        Files(), facts, read, lambda chunks, number, group: _read_group(chunks, number, files[number], group, wanted)
    )
    for group in groups:
        found[group.file].append(group)
        for row, what in group.bad.items():
            _take_bad(files[group.file], group.row_group, row, what, skipped if skip else None)
    return [_with_content(file, groups, wanted) for file, groups in zip(files, found, strict=True)], skipped


def each_row_group(
    opener: Files,
    files: Sequence[ParquetFacts],
    groups: Sequence[Sequence[int]],
    read: Callable[[ColumnChunks, int, int], Found],
) -> Iterator[Found]:
    """Yield `read(chunks, number of the file, row group)` for the row groups of each file, in order."""
    jobs = [
        (number, mine[at : at + GROUPS_AT_A_TIME])
        for number, mine in enumerate(groups)
        for at in range(0, len(mine), GROUPS_AT_A_TIME)
    ]

    def work(job: tuple[int, Sequence[int]]) -> list[Found]:
        number, mine = job
        with open_chunks(opener, files[number]) as chunks:
            return [read(chunks, number, group) for group in mine]

    if jobs:
        with ThreadPoolExecutor(THREADS) as pool:
            yield from track(chain.from_iterable(pool.map(work, jobs)), "row groups", sum(map(len, groups)))


def _take_bad(file: FileGroups, row_group: int, row: int, what: str, skipped: Skipped | None) -> None:
    if skipped is None:
        raise DamagedData(
            f"{file.facts.name}: row {row} of row group {row_group}: {what}; "
            "take it out, or leave such rows out by --on-bad-record skip"
        )
    skipped.add(f"{file.facts.name} row {int(file.rows[:row_group].sum()) + row}")


def _read_group(chunks: ColumnChunks, number: int, file: FileGroups, group: int, wanted: Wanted) -> _Group:
    columns = wanted.columns
    names = tuple(dict.fromkeys((*columns.stored, *wanted.filter.columns)))
    chunks.hold(group, names)
    bad: dict[int, str] = {}
    for first, table in chunks.decode(0, int(file.rows[group])):
        found = _bad_rows(table, columns, wanted.filter.mask(table).to_numpy())
        bad |= {first + row: what for row, what in found.items()}
    return _Group(number, group, {column: chunks.crc32c(column) for column in names}, bad)


def _bad_rows(table: "pyarrow.Table", columns: Columns, kept: np.ndarray) -> dict[int, str]:
    """Return {row: problem} of the rows that the filter keeps: a text or id that is null, an unreadable value."""
    bad: dict[int, str] = {}
    if columns.tokens:
        places = enumerate(token_arrays(table[columns.tokens]))
        bad |= {
            row: f"{columns.tokens} is null, or holds a number that is not a token id"
            for row, ids in places
            if ids is None
        }
    for column in columns.strings:
        values = as_strings(table[column])
        if values.null_count:
            bad |= dict.fromkeys(np.flatnonzero(values.is_null().to_numpy()).tolist(), f"{column} is null")
        bad |= _unreadable(column, values)
    for column in columns.meta:
        bad |= _unreadable(column, table[column])
    return {row: bad[row] for row in sorted(bad) if kept[row]}


def _unreadable(column: str, values: "pyarrow.ChunkedArray") -> dict[int, str]:
    import pyarrow

    try:
        values.validate(full=True)
        if not may_be_unreadable(values.type):
            return {}
    except pyarrow.ArrowInvalid:  # which does not say all the rows
        pass
    found = enumerate(map(unreadable, python_values(values)))
    return {row: f"{column} is {why}" for row, why in found if why}


def _with_content(file: FileGroups, found: Sequence[_Group], wanted: Wanted) -> FileGroups:
    """Return the file without its bad rows, with the content digests of the row groups read if it has no etag."""
    records, bad = file.records.copy(), []
    content: dict[str, list[int | None]] | None = None
    if file.facts.etag is None:
        names = (*wanted.columns.stored, *wanted.filter.columns)
        content = {column: [None] * len(file.rows) for column in names}
    for group in found:
        records[group.row_group] -= len(group.bad)
        bad += [(group.row_group, row) for row in group.bad]
        for column, values in content.items() if content is not None else ():
            values[group.row_group] = group.content[column]
    pinned = None if content is None else {column: tuple(values) for column, values in content.items()}
    return replace(file, facts=replace(file.facts, content=pinned, skipped=tuple(bad)), records=records)
