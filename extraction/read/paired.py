"""Two runs over the same tokens, read in step: the rows of two models for crosscoders and comparisons.

In: two readers whose runs are over the same streams, with the same token selection and tokenizers that agree. Out:
`PairedRows`. Guarantee: each pair is of one token of one record, compared as it is read; runs that do not match raise
InvalidRequest and yield nothing of what differs. Cost: both runs are read once, a batch of each at a time; batches may
be cut at other places in the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.errors import InvalidRequest
from .reader import ActivationReader
from .row_types import Rows

if TYPE_CHECKING:
    from jaxtyping import Int, Num

# Fields of the run config that decide which tokens have a row.
_SAME = ("manifest_digest", "bos", "long_documents", "max_records", "positions", "drop_special")


class PairedRows(NamedTuple):
    """n rows of both runs: activations [n, width] of each; tokens, record and positions as in `Rows`."""

    first: Num[np.ndarray, "n _"]
    second: Num[np.ndarray, "n _"]
    tokens: Int[np.ndarray, " n"]
    record: Int[np.ndarray, "n 2"]
    positions: Int[np.ndarray, " n"]


class PairedReader:
    """Two runs over the same tokens. Raises InvalidRequest if a flag that selects tokens differs."""

    def __init__(self, first: ActivationReader, second: ActivationReader):
        self.first, self.second = first, second
        ours, theirs = (
            replace(reader.run.config, manifest_digest=reader.run.manifest_digests[-1]) for reader in (first, second)
        )
        differing = [name for name in _SAME if getattr(ours, name) != getattr(theirs, name)]
        if ours.long_documents == "truncate" and ours.seq_len != theirs.seq_len:
            differing.append("seq_len")
        if differing:
            values = ", ".join(f"{name} ({getattr(ours, name)} and {getattr(theirs, name)})" for name in differing)
            raise InvalidRequest(f"{self._both} are not over the same tokens: they differ in {values}")

    @property
    def _both(self) -> str:
        return f"{self.first.storage.location} and {self.second.storage.location}"

    def rows(self, first: str, second: str, streams: Iterable[int] | None = None) -> Iterator[PairedRows]:
        """Yield the rows of a hook point of each run, stream by stream.

        Args:
            first: the hook point of the first run.
            second: the hook point of the second run.
            streams: their numbers; by default all that either run has begun, of those that both readers select.

        Raises InvalidRequest if the tokens differ, or one run has more rows than the other.
        """
        for stream in self._streams() if streams is None else streams:
            yield from self._in_step(stream, self.first.rows(first, [stream]), self.second.rows(second, [stream]))

    def _streams(self) -> list[int]:
        readers = (self.first, self.second)
        begun = sorted({stream for reader in readers for stream in reader.streams})
        selected = [reader.select.streams for reader in readers if reader.select.streams is not None]
        return [stream for stream in begun if all(stream in streams for streams in selected)]

    def _in_step(
        self, stream: int, ours: Iterator[Rows[np.ndarray]], theirs: Iterator[Rows[np.ndarray]]
    ) -> Iterator[PairedRows]:
        while True:
            one, other = next(ours, None), next(theirs, None)
            if one is None and other is None:
                return
            if one is None or other is None:
                raise InvalidRequest(f"{self._both}: one has more rows of stream {stream} than the other; finish both")
            n = min(len(one.tokens), len(other.tokens))
            self._check(stream, _part(one, slice(n)), _part(other, slice(n)))
            yield PairedRows(
                one.activations[:n], other.activations[:n], one.tokens[:n], one.record[:n], one.positions[:n]
            )
            rest = slice(n, None)
            ours, theirs = (
                chain([_part(rows, rest)], source) if len(rows.tokens) > n else source
                for rows, source in ((one, ours), (other, theirs))
            )

    def _check(self, stream: int, ours: Rows[np.ndarray], theirs: Rows[np.ndarray]) -> None:
        same = (ours.record == theirs.record).all(axis=1) & (ours.positions == theirs.positions)
        same &= ours.tokens == theirs.tokens
        if not same.all():
            at = int(np.argmin(same))
            token, other = ours.tokens[at], theirs.tokens[at]
            where = f"record {ours.record[at, 1]} of stream {stream}, position {ours.positions[at]}"
            raise InvalidRequest(
                f"{self._both} differ at {where}: token {token} and {other}; the tokenizers must agree"
            )


def _part(rows: Rows[np.ndarray], here: slice) -> Rows[np.ndarray]:
    return Rows(rows.activations[here], rows.tokens[here], rows.record[here], rows.positions[here])
