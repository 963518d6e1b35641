"""Augmented ARC-AGI tasks: the symmetries of the square, colours permuted, examples in another order.

In: a task and an `Augmentation`. Out: the task as it is shown. Guarantee: an augmentation is a function of the seed,
the task's id and its number alone, and each grid follows from the one shown. Cost: one pass over the cells.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .grids import Grid

COLORS = 10


def _rotated(grid: Grid) -> Grid:
    return [list(row) for row in zip(*grid[::-1], strict=True)]


def _mirrored(grid: Grid) -> Grid:
    return [row[::-1] for row in grid]


def _turned(times: int, mirror: bool) -> Callable[[Grid], Grid]:
    def apply(grid: Grid) -> Grid:
        for _ in range(times):
            grid = _rotated(grid)
        return _mirrored(grid) if mirror else grid

    return apply


# Quarter turns clockwise, then a mirror image left to right.
SYMMETRIES = {
    "identity": _turned(0, False), "rotate_90": _turned(1, False), "rotate_180": _turned(2, False),
    "rotate_270": _turned(3, False), "mirror": _turned(0, True), "rotate_90_mirror": _turned(1, True),
    "rotate_180_mirror": _turned(2, True), "rotate_270_mirror": _turned(3, True),
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a task: `colors[c]` is the new colour of colour c, `order[i]` the old number of example i."""

    symmetry: str
    colors: tuple[int, ...]
    order: tuple[int, ...]

    def apply(self, grid: Grid) -> Grid:
        """Return the grid as it is shown."""
        return [[self.colors[cell] for cell in row] for row in SYMMETRIES[self.symmetry](grid)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of a record's meta."""
        return {"symmetry": self.symmetry, "colors": list(self.colors), "order": list(self.order)}


def unchanged(num_examples: int) -> Augmentation:
    """Return the augmentation that changes nothing."""
    return Augmentation("identity", tuple(range(COLORS)), tuple(range(num_examples)))


def augmentation(task: str, number: int, num_examples: int, seed: int, permute_background: bool) -> Augmentation:
    """Return augmentation `number` of a task: the symmetries in turn, each with its own colours and order."""
    fixed = 0 if permute_background else 1
    colors = _shuffled(list(range(fixed, COLORS)), f"{seed}/{task}/{number}/colors")
    order = _shuffled(list(range(num_examples)), f"{seed}/{task}/{number}/order")
    return Augmentation(list(SYMMETRIES)[number % len(SYMMETRIES)], tuple([*range(fixed), *colors]), tuple(order))


def _shuffled(items: list[int], key: str) -> list[int]:
    """Return the items in an order that is a function of the key, in every version of Python."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}/{item}".encode()).digest())
