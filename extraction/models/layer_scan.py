"""The layers of a step: groups of stacked blocks, scanned in order, and the captured tensors.

In: x [B, T, D] after the embedding and the stacked parameters of each place of each group. Out: x after the last layer,
and for each suffix and width one buffer with a place for each captured layer. Guarantee: what is captured is what the
layer computed; tensors that no hook point needs are not kept. A layer writes to the place of the first captured layer
at or above it. The captured layer itself writes last, so the buffer ends right without a condition in the loop and
without memory for other layers.

Cost: one write of [B, T, width] for each layer and buffer, where a layer at the same place of its group is captured.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..format.dtypes import stored_dtype
from .capture_plan import Buffer, CapturePlan
from .config import LayerKind
from .layer_groups import Group, place_name
from .scan_parameters import of_layer, to_slice
from .sharding import Layout

Buffers = dict[Buffer, jax.Array]
RunBlock = Callable[[LayerKind, dict[str, Any], jax.Array, jax.Array, Callable[[str, jax.Array], None]], jax.Array]


class Capturing(NamedTuple):
    """The tensors that a scan keeps, their layout, and their dtype, but for integers."""

    plan: CapturePlan
    dtype: jnp.dtype
    layout: Layout


def run_layers(
    groups: list[Group], stacked: Mapping[str, Any], run_block: RunBlock, x: jax.Array, capturing: Capturing
) -> tuple[jax.Array, Buffers]:
    """Return x after the last layer, and the captured tensors, [captured layers, B, T, width].

    Args:
        groups: the layers that run.
        stacked: the parameters of each place of each group, with a leading layer axis.
        run_block: runs one block: its kind, its parameters, its number, x and a function that receives hook points
            -> x.
        x: [B, T, D].
        capturing: what to keep.
    """
    plan, dtype, layout = capturing
    buffers: Buffers = {}
    for buffer, layers in plan.layers_of.items():
        shape = (len(layers), *x.shape[:2], buffer.width)
        buffers[buffer] = layout.captured(jnp.zeros(shape, stored_dtype(buffer.suffix, dtype)))
    for number, group in enumerate(groups):
        own = [stacked[place_name(number, place)] for place in range(len(group.unit))]
        x, buffers = _run_group(group, own, run_block, (x, buffers), capturing)
    return x, buffers


def _run_group(
    group: Group, stacked: list[Any], run_block: RunBlock, carry: tuple[jax.Array, Buffers], capturing: Capturing
) -> tuple[jax.Array, Buffers]:
    plan, _, layout = capturing
    written = [_written(plan, group.layers(place)) for place in range(len(group.unit))]
    places = [{buffer: plan.places(buffer, group.layers(at)) for buffer in written[at]} for at in range(len(written))]

    def body(carry: tuple[jax.Array, Buffers], scanned: tuple) -> tuple[tuple[jax.Array, Buffers], None]:
        x, buffers = carry
        for at, (sliced, to, layer) in enumerate(zip(*scanned, strict=True)):
            taps: dict[str, jax.Array] = {}
            weights = of_layer(sliced, stacked[at])
            x = layout.rows(run_block(group.unit[at], weights, layer, layout.rows(x), taps.__setitem__))
            for buffer in to:
                value = layout.tapped(buffer.suffix, taps[buffer.suffix]).astype(buffers[buffer].dtype)
                write = jax.lax.dynamic_update_index_in_dim if written[at][buffer] else _write_inside
                buffers = buffers | {buffer: layout.captured(write(buffers[buffer], value, to[buffer], 0))}
        return (x, buffers), None

    numbers = [np.array(group.layers(place), np.int32) for place in range(len(group.unit))]
    xs = ([to_slice(tree) for tree in stacked], places, numbers)
    if group.repeats == 1:
        return body(carry, jax.tree.map(lambda leaf: leaf[0], xs))[0]
    return jax.lax.scan(body, carry, xs)[0]


def _written(plan: CapturePlan, layers: range) -> dict[Buffer, bool]:
    """Return the buffers that these layers write, and for each whether all writes are inside it."""
    return {
        buffer: layers[-1] <= captured[-1]
        for buffer, captured in plan.layers_of.items()
        if not set(layers).isdisjoint(captured)
    }


def _write_inside(buffer: jax.Array, value: jax.Array, place: jax.Array, axis: int) -> jax.Array:
    """Return the buffer with `value` at `place`, or unchanged if `place` is beyond the last captured layer."""
    last = len(buffer) - 1
    at = jnp.minimum(place, last)
    kept = jnp.where(place > last, buffer[at], value)
    return jax.lax.dynamic_update_index_in_dim(buffer, kept, at, axis)
