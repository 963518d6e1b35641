"""A selection of a run's rows: by stream, by the meta of their record, by their position in it.

In: `Select`, the arrays and the header of a batch file. Out: which rows and records are read. Guarantee: readers,
shuffles, torch, `datasets` and exports read the same rows for the same selection. Cost: the header and 12 bytes for
each row of every batch file, before its activations; of those, a selection of records reads only what it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..batching.token_selection import Selection
from ..core.errors import DamagedData, InvalidRequest
from ..format.batch_file import StoredBatch
from ..streams.where_conditions import Condition

if TYPE_CHECKING:
    from jaxtyping import Int


class Kept(NamedTuple):
    """`rows`: int64 [n], the rows that are read, rising; `records`: int64 [m], the records; `counts`: int64 [m]."""

    rows: Int[np.ndarray, " n"]
    records: Int[np.ndarray, " m"]
    counts: Int[np.ndarray, " m"]


class _Meta(dict[str, Any]):
    """A record's meta, or an object in it, in which any other key is null."""

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        return _Meta(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Select:
    """The rows to read; all by default. Raises InvalidRequest for a selection that is none.

    Attributes:
        streams: their numbers.
        where: a condition on keys of the records' meta, as `label == 1 and split == 'train'`.
        positions: which tokens of a record: `every:K`, a list or a slice, counted from the record's beginning.
    """

    streams: tuple[int, ...] | None = None
    where: str | None = None
    positions: str = "all"
    _condition: Condition | None = field(init=False, repr=False, compare=False)
    _selection: Selection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        selection = Selection.parse(self.positions)
        if selection.kind not in ("all", "every", "list", "slice") or selection.reach:
            raise InvalidRequest(f"positions {self.positions}: give positions that count from a record's beginning")
        object.__setattr__(self, "_selection", selection)
        object.__setattr__(self, "_condition", None if self.where is None else Condition(self.where))

    @property
    def keeps_all_rows(self) -> bool:
        """Whether every row of the streams is read."""
        return self._condition is None and self._selection.is_everything

    def kept(self, stored: StoredBatch) -> Kept:
        """Return what is read of a batch file. Raises InvalidRequest if its condition compares other types."""
        offsets = stored.array("record_offsets")
        records = np.arange(len(offsets) - 1)
        if self._condition is not None:
            metas = [_Meta(meta if isinstance(meta, dict) else {}) for meta in stored.record_meta]
            try:
                records = np.flatnonzero(np.fromiter(map(self._condition.holds, metas), bool, len(records)))
            except DamagedData as error:
                raise InvalidRequest(str(error)) from error
        sizes = np.diff(offsets)[records]
        rows = np.arange(sizes.sum()) + np.repeat(offsets[:-1][records] - (np.cumsum(sizes) - sizes), sizes)
        of_record = np.repeat(np.arange(len(records)), sizes)
        if not self._selection.is_everything:
            positions = stored.array("positions")[rows]
            named = np.isin(positions, self._selection.named(0, int(positions.max(initial=-1)) + 1, None))
            rows, of_record = rows[named], of_record[named]
        return Kept(rows, records, np.bincount(of_record, minlength=len(records)))


EVERYTHING = Select()
