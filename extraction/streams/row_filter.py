"""The row filter: which rows of a source are records.

In: rows of an Arrow table, a row of Python values, or the statistics of a row group in a footer. Out: the rows that are
kept. Guarantee: only a row's own values decide, and equally when streams are made and when they are read; null and NaN
are not kept. A part and its rest, as `--part 0.98:train` and `0.98:test`, share no id. Cost: one pass over the columns
named by `columns`; a hash of each id for parts and samples.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import DamagedData, InvalidRequest
from .columns import ROW_ID, as_strings
from .where_conditions import Bounds, Condition

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SCORE, DUMP = "language_score", "dump"
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Share:
    """The records whose id has a hash in [low, high) of 1; `salt` makes hashes of several shares independent."""

    salt: str
    low: float
    high: float

    def has(self, record_id: str) -> bool:
        """Return whether a record of this id is in the share."""
        digest = hashlib.blake2b(f"{self.salt}\0{record_id}".encode(), digest_size=8).digest()
        return self.low <= int.from_bytes(digest, "big") / 2**64 < self.high

    def to_json(self) -> list[Any]:
        """Return the JSON of a manifest."""
        return [self.salt, self.low, self.high]


def parse_part(text: str) -> Share:
    """Return the share of `--part 0.98:train`, or of its rest `0.98:test`. Raises InvalidRequest."""
    number, _, name = text.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1 or name not in (TRAIN, TEST):
        raise InvalidRequest(f"--part {text}: give a fraction and {TRAIN} or {TEST}, as 0.98:{TRAIN} and 0.98:{TEST}")
    return Share("part", 0.0, fraction) if name == TRAIN else Share("part", fraction, 1.0)


def parse_sample(fraction: float) -> Share:
    """Return the share of `--sample 0.01`."""
    return Share("sample", 0.0, fraction)


@dataclass(frozen=True)
class RowFilter:
    """Keeps rows for which everything holds that is given.

    Attributes:
        min_language_score: the least `language_score`.
        dumps: what `dump` may be.
        where: a condition on any columns.
        shares: of the ids.
        id_column: the column of the ids, read for shares.
    """

    min_language_score: float | None = None
    dumps: tuple[str, ...] = ()
    where: Condition | None = None
    shares: tuple[Share, ...] = ()
    id_column: str = "id"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the filter reads; none when every row is kept."""
        names = (SCORE,) * (self.min_language_score is not None) + (DUMP,) * bool(self.dumps)
        names += self.where.columns if self.where else ()
        return tuple(dict.fromkeys(names + (self.id_column,) * bool(self.shares)))

    def to_json(self) -> dict[str, Any]:
        """Return the options of a manifest; unused filters are left out."""
        score = {"min_language_score": self.min_language_score} if self.min_language_score is not None else {}
        score |= {"dumps": list(self.dumps)} if self.dumps else {}
        score |= {"where": self.where.text} if self.where else {}
        return score | ({"shares": [share.to_json() for share in self.shares]} if self.shares else {})

    def mask(self, table: "pyarrow.Table") -> "pyarrow.ChunkedArray":
        """Return a boolean for each row of a table that has `columns`."""
        import pyarrow
        import pyarrow.compute

        compute: Any = pyarrow.compute  # makes its functions when it is imported
        mask = pyarrow.chunked_array([pyarrow.repeat(True, table.num_rows)])
        if self.min_language_score is not None:
            mask = compute.and_(mask, compute.greater_equal(table[SCORE], self.min_language_score))
        if self.dumps:
            dump = table[DUMP].cast(pyarrow.string())
            mask = compute.and_(mask, compute.is_in(dump, value_set=pyarrow.array(self.dumps, pyarrow.string())))
        if self.where:
            mask = compute.and_(mask, self.where.mask(table))
        if self.shares:
            ids = _readable(as_strings(table[self.id_column]))
            mask = compute.and_(mask, pyarrow.chunked_array([pyarrow.array(map(self.has_id, ids), pyarrow.bool_())]))
        return compute.fill_null(mask, False)

    def has_id(self, record_id: str | None) -> bool:
        """Return whether a record of this id is in all shares. A null is: it is refused later, by its row."""
        return record_id is None or all(share.has(record_id) for share in self.shares)

    def by_statistics(self, group: "pyarrow.parquet.RowGroupMetaData") -> bool | None:
        """Return True if all rows of a row group are kept, False if none, None if its columns have to be read."""
        decided: list[bool | None] = [None] * bool(self.shares)
        bounds = dict(_bounds(group, self.columns))
        for column in (SCORE,) * (self.min_language_score is not None) + (DUMP,) * bool(self.dumps):
            decided.append(self._by_bounds(column, bounds[column]) if column in bounds else None)
        if self.where:
            decided.append(self.where.by_bounds(bounds.get))
        if False in decided:
            return False
        return True if decided and all(decided) else None

    def _by_bounds(self, column: str, bounds: Bounds) -> bool | None:
        if column == SCORE:  # never True: bounds do not include NaN
            return False if bounds.largest < self.min_language_score else None
        if not any(bounds.smallest <= dump <= bounds.largest for dump in self.dumps):
            return False
        alike = bounds.smallest == bounds.largest and not bounds.has_nulls
        return True if alike and bounds.smallest in self.dumps else None


def _bounds(group: "pyarrow.parquet.RowGroupMetaData", columns: Sequence[str]) -> Iterable[tuple[str, Bounds]]:
    """Yield the bounds of columns that a footer has."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        statistics = chunk.statistics if chunk.path_in_schema in columns else None
        if statistics is not None and statistics.has_min_max:
            has_nulls = not statistics.has_null_count or statistics.null_count > 0
            yield chunk.path_in_schema, Bounds(statistics.min, statistics.max, has_nulls)


def _readable(ids: "pyarrow.ChunkedArray") -> Iterable[str | None]:
    """Yield ids; one that is not UTF-8 as None."""
    from .columns import python_values

    return (value if isinstance(value, str) else None for value in python_values(ids))


def parse_filter(value: Mapping[str, Any], where: str) -> RowFilter:
    """Return the filter of a manifest's options. Raises DamagedData when it is not one that this version can apply."""
    score, dumps, condition = value.get("min_language_score"), value.get("dumps", []), value.get("where")
    shares = value.get("shares", [])
    known = set(value) <= {"min_language_score", "dumps", "where", "shares"} and isinstance(score, int | float | None)
    try:
        if not known or type(dumps) is not list or not all(isinstance(dump, str) for dump in dumps):
            raise ValueError("an unknown part")
        if not all(isinstance(salt, str) and 0 <= low <= high <= 1 for salt, low, high in shares):
            raise ValueError("a share")
        parsed = tuple(Share(*share) for share in shares)
        return RowFilter(score, tuple(dumps), None if condition is None else Condition(condition), parsed)
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise DamagedData(f"{where}: options.filter is not one that this version can apply") from error


def for_ids(row_filter: RowFilter, id_column: str) -> RowFilter:
    """Return the filter with the column that has the ids. Raises InvalidRequest for shares without such a column."""
    if row_filter.shares and id_column == ROW_ID:
        raise InvalidRequest("--part and --sample choose rows by the hash of the id: give --id-column")
    return replace(row_filter, id_column=id_column)
