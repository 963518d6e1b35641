"""Several runs read as one, in shares: each batch has rows of all of them.

In: an `ActivationReader` and a weight for each run, and `ShuffleOptions`. Out: `MixedRows` of `batch_size` rows.

Guarantee: every batch has the same number of rows of a run, its share of `batch_size` to within one; the order is a
function of the options and of what is committed. An epoch ends with the run that ends first; no row occurs in it twice.
Cost: that of a `ShuffledReader` for each run, with its share of the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import InvalidRequest
from .reader import ActivationReader
from .row_types import Rows
from .shuffle import ShuffledReader, ShuffleOptions, permutation

if TYPE_CHECKING:
    from jaxtyping import Int, Num


class MixedRows(NamedTuple):
    """`Rows` of several runs; `run`: int64 [n], the number of the run that each row is of."""

    activations: Num[np.ndarray, "n width"]
    tokens: Int[np.ndarray, " n"]
    record: Int[np.ndarray, "n 2"]
    positions: Int[np.ndarray, " n"]
    run: Int[np.ndarray, " n"]


class MixedReader:
    """Iterating gives the rest of the epoch, and then the next one from its beginning.

    Raises InvalidRequest for weights that do not sum to 1, a share of less than one row, or an unknown hook point.
    """

    def __init__(
        self, readers: Sequence[ActivationReader], weights: Sequence[float], hook_point: str, options: ShuffleOptions
    ):
        if len(readers) != len(weights) or min(weights, default=0) <= 0 or abs(sum(weights) - 1) > 1e-6:
            raise InvalidRequest(f"the weights {list(weights)} of {len(readers)} runs must be above 0 and sum to 1")
        self.options, self._sizes = options, _shares(weights, options.batch_size)
        if min(self._sizes) < 1:
            raise InvalidRequest(
                f"a batch of {options.batch_size} rows has no row of at least one run: make batch_size larger"
            )
        self._parts = [
            ShuffledReader(reader, hook_point, replace(options, batch_size=size, drop_last=True,
                                                       buffer=max(options.buffer * size // options.batch_size, size)))
            for reader, size in zip(readers, self._sizes, strict=True)
        ]  # fmt: skip
        self._run = np.repeat(np.arange(len(readers)), self._sizes)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return min(map(len, self._parts))

    def state(self) -> list[dict[str, Any]]:
        """Return the place of each run's reader, as JSON."""
        return [part.state() for part in self._parts]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from a state. Raises InvalidRequest if it is of other runs or options."""
        if len(state) != len(self._parts):
            raise InvalidRequest(f"the state belongs to {len(state)} runs, this reader mixes {len(self._parts)}")
        for part, one in zip(self._parts, state, strict=True):
            part.restore(one)

    def __iter__(self) -> Iterator[MixedRows]:
        first = self._parts[0]
        done = first.position // self._sizes[0]
        batches = [iter(part) for part in self._parts]
        for number in range(done, len(self)):
            yield self._joined([next(batch) for batch in batches], number)
        for batch in batches:
            batch.close()  # type: ignore[attr-defined]  # a generator
        epoch = first.epoch if first.position == 0 else first.epoch + 1  # a reader that ended went on by itself
        for part in self._parts:
            part.epoch, part.position = epoch, 0

    def _joined(self, rows: Sequence[Rows[np.ndarray]], number: int) -> MixedRows:
        kinds = sorted({f"{part.activations.dtype} [{part.activations.shape[1]}]" for part in rows})
        order = permutation(len(self._run), self.options.seed, self._parts[0].epoch, self.options.rank, number)
        try:
            columns = [np.concatenate(column)[order] for column in zip(*rows, strict=True)]
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"rows of these runs cannot be in one array: {', '.join(kinds)}") from error
        activations, tokens, record, positions = columns
        return MixedRows(activations, tokens, record, positions, self._run[order])


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers that sum to the total, each within one of its share."""
    exact = np.array(weights) * total
    sizes = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]:
        sizes[index] += 1
    return sizes.tolist()
