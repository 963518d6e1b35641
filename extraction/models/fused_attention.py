"""Fused attention for Hopper GPUs: one Pallas kernel, forward only, lowered through Mosaic GPU.

In: q [B, S, H, Dh], k and v [B, S, K, Dh], float16 or bfloat16, H a multiple of K, Dh one of 64, 128 and 256, any S;
segment_ids int32 [B, S], or None for one segment in each row; sinks [H] or None. Out: [B, S, H, Dh] in q's dtype.
Guarantee: the attention of `attention.attend` where each segment is one run of positions, causal or not; padding is a
segment of its own. Scores, softmax and sums are in float32; weights are rounded to v's dtype before the product.

How: causality, windows, segments and the end of a row leave each query one range of keys. XLA computes these ranges,
and from them the tiles of keys that a block of queries sees at all, and those that it sees whole. A program takes 128
queries of one head: one warpgroup copies tiles of keys and values into shared memory, two multiply them with 64
queries each and keep the maximum, sum and result of the online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao,
arXiv 2307.08691; Shah et al., arXiv 2407.08608). Tiles of other documents are neither read nor multiplied; tiles that
every query sees whole are not masked.

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
BLOCK = 128  # queries of a program
_WARPGROUPS = 2  # that multiply
_ROWS = BLOCK // _WARPGROUPS
_LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2
_MASKED = -1e30  # finite, so that a query that sees no key of a tile gives numbers
_WHOLE = ((),) if jax.__version_info__ < (0, 11) else ()  # the index that `load` demanded before jax 0.11
_SWIZZLED = (mosaic_gpu.TilingTransform((8, 64)), mosaic_gpu.SwizzleTransform(128))
_ACC: Any = mosaic_gpu.ACC  # pyright: ignore[reportPrivateImportUsage] - documented, and not in its list
_MATRIX, _COLUMN = mosaic_gpu.Layout.WGMMA, mosaic_gpu.Layout.WGMMA.reduce(1)


@dataclass(frozen=True)
class Tiles:
    """Keys in a tile, a multiple of 64, and the tiles that are in shared memory at a time."""

    keys: int
    stages: int

    def shared_bytes(self, head_width: int) -> int:
        """Return the shared memory of a program, in bytes, barriers apart."""
        return 2 * head_width * (BLOCK + 2 * self.stages * self.keys)


TILES = {64: Tiles(128, 3), 128: Tiles(128, 2), 256: Tiles(64, 2)}


class _Scalars(NamedTuple):
    """The constants of a compiled kernel."""

    rule: AttentionRule
    group: int
    tiles: Tiles
    dtype: Any
    interpreted: bool


class _Memory(NamedTuple):
    """Arrays of the GPU's memory, then those of a program: its queries, tiles of keys and values, and barriers.

    A barrier is passed when its array has arrived (`q_in`, `k_in`, `v_in`) or is not needed any more (`k_out`,
    `v_out`).
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
    k_out: Any
    v_out: Any


class _Place(NamedTuple):
    """Row, head, first query and first tile of keys of a warpgroup."""

    row: jax.Array
    head: jax.Array
    start: jax.Array
    first: jax.Array


@dataclass(frozen=True)
class FusedAttention:
    """A form of attention. `tiles` replace the default ones; `interpret`, `InterpretGPUParams`, runs it on any machine.

    The interpreter has no product of a matrix in registers, so it multiplies with XLA.
    """

    causal: bool = True
    tiles: Tiles | None = None
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
        tiles = self.tiles or TILES[width]
        ranges = key_ranges(segment_ids, (batch, length), rule.window, self.causal)
        added = -length % max(BLOCK, tiles.keys)
        if added:
            q, k, v = (jnp.pad(part, ((0, 0), (0, added), (0, 0), (0, 0))) for part in (q, k, v))
            ranges = jnp.pad(ranges, ((0, 0), (0, 0), (0, added)), mode="edge")
        scalars = _Scalars(rule, heads // k.shape[2], tiles, q.dtype, self.interpret is not None)
        kernel = mosaic_gpu.kernel(
            partial(_body, scalars, sinks is not None),
            out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
            grid=(heads, q.shape[1] // BLOCK, batch),
            grid_names=("head", "block", "row"),
            num_threads=_WARPGROUPS + 1,
            thread_name="warpgroup",
            compiler_params=mosaic_gpu.CompilerParams(approx_math=True),
            interpret=self.interpret,
        )
        extra = () if sinks is None else (sinks.astype(jnp.float32),)
        return kernel(q, k, v, ranges, tile_ranges(ranges, tiles), *extra)[:, :length]


def fused_has(q: Float[jax.Array, "B S H Dh"], rule: AttentionRule) -> bool:
    """Return whether the kernel covers this case."""
    return q.dtype in (jnp.float16, jnp.bfloat16) and q.shape[-1] in HEAD_WIDTHS and not rule.alibi


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


def tile_ranges(ranges: Int[jax.Array, "B 2 S"], tiles: Tiles) -> Int[jax.Array, "B blocks 4"]:
    """Return for each block of queries the tiles that it sees, int32 [B, blocks, 4].

    The numbers are the first tile that a query sees, the first and the end of those that all queries see whole, and the
    end of all.
    """
    first, end = ranges.reshape(len(ranges), 2, -1, BLOCK).swapaxes(0, 1)  # [B, blocks, BLOCK] each
    begin, stop = first.min(axis=2) // tiles.keys, -(-end.max(axis=2) // tiles.keys)
    whole = jnp.minimum(-(-first.max(axis=2) // tiles.keys), stop)
    whole_end = jnp.clip(end.min(axis=2) // tiles.keys, whole, stop)
    return jnp.stack([begin, whole, whole_end, stop], axis=2)


def _body(scalars: _Scalars, with_sinks: bool, *arrays: Any) -> None:
    """Allocate the shared memory of a program and give each warpgroup its work."""
    *inputs, out = arrays
    if not with_sinks:
        inputs.append(None)
    stages, tile = scalars.tiles.stages, (scalars.tiles.stages, scalars.tiles.keys, out.shape[-1])
    shared = partial(mosaic_gpu.SMEM, dtype=scalars.dtype, transforms=_SWIZZLED)

    def run(*scoped: Any) -> None:
        at = _Memory._make([*inputs, out, *scoped])
        row, block, head = (lax.axis_index(name) for name in ("row", "block", "head"))
        warpgroup = lax.axis_index("warpgroup")
        steps = [at.tile_ranges[row, block, number] for number in range(4)]

        @pl.when(warpgroup < _WARPGROUPS)
        def _() -> None:
            mosaic_gpu.set_max_registers(232, action="increase")
            place = _Place(row, head, block * BLOCK + warpgroup * _ROWS, steps[0])
            mine = at._replace(queries=at.queries.at[warpgroup], q_in=at.q_in.at[warpgroup])
            _attend(scalars, mine, place, steps)

        @pl.when(warpgroup == _WARPGROUPS)
        def _() -> None:
            mosaic_gpu.set_max_registers(40, action="decrease")
            _fetch(scalars, at, _Place(row, head, block * BLOCK, steps[0]), steps[3])

    pl.run_scoped(
        run,
        shared((_WARPGROUPS, _ROWS, out.shape[-1])),
        shared(tile),
        shared(tile),
        mosaic_gpu.Barrier(num_barriers=_WARPGROUPS),
        *[mosaic_gpu.Barrier(num_barriers=stages)] * 2,
        *[mosaic_gpu.Barrier(num_arrivals=_WARPGROUPS, num_barriers=stages)] * 2,
        collective_axes="warpgroup",
    )


def _fetch(scalars: _Scalars, at: _Memory, place: _Place, end: jax.Array) -> None:
    """Copy the tiles of keys and values into shared memory, each when its place there is free."""
    tiles = scalars.tiles
    kv_head = lax.div(place.head, jnp.int32(scalars.group))

    def copy(tile: jax.Array, _: None) -> None:
        number = tile - place.first
        stage = lax.rem(number, jnp.int32(tiles.stages))
        wanted = (place.row, pl.ds(tile * tiles.keys, tiles.keys), kv_head)
        for source, target, arrived, free in ((at.k, at.keys, at.k_in, at.k_out), (at.v, at.values, at.v_in, at.v_out)):
            pl.when(number >= tiles.stages)(partial(mosaic_gpu.barrier_wait, free.at[stage]))
            mosaic_gpu.copy_gmem_to_smem(source.at[wanted], target.at[stage], arrived.at[stage])

    lax.fori_loop(place.first, end, copy, None)


def _attend(scalars: _Scalars, at: _Memory, place: _Place, steps: list[jax.Array]) -> None:
    """Compute the result of the queries of one warpgroup."""
    here = (place.row, pl.ds(place.start, _ROWS), place.head)
    mosaic_gpu.copy_gmem_to_smem(at.q.at[here], at.queries, at.q_in)
    ranges = [_load(scalars, at.ranges.at[place.row, side, pl.ds(place.start, _ROWS)]) for side in range(2)]
    top, total = _MASKED, 0.0
    if at.sinks is not None:  # a sink is a key that all see, without a value
        top, total = at.sinks[place.head] * _LOG2_E, 1.0
    state = (
        _laid(scalars, jnp.zeros((_ROWS, at.out.shape[-1]), jnp.float32), _MATRIX),
        _laid(scalars, jnp.full((_ROWS,), top, jnp.float32), _COLUMN),
        _laid(scalars, jnp.full((_ROWS,), total, jnp.float32), _COLUMN),
    )
    mosaic_gpu.barrier_wait(at.q_in)
    masked, whole = (partial(_take_in, scalars, at, place, seen) for seen in (ranges, None))
    state = lax.fori_loop(steps[0], steps[1], masked, state)
    state = lax.fori_loop(steps[1], steps[2], whole, state)
    mixed, _, total = lax.fori_loop(steps[2], steps[3], masked, state)
    at.queries[...] = (mixed / _spread(total, mixed.shape)).astype(scalars.dtype)
    mosaic_gpu.commit_smem()
    mosaic_gpu.copy_smem_to_gmem(at.queries, at.out.at[here])
    mosaic_gpu.wait_smem_to_gmem(0)


def _take_in(
    scalars: _Scalars, at: _Memory, place: _Place, ranges: list[jax.Array] | None, tile: jax.Array, state: tuple
) -> tuple:
    """Add one tile of keys to the result, the maximum and the sum of the queries, which see all of it or `ranges`."""
    mixed, top, total = state
    stage = lax.rem(tile - place.first, jnp.int32(scalars.tiles.stages))
    mosaic_gpu.barrier_wait(at.k_in.at[stage])
    scores = _scaled(_scores(scalars, at, stage), scalars.rule)  # [queries, keys], in units of log2(e)
    mosaic_gpu.barrier_arrive(at.k_out.at[stage])
    if ranges is not None:
        first, end = (_spread(side, scores.shape) for side in ranges)
        key = _key_numbers(scalars, scores.shape) + tile * scalars.tiles.keys
        scores = jnp.where((key >= first) & (key < end), scores, _MASKED)
    new_top = jnp.maximum(top, scores.max(axis=1))
    kept = jnp.exp2(top - new_top)
    weights = jnp.exp2(scores - _spread(new_top, scores.shape))
    total = total * kept + weights.sum(axis=1)
    mixed = mixed * _spread(kept, mixed.shape)
    mosaic_gpu.barrier_wait(at.v_in.at[stage])
    mixed = _mix(scalars, mixed, weights.astype(scalars.dtype), at.values, stage)
    mosaic_gpu.barrier_arrive(at.v_out.at[stage])
    return mixed, new_top, total


def _scores(scalars: _Scalars, at: _Memory, stage: jax.Array) -> jax.Array:
    """Return the products of the queries and a tile of keys, float32 [queries, keys]."""
    if scalars.interpreted:
        return jnp.dot(at.queries[...], _read(at.keys, stage).T, preferred_element_type=jnp.float32)

    def multiply(scores: Any) -> jax.Array:
        mosaic_gpu.wgmma(scores, at.queries, at.keys.at[stage].transpose((1, 0)))
        return scores[...]

    return pl.run_scoped(multiply, _ACC((_ROWS, scalars.tiles.keys), jnp.float32))


def _mix(scalars: _Scalars, mixed: jax.Array, weights: jax.Array, values: Any, stage: jax.Array) -> jax.Array:
    """Return `mixed` with the values of a tile added, each with its weight."""
    if scalars.interpreted:
        return mixed + jnp.dot(weights, _read(values, stage), preferred_element_type=jnp.float32)
    multiply: Any = pl.run_state(lambda sums: mosaic_gpu.wgmma(sums, weights, values.at[stage]))
    return multiply(_ACC.init(mixed))


def _read(tiles: Any, stage: jax.Array) -> jax.Array:
    """Return a tile in the interpreter. The commit orders the read before later copies, as a product's reads are."""
    tile = tiles[stage]
    mosaic_gpu.commit_smem()
    return tile


def _scaled(products: jax.Array, rule: AttentionRule) -> jax.Array:
    """Return scores in units of log2(e), for exponentials of base 2; tanh(x) is 1 - 2 / (1 + exp(2x)).

    The hardware's own tanh is right to 11 bits only.
    """
    if rule.softcap is None:
        return products * (rule.scale * _LOG2_E)
    power = jnp.exp2(products * (2 * _LOG2_E * rule.scale / rule.softcap))
    return (1 - 2 / (1 + power)) * (rule.softcap * _LOG2_E)


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
    """Return a column for the queries of a warpgroup, from the GPU's memory."""
    return column[...] if scalars.interpreted else mosaic_gpu.load(column, *_WHOLE, layout=_COLUMN, optimized=False)
