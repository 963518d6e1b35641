"""Which pairs of a query and a key the attention kernel for TPUs multiplies. No jax.

In: the length of a row, and the window. Out: blocks, what is cut at their edges, and how many pairs that is. Guarantee:
every pair that causality and the window leave is in exactly one part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LANES, _MAX_BLOCK = 128, 512
Parts = Sequence[tuple[slice, slice]]  # queries and keys inside their blocks


@dataclass(frozen=True)
class Tiling:
    """`blocks` blocks of `block` queries, and as many of keys, of which a query sees `window` tokens, None for all."""

    block: int
    blocks: int
    window: int | None

    @classmethod
    def of(cls, length: int, window: int | None) -> "Tiling":
        block = block_of(length)
        return cls(block, -(-length // block), window)

    @property
    def depth(self) -> int:
        """Blocks of keys that a block of queries sees at most, its own included."""
        if self.window is None:
            return self.blocks
        return min(self.blocks, 1 + (self.window + self.block - 2) // self.block)

    @property
    def edges(self) -> dict[int, int | None]:
        """How far before the queries, in blocks, keys are that only some of them see; with the window, if it cuts."""
        if self.window is None:
            return {0: None}
        return {0: None} | dict.fromkeys(range(self.window // self.block, self.depth), self.window)


def edge_cases(tilings: list[Tiling]) -> dict[tuple[int, int | None], list[int]]:
    """Edges with the window that cuts them, and the numbers of the tilings that have them."""
    cases: dict[tuple[int, int | None], list[int]] = {}
    for number, tiling in enumerate(tilings):
        for case in tiling.edges.items():
            cases.setdefault(case, []).append(number)
    return cases


def edge_parts(block: int, edge: int, window: int | None) -> Parts:
    """What is multiplied of a block of keys `edge` blocks before the queries: for each 128 of these, what they see."""
    found = []
    for start in range(0, block, LANES):
        end = min(start + LANES + edge * block, block)
        begin = 0 if window is None else max(0, start + edge * block - window + 1)
        if begin < end:
            found.append((slice(start, start + LANES), slice(begin // LANES * LANES, end)))
    return found


def block_of(length: int) -> int:
    """Tokens in a block of queries and keys: the largest that adds no padding beyond whole lanes."""
    whole = -(-length // LANES) * LANES
    return max(block for block in range(LANES, _MAX_BLOCK + 1, LANES) if whole % block == 0)


def multiplied_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that the kernel multiplies for one head of a row of one document."""
    tiling = Tiling.of(length, window)
    pairs = 0
    for back in range(tiling.depth):
        size = tiling.block**2
        if back in tiling.edges:
            parts = edge_parts(tiling.block, back, tiling.edges[back])
            size = sum((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in parts)
        pairs += (tiling.blocks - back) * size
    return pairs
