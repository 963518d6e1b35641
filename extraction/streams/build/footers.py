"""The footers of many Parquet files, read in parallel, and the number of records in each row group.

In: the files of a source, and `Wanted`. Out: `FileGroups` in the order of the files, up to the requested number of
records or tokens. Guarantee: the result does not depend on threads or on what a cache held. Cost: one or two
reads for each file; with a filter or a number of tokens also its small columns, of the row groups whose statistics do
not decide.

The footers of remote files are kept in a cache folder, so that an interrupted command continues.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import InvalidRequest
from ...core.progress_bar import track
from ...core.threads import prefetch
from ..columns import ROW_ID, Columns, is_bytes, is_id, is_string, is_text, is_token_ids
from ..parquet import Files, OpenFile, damage_named, read_footer, row_group_sizes
from ..row_filter import DUMP, SCORE, RowFilter
from .assign_row_groups import FileGroups
from .footer_cache import FooterCache
from .sources import SourceFile

if TYPE_CHECKING:
    import pyarrow.parquet

THREADS = 16
AHEAD = 4 * THREADS  # footers that are requested before the first of them is used
TOKEN_COUNT = "token_count"
ROWS_AT_A_TIME = 4096
_OTHER_TEXT = "; name the text's column by --text-column"
_OTHER_ID = "; name the id's column by --id-column, or give --id-column '' for ids of the form FILE#ROW"


@dataclass(frozen=True)
class Wanted:
    """The requested part of a source: its columns and its rows."""

    columns: Columns = field(default_factory=Columns)
    filter: RowFilter = field(default_factory=RowFilter)
    max_records: int | None = None
    max_tokens: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the source may be read only in part."""
        return self.max_records is not None or self.max_tokens is not None

    @property
    def typed_columns(self) -> tuple[str, ...]:
        """Those whose type is known."""
        named = (SCORE,) * (self.filter.min_language_score is not None) + (DUMP,) * bool(self.filter.dumps)
        return named + ((TOKEN_COUNT,) if self.max_tokens is not None else ())

    @property
    def small_columns(self) -> tuple[str, ...]:
        """The columns that decide which rows are records."""
        return tuple(dict.fromkeys(self.filter.columns + ((TOKEN_COUNT,) if self.max_tokens is not None else ())))


def read_groups(files: Sequence[SourceFile], wanted: Wanted, cache: Path | None) -> list[FileGroups]:
    """Return the row groups of the files, up to the requested limits.

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
    """Return the first `whole` groups, and the rows of the next one up to the last record within what is `left`."""
    opened = Files().open(file.name, file.info)
    with opened.handle:
        mask, tokens = _small_columns(_parquet(opened), whole, wanted, file.name)
    fits = np.arange(int(mask.sum())) < left.get("records", len(mask))
    if "tokens" in left:
        fits &= np.cumsum(tokens[mask]) <= left["tokens"]
    count = int(fits.sum())  # a prefix fits: tokens are never negative
    rows = int(np.flatnonzero(mask)[count - 1]) + 1 if count else 0
    rows, records = np.append(groups.rows[:whole], rows), np.append(groups.records[:whole], count)
    return FileGroups(groups.facts, rows, records, groups.unclear[: whole + 1])


def _all_groups(files: Sequence[SourceFile], wanted: Wanted, cache: Path | None) -> Iterator[FileGroups]:
    """Yield the groups of all files in order, some ahead of their use, from the cache where it has them."""
    opener = Files()
    question = [wanted.columns.to_json(), wanted.filter.to_json(), wanted.max_tokens]
    first, count = 0, 1 if wanted.is_limited else len(files)  # grows, since the limit may be near or far
    with ThreadPoolExecutor(THREADS) as pool, FooterCache(cache, question) as known:

        def load(file: SourceFile) -> FileGroups:
            return known.get(file) or inspect(opener, file, wanted)

        while some := files[first : first + count]:
            with closing(prefetch(some, load, AHEAD, pool)) as found:
                for file, groups in zip(some, found, strict=True):
                    known.keep(file, groups)
                    yield groups
            first, count = first + count, 2 * count


# ---------------------------------------------------------------------------------------------- one file


def inspect(files: Files, file: SourceFile, wanted: Wanted) -> FileGroups:
    """Return the groups of one file. Raises as `read_groups` does."""
    opened = files.open(file.name, file.info)
    with opened.handle:
        facts, metadata = read_footer(opened)
        with damage_named(file.name):
            schema = metadata.schema.to_arrow_schema()
        _check_columns(file.name, schema, wanted)
        rows = np.array(row_group_sizes(metadata), np.int64)
        unclear = _unclear(metadata, schema, wanted.columns)
        if not wanted.small_columns:
            return FileGroups(facts, rows, rows, unclear)
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
                    tokens[number + 1 :] = tokens[number]  # beyond the limit in any case: not read
                    break
    return FileGroups(facts, rows, records, unclear, tokens if wanted.max_tokens is not None else None)


def _parquet(opened: OpenFile, metadata: Any = None) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(opened.handle, metadata=metadata or read_footer(opened)[1])


def _small_columns(parquet: Any, number: int, wanted: Wanted, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of a row group are records (bool), and the tokens of each row (int64, zeros if not counted)."""
    import pyarrow

    rows = parquet.metadata.row_group(number).num_rows
    masks, tokens = [np.zeros(0, bool)], [np.zeros(0, np.int64)]
    if not wanted.small_columns:
        return np.ones(rows, bool), np.zeros(rows, np.int64)
    with damage_named(f"{name}: row group {number}"):
        columns = {"row_groups": [number], "columns": list(wanted.small_columns), "use_threads": False}
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, **columns):
            table = pyarrow.Table.from_batches([batch])
            masks.append(wanted.filter.mask(table).to_numpy())
            if wanted.max_tokens is None:
                continue
            column = table[TOKEN_COUNT]
            tokens.append(column.fill_null(-1).to_numpy())
            if tokens[-1].min(initial=0) < 0:
                raise InvalidRequest(
                    f"{name}: row group {number} has a {TOKEN_COUNT} that is null or negative; --max-tokens needs it"
                )
    return np.concatenate(masks), np.concatenate(tokens) if wanted.max_tokens is not None else np.zeros(rows, np.int64)


def _check_columns(name: str, schema: "pyarrow.Schema", wanted: Wanted) -> None:
    for column in dict.fromkeys((*wanted.columns.stored, *wanted.small_columns)):
        if schema.names.count(column) != 1:
            has = f"{name} has no single column {column!r}; it has {', '.join(schema.names) or 'none'}"
            raise InvalidRequest(has + (_OTHER_ID if column == "id" else _OTHER_TEXT if column == "text" else ""))
    from pyarrow import types

    small = {SCORE: (types.is_floating, "a float"), TOKEN_COUNT: (types.is_integer, "a whole number"),
             DUMP: (is_string, "a string")}  # fmt: skip
    kinds = [(column, *small[column]) for column in wanted.typed_columns]
    if wanted.columns.tokens:
        kinds.append((wanted.columns.tokens, is_token_ids, "lists of whole numbers"))
    else:
        kinds.append((wanted.columns.text, is_text, "a string"))
    if wanted.columns.id != ROW_ID:
        kinds.append((wanted.columns.id, is_id, "a string or a whole number"))
    for column, fits, what in kinds:
        if not fits(schema.field(column).type):
            raise InvalidRequest(f"{name}: column {column!r} is {schema.field(column).type}, not {what}")


def _unclear(metadata: "pyarrow.parquet.FileMetaData", schema: "pyarrow.Schema", columns: Columns) -> np.ndarray:
    """Return bool [row groups]: whether the footer leaves open that every text and id exists and is UTF-8."""
    places = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
    unclear = np.full(metadata.num_row_groups, columns.tokens is not None)
    for column in columns.strings:
        if is_bytes(schema.field(column).type):
            unclear[:] = True
        if metadata.schema.column(places[column]).max_definition_level == 0:
            continue  # the column cannot hold nulls
        for number in range(metadata.num_row_groups):
            statistics = metadata.row_group(number).column(places[column]).statistics
            unclear[number] |= statistics is None or not statistics.has_null_count or statistics.null_count > 0
    return unclear
