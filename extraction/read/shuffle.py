"""Reading a run in a random order that is global, exact, resumable and shared out over processes.

In: an `ActivationReader` and `ShuffleOptions`. Out: `Rows` of `batch_size` tokens.

The order of one epoch is a pure function of the seed, the epoch, the options and what is committed: the batch files
are permuted, the tokens of all of them in that order are cut into equal spans, one for each rank, a span into blocks of
`buffer` tokens, and the rows of a block are permuted. So the state is one number, and a block is the only thing that
has to be read again after a restart.

Guarantee: over all ranks, an epoch holds every committed token exactly once (with `drop_last`, less than a batch of
each rank is left out). Ranks differ by at most one token. How random: two tokens of one object are in one block unless
the object was cut, so `buffer` should hold many objects' worth of tokens.

Cost: two blocks in memory, one in use and one being read; each object is read about once, in runs of rows, four at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, cast, overload

import numpy as np

from ..core.errors import InvalidRequest
from ..core.threads import prefetch
from ..format.batch_file import BatchRef, StoredBatch
from .reader import ActivationReader
from .row_types import Rows, Values
from .select import EVERYTHING

if TYPE_CHECKING:
    from jaxtyping import Int

_READERS = 4  # objects that are read at once
State = dict[str, Any]  # JSON


@dataclass(frozen=True)
class ShuffleOptions:
    """`batch_size` and `buffer` in tokens; this process is `rank` of `world_size`."""

    batch_size: int = 4096
    buffer: int = 1 << 18
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InvalidRequest(f"rank {self.rank} of {self.world_size}: ranks are 0 to {self.world_size - 1}")
        if not 0 < self.batch_size <= self.buffer:
            raise InvalidRequest(f"a buffer of {self.buffer} tokens does not hold a batch of {self.batch_size}")

    @property
    def block(self) -> int:
        """Tokens in a block: whole batches."""
        return self.buffer // self.batch_size * self.batch_size


DEFAULTS = ShuffleOptions()


class _Piece(NamedTuple):
    """Rows [first, last) of one object, counted among those that are read of it."""

    ref: BatchRef
    first: int
    last: int


_Block = Rows[dict[str, np.ndarray]]


class ShuffledReader(Generic[Values]):
    """Iterating gives the rest of the epoch, and then the next one from its beginning.

    For one hook point by its name, `activations` of the rows is its array; for a sequence of them a dict of arrays.
    """

    @overload
    def __init__(
        self: ShuffledReader[np.ndarray],
        reader: ActivationReader,
        hook_points: str,
        options: ShuffleOptions = DEFAULTS,
    ): ...

    @overload
    def __init__(
        self: ShuffledReader[dict[str, np.ndarray]],
        reader: ActivationReader,
        hook_points: Sequence[str],
        options: ShuffleOptions = DEFAULTS,
    ): ...

    def __init__(self, reader: ActivationReader, hook_points: str | Sequence[str], options: ShuffleOptions = DEFAULTS):
        self.options, self.epoch, self.position = options, 0, 0
        self._reader, self._single = reader, isinstance(hook_points, str)
        self._names = reader.checked(hook_points)
        self._counted = [(ref, count) for ref, count in reader.row_counts() if count]
        total = sum(count for _, count in self._counted)
        if not total and reader.select != EVERYTHING:
            raise InvalidRequest(f"{reader.storage} holds no rows of this selection")
        self._span = range(total * options.rank // options.world_size, total * (options.rank + 1) // options.world_size)
        self._of: dict[str, Any] = {
            "fingerprint": reader.run.fingerprint,
            "num_rows": total,
            "options": asdict(options),
        }
        if reader.select != EVERYTHING:
            self._of["select"] = [list(reader.select.streams or ()), reader.select.where, reader.select.positions]
        smallest = total // options.world_size
        self._num_rows = smallest // options.batch_size * options.batch_size if options.drop_last else len(self._span)

    def __len__(self) -> int:
        """Return the number of batches in an epoch; with `drop_last` the same on every rank."""
        return -(-self._num_rows // self.options.batch_size)

    def state(self) -> State:
        """Return the position as JSON: after the batch that was given last."""
        return {"epoch": self.epoch, "position": self.position, "of": self._of}

    def restore(self, state: State) -> None:
        """Go on from a state. Raises InvalidRequest if it is of other options, another run or other commits."""
        if state.get("of") != self._of:
            raise InvalidRequest(
                f"the state belongs to {state.get('of')}, this reader reads {self._of}: make the reader with the same "
                "run, commits and options"
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Rows[Values]]:
        order, block = self._order(), self.options.block
        begin = self.position // block * block
        firsts = range(begin, self._num_rows, block) if self.position < self._num_rows else ()
        with ThreadPoolExecutor(1, "shuffle") as background:
            blocks = prefetch(firsts, lambda first: self._read_block(order, first), 1, background)
            for first, rows in zip(firsts, blocks, strict=True):
                yield from self._batches(rows, first)
        self.epoch, self.position = self.epoch + 1, 0

    def _order(self) -> list[_Piece]:
        """Return this rank's span of the epoch as pieces of objects."""
        pieces, at = [], 0
        for number in permutation(len(self._counted), self.options.seed, self.epoch):
            ref, count = self._counted[number]
            first, last = max(self._span.start - at, 0), min(self._span.stop - at, count)
            if first < last:
                pieces.append(_Piece(ref, first, last))
            at += count
        return pieces

    def _batches(self, block: _Block, first: int) -> Iterator[Rows[Values]]:
        options = self.options
        size = min(options.block, self._num_rows - first)
        order = permutation(len(block.tokens), options.seed, self.epoch, options.rank, first)[:size]
        for begin in range(self.position - first, size, options.batch_size):
            rows = order[begin : begin + options.batch_size]
            chosen = {name: values[rows] for name, values in block.activations.items()}
            activations = chosen[self._names[0]] if self._single else chosen
            self.position = first + begin + len(rows)
            yield Rows(cast(Values, activations), block.tokens[rows], block.record[rows], block.positions[rows])

    def _read_block(self, order: list[_Piece], first: int) -> _Block:
        """Return the rows [first, first + block) of the span, in the order of the pieces."""
        last, at, pieces = min(first + self.options.block, len(self._span)), 0, []
        for piece in order:
            begin, end = max(first - at, 0), min(last - at, piece.last - piece.first)
            if begin < end:
                pieces.append(_Piece(piece.ref, piece.first + begin, piece.first + end))
            at += piece.last - piece.first
        with ThreadPoolExecutor(_READERS, "shuffle") as readers:
            parts = list(readers.map(self._read_piece, pieces))
        activations = {name: np.concatenate([part.activations[name] for part in parts]) for name in self._names}
        return Rows(activations, *(np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]))

    def _read_piece(self, piece: _Piece) -> _Block:
        stored, rows, chosen = StoredBatch(self._reader.storage, piece.ref), (piece.first, piece.last), slice(None)
        if not self._reader.select.keeps_all_rows:
            kept = self._reader.select.kept(stored).rows[piece.first : piece.last]
            rows, chosen = (int(kept[0]), int(kept[-1]) + 1), kept - kept[0]
        activations = {name: stored.activations(name, *rows)[chosen] for name in self._names}
        tokens, positions = (stored.array(name, *rows)[chosen] for name in ("tokens", "positions"))
        return Rows(activations, tokens, stored.records_of(*rows)[chosen], positions)


def permutation(size: int, *key: int) -> Int[np.ndarray, " size"]:
    """Return a permutation of range(size), the same in every version of NumPy: bit streams are, shuffles are not."""
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")
