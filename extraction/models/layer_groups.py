"""The parts of a model that run, and the groups of its layers.

In: a configuration and a capture plan. Out: the `Group`s of layers, each run as one scan, and the `ModelPart`s: the
embedding, the blocks at each place of each group, the final norm, the head. Guarantee: the groups cover the layers in
order; a part has its module, its weight table and the layers that it is filled from. Cost: none.

A group repeats a unit of up to `MAX_UNIT` kinds of layers, such as three windowed layers and a full one. So a program
has a few blocks, independent of the depth of the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from .block import block_of, ends_of
from .capture_plan import CapturePlan
from .config import LayerKind, ModelConfig
from .families import family_of
from .head import Head
from .weight_tables import Entries

MAX_UNIT = 12


class Group(NamedTuple):
    """Layers that run as one scan: the kinds of `unit`, `repeats` times, from layer `first` on."""

    first: int
    unit: tuple[LayerKind, ...]
    repeats: int

    def layers(self, place: int) -> range:
        """Return the layers at a place of the unit."""
        return range(self.first + place, self.first + len(self.unit) * self.repeats, len(self.unit))


class ModelPart(NamedTuple):
    """A module with its path in the tree of parameters and its weight table.

    `layers`: of a block, the layers that are stacked on its leading axis; None outside the blocks.
    """

    path: tuple[str, ...]
    make: Callable[[], nnx.Module]
    entries: Entries
    layers: range | None = None


def group_layers(kinds: Sequence[LayerKind]) -> list[Group]:
    """Return the groups of layers of these kinds: at each layer the unit whose repetition covers the most."""
    groups, at = list[Group](), 0
    while at < len(kinds):
        repeats = {size: _repeats(kinds, at, size) for size in range(1, MAX_UNIT + 1)}
        size = max(repeats, key=lambda size: (size * repeats[size] if repeats[size] > 1 or size == 1 else 0, -size))
        groups.append(Group(at, tuple(kinds[at : at + size]), repeats[size]))
        at += size * repeats[size]
    return groups


def _repeats(kinds: Sequence[LayerKind], at: int, size: int) -> int:
    """Return how often the `size` kinds from `at` on follow each other."""
    count = 1
    while kinds[at + count * size : at + (count + 1) * size] == kinds[at : at + size]:
        count += 1
    return count if at + count * size <= len(kinds) else 0


def place_name(group: int, place: int) -> str:
    """Return the name of a place of a group in the tree of parameters."""
    return f"{group}.{place}"


def parts_of(config: ModelConfig, plan: CapturePlan, dtype: jnp.dtype) -> list[ModelPart]:
    """Return the parts of a model that run by this plan."""
    family = family_of(config.family)
    running = replace(config, layers=config.layers[: plan.num_layers])
    table, ends = family.weight_table(running), ends_of(running, dtype, family.modules)
    parts = [ModelPart(("embedding",), ends["embedding"], table.embedding)]
    for number, group in enumerate(group_layers(running.layers)):
        for place, kind in enumerate(group.unit):
            make = partial(block_of, config, kind, dtype, family.modules)
            path = ("blocks", place_name(number, place))
            parts.append(ModelPart(path, make, table.block(kind), group.layers(place)))
    if plan.final_norm:
        parts.append(ModelPart(("final_norm",), ends["final_norm"], table.final_norm))
    if plan.loss:
        parts.append(ModelPart(("head",), partial(Head, config, dtype), table.head))
    return parts
