"""The footers of many Parquet files, read in parallel, and what of their rows are records.

In: the files of a source, and what is wanted of them. Out: `FileGroups` in the order of the files, up to the number of
records or tokens asked for. Guarantee: the result does not depend on threads or on what a cache held. Cost: one or two
reads for each file; with a filter or a number of tokens also its small columns, of the row groups whose statistics do
not decide.

What was read of a remote file is kept in a cache folder, so that a making that was interrupted goes on where it was.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedData, InvalidRequest
from ..parquet import Files, OpenFile, damage_named, read_footer, row_group_sizes
from ..selection import SCORE, RowFilter
from .footer_cache import FooterCache
from .references import FileGroups
from .sources import SourceFile
from .tracking import track

if TYPE_CHECKING:
    import pyarrow.parquet

THREADS = 16
AHEAD = 4 * THREADS  # files whose footers are asked for before the first of them is used
TOKENS = "token_count"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a source: columns that have to be there, and which part of the rows."""

    texts: tuple[str, ...] = ("id", "text")
    columns: tuple[str, ...] = ()
    filter: RowFilter = field(default_factory=RowFilter)
    max_records: int | None = None
    max_tokens: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the end of the source may not be wanted."""
        return self.max_records is not None or self.max_tokens is not None

    @property
    def small_columns(self) -> tuple[str, ...]:
        """The columns that decide which rows are records."""
        return self.filter.columns + ((TOKENS,) if self.max_tokens is not None else ())


def read_groups(files: Sequence[SourceFile], wanted: Wanted, cache: Path | None) -> list[FileGroups]:
    """The row groups of the files, as much of them as is wanted.

    Raises InvalidRequest when a column is missing or of another type, DamagedData when a file is cut or not Parquet.
    """
    found: list[FileGroups] = []
    asked = {"records": wanted.max_records, "tokens": wanted.max_tokens}
    left = {name: limit for name, limit in asked.items() if limit is not None}
    for file, groups in zip(files, track(_all_groups(files, wanted, cache), "footers", len(files)), strict=False):
        counts = {name: getattr(groups, name) for name in left}
        fitting = [int(np.searchsorted(np.cumsum(counts[name]), left[name], side="right")) for name in left]
        whole = min([len(groups.rows), *fitting])
        for name in left:
            left[name] -= int(counts[name][:whole].sum())
        if whole < len(groups.rows):
            groups = _cut_after(file, groups, whole, wanted, left)
        if groups.records.any() or not left:
            found.append(groups)
        if whole < len(groups.rows) or 0 in left.values():
            break
    return found


def _cut_after(file: SourceFile, groups: FileGroups, whole: int, wanted: Wanted, left: Mapping[str, int]) -> FileGroups:
    """The first `whole` groups, and of the next one the rows up to the last record that is within what is `left`."""
    opened = Files().open(file.name, file.info)
    with opened.handle:
        mask, tokens = _small_columns(_parquet(opened), whole, wanted, file.name)
    fits = np.arange(int(mask.sum())) < left.get("records", len(mask))
    if "tokens" in left:
        fits &= np.cumsum(tokens[mask]) <= left["tokens"]
    count = int(fits.sum())  # a prefix fits: tokens are never negative
    rows = int(np.flatnonzero(mask)[count - 1]) + 1 if count else 0
    return FileGroups(groups.facts, np.append(groups.rows[:whole], rows), np.append(groups.records[:whole], count))


def _all_groups(files: Sequence[SourceFile], wanted: Wanted, cache: Path | None) -> Iterator[FileGroups]:
    """The groups of all files in order, some ahead of their use, from the cache where it has them."""
    opener = Files()
    question = [wanted.texts, wanted.columns, wanted.filter.to_json(), wanted.max_tokens]
    ahead = 1 if wanted.is_limited else AHEAD  # grows as it turns out how far the limit is
    with ThreadPoolExecutor(THREADS) as pool, FooterCache(cache, question) as known:
        waiting: deque[tuple[SourceFile, FileGroups | Future]] = deque()
        try:
            for file in files:
                waiting.append((file, known.get(file) or pool.submit(inspect, opener, file, wanted)))
                if len(waiting) > ahead:
                    yield _finished(known, *waiting.popleft())
                    ahead = min(2 * ahead, AHEAD)
            while waiting:
                yield _finished(known, *waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(known: FooterCache, file: SourceFile, groups: FileGroups | Future) -> FileGroups:
    if isinstance(groups, Future):
        groups = groups.result()
        known.keep(file, groups)
    return groups


# ---------------------------------------------------------------------------------------------- one file


def inspect(files: Files, file: SourceFile, wanted: Wanted) -> FileGroups:
    """The groups of one file. Raises as `read_groups` does."""
    opened = files.open(file.name, file.info)
    with opened.handle:
        facts, metadata = read_footer(opened)
        with damage_named(file.name):
            schema = metadata.schema.to_arrow_schema()
        _check_columns(file.name, schema, wanted)
        rows = np.array(row_group_sizes(metadata), np.int64)
        if not wanted.filter.columns:
            _check_nulls(file.name, metadata, wanted.texts)
        if not wanted.small_columns:
            return FileGroups(facts, rows, rows)
        parquet = _parquet(opened, metadata)
        records, tokens = rows.copy(), np.zeros(len(rows), np.int64)
        for number in range(len(rows)):
            decided = wanted.filter.by_statistics(metadata.row_group(number)) if wanted.filter.columns else True
            if decided is False:
                records[number] = 0
            elif decided is None or wanted.max_tokens is not None:
                mask, counts = _small_columns(parquet, number, wanted, file.name)
                records[number], tokens[number] = mask.sum(), counts[mask].sum()
                if wanted.max_tokens is not None and tokens.sum() > wanted.max_tokens:
                    tokens[number + 1 :] = tokens[number]  # beyond the limit whatever they are: not read
                    break
    return FileGroups(facts, rows, records, tokens if wanted.max_tokens is not None else None)


def _parquet(opened: OpenFile, metadata: Any = None) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(opened.handle, metadata=metadata or read_footer(opened)[1])


def _small_columns(parquet: Any, number: int, wanted: Wanted, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a row group: which rows are records (bool), and the tokens of each row (int64, zeros if they do not count)."""
    rows = parquet.metadata.row_group(number).num_rows
    mask, tokens = np.ones(rows, bool), np.zeros(rows, np.int64)
    if not wanted.small_columns:
        return mask, tokens
    with damage_named(f"{name}: row group {number}"):
        table = parquet.read_row_group(number, columns=list(wanted.small_columns), use_threads=False)
    if wanted.filter.columns:
        mask = wanted.filter.mask(table).to_numpy()
    if wanted.max_tokens is not None:
        column = table[TOKENS]
        if column.null_count or (tokens := column.to_numpy()).min(initial=0) < 0:
            raise InvalidRequest(
                f"{name}: row group {number} has a {TOKENS} that is null or negative; --max-tokens needs it"
            )
    return mask, tokens


def _check_columns(name: str, schema: "pyarrow.Schema", wanted: Wanted) -> None:
    for column in dict.fromkeys((*wanted.texts, *wanted.small_columns, *wanted.columns)):
        if schema.names.count(column) != 1:
            raise InvalidRequest(f"{name} has no single column {column!r}; it has {', '.join(schema.names) or 'none'}")
    from pyarrow import types

    numbers = {SCORE: (types.is_floating, "a float"), TOKENS: (types.is_integer, "a whole number")}
    for column in dict.fromkeys((*wanted.texts, *wanted.small_columns)):
        fits, what = numbers.get(column, (is_text, "a string"))
        if not fits(schema.field(column).type):
            raise InvalidRequest(f"{name}: column {column!r} is {schema.field(column).type}, not {what}")


def _check_nulls(name: str, metadata: "pyarrow.parquet.FileMetaData", columns: Sequence[str]) -> None:
    """A null that the statistics tell of would stop a worker that comes to it, so it is told of at once."""
    places = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
    for column in columns:
        for number in range(metadata.num_row_groups):
            statistics = metadata.row_group(number).column(places[column]).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                count = statistics.null_count
                raise DamagedData(f"{name}: row group {number} has {count} rows whose {column} is null; take them out")


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
