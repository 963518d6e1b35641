"""The values that a reader yields: rows, batches and records, as NumPy arrays.

In: arrays of one batch file or several. Out: `Rows`, `Batch`, `RecordActivations`. Guarantee: arrays that belong
together have the same first axis, the rows in record order. Cost: views of the arrays that were read; a record that
goes over batches is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from ..format.batch_file import BatchRef
from .display import shown_activations, shown_range

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num

Values = TypeVar("Values", np.ndarray, dict[str, np.ndarray])


class Rows(NamedTuple, Generic[Values]):
    """n rows: activations [n, width], tokens int32 [n], record int64 [n, 2] (stream, index), positions int32 [n].

    Positions count from 0 in the record; a mean has that of the last token of its window. Where several hook points
    were asked for, activations is a dict of them.
    """

    activations: Values
    tokens: Int[np.ndarray, " n"]
    record: Int[np.ndarray, "n 2"]
    positions: Int[np.ndarray, " n"]

    def __repr__(self) -> str:
        return f"Rows({len(self.tokens):,} rows, activations: {shown_activations(self.activations)})"


@dataclass(frozen=True, repr=False)
class Batch:
    """One batch: N rows of R records. A record that continues in the next batch is in both.

    `activations`: {hook point: [N, width]}, `tokens`, `positions`: int32 [N], `record_index`: int64 [R],
    `record_offsets`: int64 [R+1] into the N rows, `record_ids`: the R ids, `record_meta`: the R metas or None.
    `mean_over`: int32 [N], of how many tokens each row is the mean; None if rows are tokens.
    """

    ref: BatchRef
    activations: dict[str, Num[np.ndarray, "N _"]]
    tokens: Int[np.ndarray, " N"]
    positions: Int[np.ndarray, " N"]
    record_index: Int[np.ndarray, " R"]
    record_offsets: Int[np.ndarray, " R+1"]
    record_ids: list[str]
    record_meta: list[Any]
    mean_over: Int[np.ndarray, " N"] | None = None

    @property
    def record(self) -> Int[np.ndarray, "N 2"]:
        """int64 [N, 2]: stream and record index of each token."""
        index = np.repeat(self.record_index, np.diff(self.record_offsets))
        return np.stack([np.full(len(index), self.ref.stream, np.int64), index], axis=1)

    def __repr__(self) -> str:
        where, size = f"batch {self.ref.batch} of stream {self.ref.stream}", f"{len(self.record_ids):,} records"
        return (
            f"Batch({where}, {len(self.tokens):,} rows of {size}, activations: {shown_activations(self.activations)})"
        )


@dataclass(frozen=True, repr=False)
class RecordActivations:
    """The n stored rows of one whole record.

    `activations`: {hook point: [n, width]}, `tokens` and `positions`: int32 [n]. `mean_over`: int32 [n], of how many
    tokens each row is the mean; None if rows are tokens. `meta`: such as the answer key of a question, or None.
    """

    stream: int
    index: int
    id: str
    activations: dict[str, Num[np.ndarray, "n _"]]
    tokens: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]
    mean_over: Int[np.ndarray, " n"] | None = None
    meta: Any = None

    def mean(self, hook_point: str) -> Float[np.ndarray, " width"]:
        """Return the mean over the selected tokens, float64 [width]. Raises ValueError for a record without rows."""
        if not len(self.tokens):
            raise ValueError(f"record {self.id}: nothing of it is stored")
        return np.average(self.activations[hook_point].astype(np.float64), axis=0, weights=self.mean_over)

    def __repr__(self) -> str:
        where = f"record {self.index} of stream {self.stream}, positions {shown_range(self.positions)}"
        meta = f", meta: {', '.join(map(str, self.meta))}" if isinstance(self.meta, dict) else ""
        return f"RecordActivations({self.id!r}, {where}, activations: {shown_activations(self.activations)}{meta})"


def part_of(batch: Batch, at: int, record_id: str) -> RecordActivations:
    """Return the rows that a batch has of its record number `at`."""
    here = slice(int(batch.record_offsets[at]), int(batch.record_offsets[at + 1]))
    activations = {name: values[here] for name, values in batch.activations.items()}
    index = int(batch.record_index[at])
    return RecordActivations(
        batch.ref.stream,
        index,
        record_id,
        activations,
        batch.tokens[here],
        batch.positions[here],
        None if batch.mean_over is None else batch.mean_over[here],
        batch.record_meta[at],
    )


def concatenate(parts: list[RecordActivations]) -> RecordActivations:
    """Return the parts of one record, from consecutive batches, as one."""
    if len(parts) == 1:
        return parts[0]
    activations = {name: np.concatenate([part.activations[name] for part in parts]) for name in parts[0].activations}
    names = ("tokens", "positions") if parts[0].mean_over is None else ("tokens", "positions", "mean_over")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], activations=activations, **joined)
