"""The statistics of all rows of a run at one hook point, from the statistics of each batch file.

In: opened batch files, `StoredBatch`. Out: `Statistics`. Guarantee: sums, counts and maxima of batch files add up to
those of all rows, whatever their order and number of workers; no value is a mean of means.

Cost: the first bytes of each batch file, which hold its statistics; and one row, the one with the maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import DamagedData
from ..format.batch_file import StoredBatch
from ..format.dtypes import LOSS_HOOK
from ..format.statistics import COUNTS, MAX, MAX_AT, NORM_BINS, SUMS, norm_sketch
from .display import shown_array

if TYPE_CHECKING:
    from ddsketch import DDSketch
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Largest:
    """The coordinate of the largest |x| of all rows, of several the first: whose it is, where, and x as `value`.

    `record` counts in the `stream`; `position`, `token` and `norm` are those of its row.
    """

    stream: int
    record: int
    record_id: str
    position: int
    token: int
    coordinate: int
    value: float
    norm: float


@dataclass(frozen=True, repr=False)
class Statistics:
    """Over `count` rows: `mean` and `variance` float64 [width] of each coordinate, `norm` the root mean square of ‖x‖.

    Of `hook_loss` the rows count that have a value. `norm_counts` are the counts of ‖x‖ in the bins of a DDSketch.
    """

    count: int
    mean: Float[np.ndarray, " width"]
    variance: Float[np.ndarray, " width"]
    norm: float
    norm_counts: Int[np.ndarray, " bins"]
    largest: Largest

    @property
    def std(self) -> Float[np.ndarray, " width"]:
        """The standard deviation of each coordinate, float64 [width]."""
        return np.sqrt(self.variance)

    @cached_property
    def norms(self) -> DDSketch:
        """The norms of all rows but those with NaN: `norms.get_quantile_value(0.5)` is their median, within 1%."""
        return norm_sketch(self.norm_counts)

    def __repr__(self) -> str:
        vectors = f"mean and variance {shown_array(self.mean)}"
        return f"Statistics({self.count:,} rows, {vectors}, norm {self.norm:.4g}, largest: {self.largest})"


class Tally:
    """The statistics of one hook point, one batch file after the other."""

    def __init__(self, name: str):
        self._name, self._count = name, 0
        self._sums = [np.zeros(1), np.zeros(1)]
        self._norm_counts = np.zeros(NORM_BINS, np.int64)
        self._most, self._at = -1.0, np.zeros(2, np.int64)
        self._found_in: StoredBatch | None = None

    def add(self, stored: StoredBatch) -> None:
        """Add a batch file. Raises DamagedData if it lacks statistics."""
        name = self._name
        with np.errstate(invalid="ignore"):  # a sum is infinite in one object and -infinite in another
            self._sums = [total + stored.array(name + suffix) for total, suffix in zip(self._sums, SUMS, strict=True)]
        counts, most, at = (stored.array(name + suffix) for suffix in (COUNTS, MAX, MAX_AT))
        if (len(counts), len(most), len(at)) != (NORM_BINS, 1, 2):
            raise DamagedData(f"{stored.ref.name}: the statistics of {name} have other sizes than they should")
        self._count += int(counts.sum()) if name == LOSS_HOOK else stored.ref.num_rows
        self._norm_counts += counts
        if self._found_in is None or most[0] > self._most:
            self._most, self._at, self._found_in = float(most[0]), at, stored

    def result(self) -> Statistics:
        """Return the sums over at least one batch file. Raises DamagedData for a maximum outside the rows."""
        total, squares = self._sums
        # A coordinate that was infinite has the variance NaN, and a loss without a value the mean NaN.
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            mean = total / self._count
            variance = np.maximum(squares / self._count - mean**2, 0.0)
            norm = float(np.sqrt(squares.sum() / self._count))
        return Statistics(self._count, mean, variance, norm, self._norm_counts, self._largest())

    def _largest(self) -> Largest:
        stored, (row, column) = self._found_in, self._at.tolist()
        if stored is None:
            raise ValueError("statistics of no batch file")
        if not (0 <= row < stored.ref.num_rows and 0 <= column < len(self._sums[0])):
            raise DamagedData(f"{stored.ref.name}: {self._name}{MAX_AT} is [{row}, {column}], outside its rows")
        here = (row, row + 1)
        ((stream, record),) = stored.records_of(*here).tolist()
        at = int(np.searchsorted(stored.array("record_offsets"), row, side="right")) - 1
        values = stored.activations(self._name, *here)[0].astype(np.float64)
        position, token = (int(stored.array(name, *here)[0]) for name in ("positions", "tokens"))
        found = (stream, record, stored.record_ids[at], position, token, column)
        return Largest(*found, float(values[column]), float(np.linalg.norm(values)))


def statistics_of(stored_batches: Iterable[StoredBatch], names: Sequence[str]) -> dict[str, Statistics]:
    """Return {hook point: Statistics} of all rows; empty if there are none."""
    tallies = {name: Tally(name) for name in names}
    count = 0
    for stored in stored_batches:
        count += stored.ref.num_rows
        for tally in tallies.values():
            tally.add(stored)
    return {name: tally.result() for name, tally in tallies.items()} if count else {}


def names_of_statistics(names: Sequence[str]) -> list[str]:
    """Return the arrays of a batch file that hold the statistics of these hook points."""
    return [name + suffix for name in names for suffix in (*SUMS, COUNTS, MAX_AT, MAX)]
