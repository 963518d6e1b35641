"""The row filter: which rows of a Parquet file are records, by FineWeb's small columns.

In: `language_score` and `dump` of rows, or their statistics in a footer. Out: the rows that are kept. Guarantee: only a
row's own values decide, and equally when streams are made and when they are read; null and NaN are not kept. Cost: one
pass over the columns named by `columns`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import DamagedData

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SCORE, DUMP = "language_score", "dump"


@dataclass(frozen=True)
class RowFilter:
    """Keeps rows whose language score is at least `min_language_score` and whose dump is one of `dumps`."""

    min_language_score: float | None = None
    dumps: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the filter reads; none when every row is kept."""
        return (SCORE,) * (self.min_language_score is not None) + (DUMP,) * bool(self.dumps)

    def to_json(self) -> dict[str, Any]:
        """Return the options of a manifest; unused filters are left out."""
        score = {"min_language_score": self.min_language_score} if self.min_language_score is not None else {}
        return score | ({"dumps": list(self.dumps)} if self.dumps else {})

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
        return compute.fill_null(mask, False)

    def by_statistics(self, group: "pyarrow.parquet.RowGroupMetaData") -> bool | None:
        """Return True if all rows of a row group are kept, False if none, None if its columns have to be read."""
        decided = []
        for number in range(group.num_columns):
            chunk = group.column(number)
            if chunk.path_in_schema in self.columns:
                statistics = chunk.statistics
                known = statistics is not None and statistics.has_min_max
                decided.append(self._by_bounds(chunk.path_in_schema, statistics) if known else None)
        if False in decided:
            return False
        return True if decided and all(decided) else None

    def _by_bounds(self, column: str, statistics: "pyarrow.parquet.Statistics") -> bool | None:
        if column == SCORE:  # never True: bounds do not include NaN
            return False if statistics.max < self.min_language_score else None
        if not any(statistics.min <= dump <= statistics.max for dump in self.dumps):
            return False
        alike = statistics.min == statistics.max and statistics.has_null_count and statistics.null_count == 0
        return True if alike and statistics.min in self.dumps else None


def parse_filter(value: Mapping[str, Any], where: str) -> RowFilter:
    """Return the filter of a manifest's options. Raises DamagedData when it is not one that this version can apply."""
    score, dumps = value.get("min_language_score"), value.get("dumps", [])
    known = set(value) <= {"min_language_score", "dumps"} and isinstance(score, int | float | None)
    if not known or type(dumps) is not list or not all(isinstance(dump, str) for dump in dumps):
        raise DamagedData(f"{where}: options.filter is not one that this version can apply")
    return RowFilter(score, tuple(dumps))
