"""Fused attention for Hopper GPUs: one Pallas kernel, forward only, lowered through Mosaic GPU.

In: q [B, S, H, Dh], k and v [B, S, K, Dh], float16 or bfloat16, H a multiple of K, Dh one of 64, 128 and 256, any S;
segment_ids int32 [B, S], or None for one segment in each row; sinks [H] or None. Out: [B, S, H, Dh] in q's dtype.
Guarantee: the attention of `attention.attend` where each segment is one run of positions, causal or not; padding is a
segment of its own. Scores, softmax and sums are in float32; weights are rounded to v's dtype before the product.

How: causality, windows, segments and the end of a row leave each query one range of keys. XLA computes these ranges,
and from them the tiles of keys that a block of queries sees at all, and those that it sees whole; where all see all,
nothing is computed. A program is one warpgroup, which takes 64 queries of one head and one tile of keys after another:
the next keys are copied into shared memory while it computes exponentials, the next values while it multiplies keys. It
keeps the maximum, sum and result of the online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv
2307.08691). A processor runs two to four programs at a time, so that one multiplies while others wait or compute
exponentials. Tiles of other documents are neither read nor multiplied; those that every query sees whole are not
masked.

Cost: one read of q and one write of the result, and k and v once for each block of queries; no score leaves the chip.
A row that is not whole blocks is padded, which copies q, k and v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from .attention_rule import AttentionRule

if TYPE_CHECKING:
    from jaxtyping import Float, Int

HEAD_WIDTHS = (64, 128, 256)
BLOCK = 64  # queries of a program, and keys of a tile
_LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2
_MASKED = -(2.0**99)  # finite, and exact times any unit: a query that sees no key of a tile gives numbers
_WHOLE = ((),) if jax.__version_info__ < (0, 11) else ()  # the index that `load` demanded before jax 0.11
_SWIZZLED = (mosaic_gpu.TilingTransform((8, 64)), mosaic_gpu.SwizzleTransform(128))
_ACC: Any = mosaic_gpu.ACC  # pyright: ignore[reportPrivateImportUsage] - documented, and not in its list
_MATRIX, _COLUMN = mosaic_gpu.Layout.WGMMA, mosaic_gpu.Layout.WGMMA.reduce(1)


class _Scalars(NamedTuple):
    """The constants of a compiled kernel; without ranges all queries see `length` keys."""

    rule: AttentionRule
    length: int
    group: int
    tile: int
    dtype: Any
    interpreted: bool


class _Memory(NamedTuple):
    """Arrays of the GPU's memory, then those of a program: its queries, a tile of keys and of values, and barriers.

    A barrier is passed when its array has arrived.
    """

    q: Any
    k: Any
    v: Any
    ranges: Any
    tile_ranges: Any
    sinks: Any
    out: Any
    queries: Any
    keys: Any
    values: Any
    q_in: Any
    k_in: Any
    v_in: Any


class _Place(NamedTuple):
    """Row, head and first query of a program, and the bounds of its tiles as in `tile_ranges`."""

    row: jax.Array
    head: jax.Array
    start: jax.Array
    steps: list[Any]


@dataclass(frozen=True)
class FusedAttention:
    """A form of attention. `interpret`, `InterpretGPUParams`, runs it on any machine.

    The interpreter has no product of a matrix in registers, so it multiplies with XLA.
    """

    causal: bool = True
    interpret: Any = None

    def __call__(
        self,
        q: Float[jax.Array, "B S H Dh"],
        k: Float[jax.Array, "B S K Dh"],
        v: Float[jax.Array, "B S K Dh"],
        segment_ids: Int[jax.Array, "B S"] | None,
        rule: AttentionRule,
        sinks: Float[jax.Array, " H"] | None = None,
    ) -> Float[jax.Array, "B S H Dh"]:
        """Compute attention in one kernel. Raises ValueError for a case that `fused_has` refuses."""
        batch, length, heads, width = q.shape
        if not fused_has(q, rule) or heads % k.shape[2] or k.shape != v.shape:
            raise ValueError(f"no fused attention of q {q.dtype}{q.shape} with k {k.shape} and v {v.shape}, {rule}")
        sees_all = segment_ids is None and rule.window is None and not self.causal
        tile = keys_of_tile(width, sees_all)
        added = -length % tile
        if added:
            q, k, v = (jnp.pad(part, ((0, 0), (0, added), (0, 0), (0, 0))) for part in (q, k, v))
        given: dict[str, jax.Array] = {}
        if not sees_all:
            ranges = key_ranges(segment_ids, (batch, length), rule.window, self.causal)
            ranges = jnp.pad(ranges, ((0, 0), (0, 0), (0, added)), mode="edge")
            given = {"ranges": ranges, "tile_ranges": tile_ranges(ranges)}
        if sinks is not None:
            given["sinks"] = sinks.astype(jnp.float32)
        scalars = _Scalars(rule, length, heads // k.shape[2], tile, q.dtype, self.interpret is not None)
        kernel = mosaic_gpu.kernel(
            partial(_body, scalars, tuple(given)),
            out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
            grid=(heads, q.shape[1] // BLOCK, batch),
            grid_names=("head", "block", "row"),
            compiler_params=mosaic_gpu.CompilerParams(approx_math=True),
            interpret=self.interpret,
        )
        return kernel(q, k, v, *given.values())[:, :length]


def fused_has(q: Float[jax.Array, "B S H Dh"], rule: AttentionRule) -> bool:
    """Return whether the kernel covers this case."""
    return q.dtype in (jnp.float16, jnp.bfloat16) and q.shape[-1] in HEAD_WIDTHS and rule.scale > 0 and not rule.alibi


def keys_of_tile(head_width: int, sees_all: bool) -> int:
    """Return the keys in a tile; larger tiles need more registers, and more of them are partly seen."""
    return 2 * BLOCK if sees_all and head_width == 64 else BLOCK


def key_ranges(
    segment_ids: Int[jax.Array, "B S"] | None, shape: tuple[int, int], window: int | None, causal: bool
) -> Int[jax.Array, "B 2 S"]:
    """Return the first key that each query of [B, S] sees and the end of those that it sees, int32 [B, 2, S].

    A window has two sides unless attention is causal.
    """
    length = shape[1]
    at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape)
    first, end = jnp.zeros_like(at), jnp.full_like(at, length)
    if segment_ids is not None:
        changed = segment_ids[:, 1:] != segment_ids[:, :-1]
        first = lax.cummax(jnp.where(jnp.pad(changed, ((0, 0), (1, 0))), at, 0), axis=1)
        end = lax.cummin(jnp.where(jnp.pad(changed, ((0, 0), (0, 1))), at + 1, length), axis=1, reverse=True)
    if causal:
        end = at + 1
    if window is not None:
        first, end = jnp.maximum(first, at - (window - 1)), jnp.minimum(end, at + window)
    return jnp.stack([first, end], axis=1)


def tile_ranges(ranges: Int[jax.Array, "B 2 S"]) -> Int[jax.Array, "B blocks 4"]:
    """Return for each block of queries the tiles of as many keys that it sees, int32 [B, blocks, 4].

    The numbers are the first tile that a query sees, the first and the end of those that all queries see whole, and the
    end of all.
    """
    first, end = ranges.reshape(len(ranges), 2, -1, BLOCK).swapaxes(0, 1)  # [B, blocks, BLOCK] each
    begin, stop = first.min(axis=2) // BLOCK, -(-end.max(axis=2) // BLOCK)
    whole = jnp.minimum(-(-first.max(axis=2) // BLOCK), stop)
    whole_end = jnp.clip(end.min(axis=2) // BLOCK, whole, stop)
    return jnp.stack([begin, whole, whole_end, stop], axis=2)


def _body(scalars: _Scalars, given: tuple[str, ...], *arrays: Any) -> None:
    """Allocate the shared memory of a program and compute its block of queries."""
    q, k, v, *extra, out = arrays
    inputs = {"ranges": None, "tile_ranges": None, "sinks": None} | dict(zip(given, extra, strict=True))
    shared = partial(mosaic_gpu.SMEM, dtype=scalars.dtype, transforms=_SWIZZLED)
    block, tile = ((rows, out.shape[-1]) for rows in (BLOCK, scalars.tile))

    def run(*scoped: Any) -> None:
        at = _Memory._make([q, k, v, *inputs.values(), out, *scoped])
        row, block, head = (lax.axis_index(name) for name in ("row", "block", "head"))
        if at.tile_ranges is None:
            steps: list[Any] = [0, 0, scalars.length // scalars.tile, -(-scalars.length // scalars.tile)]
        else:
            steps = [at.tile_ranges[row, block, number] for number in range(4)]
        _attend(scalars, at, _Place(row, head, block * BLOCK, steps))

    pl.run_scoped(run, shared(block), shared(tile), shared(tile), *[mosaic_gpu.Barrier()] * 3)


def _fetch(scalars: _Scalars, place: _Place, source: Any, target: Any, arrived: Any, tile: Any) -> None:
    """Begin to copy a tile of keys or values into shared memory, if the program needs it."""
    wanted = (place.row, pl.ds(tile * scalars.tile, scalars.tile), lax.div(place.head, jnp.int32(scalars.group)))

    @pl.when(tile < place.steps[-1])
    def _() -> None:
        mosaic_gpu.copy_gmem_to_smem(source.at[wanted], target, arrived)


def _attend(scalars: _Scalars, at: _Memory, place: _Place) -> None:
    """Compute the result of a block of queries."""
    here = (place.row, pl.ds(place.start, BLOCK), place.head)
    mosaic_gpu.copy_gmem_to_smem(at.q.at[here], at.queries, at.q_in)
    fetch_keys = partial(_fetch, scalars, place, at.k, at.keys, at.k_in)
    fetch_values = partial(_fetch, scalars, place, at.v, at.values, at.v_in)
    fetch_keys(place.steps[0])
    fetch_values(place.steps[0])
    ranges = None
    if at.ranges is not None:
        ranges = [_load(scalars, at.ranges.at[place.row, side, pl.ds(place.start, BLOCK)]) for side in range(2)]
    top, total = _MASKED, 0.0
    if at.sinks is not None:  # a sink is a key that all see, without a value
        top, total = at.sinks[place.head] * _LOG2_E, 1.0
    state = (
        _laid(scalars, jnp.zeros((BLOCK, at.out.shape[-1]), jnp.float32), _MATRIX),
        _laid(scalars, jnp.full((BLOCK,), top, jnp.float32), _COLUMN),
        _laid(scalars, jnp.full((BLOCK,), total, jnp.float32), _COLUMN),
    )
    mosaic_gpu.barrier_wait(at.q_in)

    def take_in(masked: bool, tile: Any, state: tuple) -> tuple:
        mixed, top, total = state
        mosaic_gpu.barrier_wait(at.k_in)
        products = _products(scalars, at)
        fetch_keys(tile + 1)
        scores, unit = _scores(products, scalars.rule)
        if masked:
            key = _key_numbers(scalars, scores.shape) + tile * scalars.tile
            seen = key < scalars.length
            if ranges is not None:
                first, end = (_spread(side, scores.shape) for side in ranges)
                seen = (key >= first) & (key < end)
            scores = jnp.where(seen, scores, _MASKED)
        new_top = jnp.maximum(top, scores.max(axis=1) * unit)
        kept = jnp.exp2(top - new_top)
        weights = jnp.exp2(scores * unit - _spread(new_top, scores.shape))
        total = total * kept + weights.sum(axis=1)
        mixed = mixed * _spread(kept, mixed.shape)
        mosaic_gpu.barrier_wait(at.v_in)
        mixed = _mix(scalars, mixed, weights.astype(scalars.dtype), at.values)
        fetch_values(tile + 1)
        return mixed, new_top, total

    for masked, first, end in zip((True, False, True), place.steps, place.steps[1:], strict=False):
        state = lax.fori_loop(first, end, partial(take_in, masked), state)
    mixed, _, total = state
    at.queries[...] = (mixed / _spread(total, mixed.shape)).astype(scalars.dtype)
    mosaic_gpu.commit_smem()
    mosaic_gpu.copy_smem_to_gmem(at.queries, at.out.at[here])
    mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)


def _products(scalars: _Scalars, at: _Memory) -> jax.Array:
    """Return the products of the queries and a tile of keys, float32 [queries, keys]."""
    if scalars.interpreted:
        return jnp.dot(at.queries[...], _read(at.keys).T, preferred_element_type=jnp.float32)

    def multiply(sums: Any) -> jax.Array:
        mosaic_gpu.wgmma(sums, at.queries, at.keys.transpose((1, 0)))
        return sums[...]

    return pl.run_scoped(multiply, _ACC((BLOCK, scalars.tile), jnp.float32))


def _mix(scalars: _Scalars, mixed: jax.Array, weights: jax.Array, values: Any) -> jax.Array:
    """Return `mixed` with the values of a tile added, each with its weight."""
    if scalars.interpreted:
        return mixed + jnp.dot(weights, _read(values), preferred_element_type=jnp.float32)
    multiply: Any = pl.run_state(lambda sums: mosaic_gpu.wgmma(sums, weights, values))
    return multiply(_ACC.init(mixed))


def _read(memory: Any) -> jax.Array:
    """Return a tile in the interpreter. The commit orders the read before later copies, as a product's reads are."""
    tile = memory[...]
    mosaic_gpu.commit_smem()
    return tile


def _scores(products: jax.Array, rule: AttentionRule) -> tuple[jax.Array, float]:
    """Return scores and their unit in log2(e), for exponentials of base 2; tanh(x) is 1 - 2 / (1 + exp(2x)).

    The hardware's own tanh is right to 11 bits only.
    """
    if rule.softcap is None:
        return products, rule.scale * _LOG2_E
    power = jnp.exp2(products * (2 * _LOG2_E * rule.scale / rule.softcap))
    return 1 - 2 / (1 + power), rule.softcap * _LOG2_E


def _spread(column: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcast_in_dim(column, shape, [0])


def _key_numbers(scalars: _Scalars, shape: tuple[int, ...]) -> jax.Array:
    if scalars.interpreted:
        return lax.broadcasted_iota(jnp.int32, shape, 1)
    return mosaic_gpu.broadcasted_iota(jnp.int32, shape, 1, layout=_MATRIX)


def _laid(scalars: _Scalars, array: jax.Array, layout: Any) -> jax.Array:
    """Return the array in a layout of registers, which the interpreter does not have."""
    return array if scalars.interpreted else mosaic_gpu.layout_cast(array, layout)


def _load(scalars: _Scalars, column: Any) -> jax.Array:
    """Return a column for the queries of a program, from the GPU's memory."""
    return column[...] if scalars.interpreted else mosaic_gpu.load(column, *_WHOLE, layout=_COLUMN, optimized=False)
