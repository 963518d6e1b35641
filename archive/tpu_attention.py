"""Attention on a TPU: one Pallas kernel, forward only, that multiplies hardly more than what is seen.

In, out and guarantee as of `attention.attention`, for any T: rows are padded to whole blocks with padding. On a mesh
each device works on its own rows and heads. Scores, softmax and sums are in float32 and stay on the chip; weights are
rounded to v's dtype before they meet v.

How: a program takes one block of queries of one head and goes over the blocks of keys up to its own, with the running
maximum, sum and result of the online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691). Blocks
before the window, or before the first document that a query of the block belongs to, are left out. Blocks that
causality or the window cuts are multiplied in pieces of 128 queries, each with the keys that it can see.

Cost: `tiling.multiplied_pairs`; for a row of one document 1 + 128/T times the causal half of T x T, for a row of many less
than that half. The axes here, [B, H, Dh, T] for q and [B, H, T, Dh] for the rest, are how the products before and
after have them: no copy.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from .attention_rule import AttentionRule
from .tpu_tiling import LANES, Parts, Tiling, block_of, edge_cases, edge_parts

_LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2
_MASKED = -1e30  # finite, so that a query whose keys come in a later block gives numbers
_ROWS_AND_HEADS = PartitionSpec("data", None, "model", None)


class _Inputs(NamedTuple):
    """q [B, H, Dh, T], k and v [B, K, T, Dh], segment_ids [B, T]; T in whole blocks."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array


class _Refs(NamedTuple):
    """What the kernel reads, writes and keeps: `first` of each row and block of queries, the block of keys to begin
    with; the blocks of keys gone over, and the tiling's number; queries [Dh, block] and their ids on all lanes;
    keys, values and ids [1, block]; the result; running maximum and sum on all lanes, and running result, float32."""

    first: Any
    scalars: Any
    q: Any
    k: Any
    v: Any
    q_ids: Any
    k_ids: Any
    z: Any
    top: Any
    total: Any
    mixed: Any


def attend_tpu(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, rule: AttentionRule,
    windowed: jax.Array | None = None,
) -> jax.Array:
    """Attention as it is on a TPU; `windowed` as of `attention.attention`."""
    mesh = jax.sharding.get_abstract_mesh()
    local = partial(_attend_local, rule=rule)
    if mesh.size <= 1:
        return local(q, k, v, segment_ids, windowed)
    copies = -(-mesh.shape["model"] // k.shape[2])  # with fewer key-value heads than devices each gets its own
    k, v = (jnp.repeat(part, copies, axis=2) if copies > 1 else part for part in (k, v))
    in_specs = (*[_ROWS_AND_HEADS] * 3, PartitionSpec("data", None), PartitionSpec())
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=_ROWS_AND_HEADS, check_vma=False)
    return mapped(q, k, v, segment_ids, windowed)


def _attend_local(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, windowed: jax.Array | None, rule: AttentionRule
) -> jax.Array:
    """On one device, [B, T, H, Dh]."""
    length = q.shape[1]
    added = ((0, 0), (0, -length % block_of(length)))
    q, k, v = (jnp.pad(part, (*added, (0, 0), (0, 0))) for part in (q, k, v))
    inputs = _Inputs(
        q.transpose(0, 2, 3, 1), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), jnp.pad(segment_ids, added)
    )
    return _attend_blocks(inputs, rule, windowed).transpose(0, 2, 1, 3)[:, :length]


def _attend_blocks(inputs: _Inputs, rule: AttentionRule, windowed: jax.Array | None) -> jax.Array:
    """[B, H, T, Dh]."""
    q, k, v, segment_ids = inputs
    batch, heads, width, length = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    tilings = [Tiling.of(length, rule.window)]
    block, depth = tilings[0].block, tilings[0].depth
    number = 0
    if windowed is not None:  # the window is data, since a branch between two kernels would copy what they read
        tilings.append(Tiling.of(length, None))
        number = jnp.where(windowed, 0, 1)
        depth = jnp.where(windowed, depth, tilings[1].depth)
    scalars = jnp.array([depth, number], jnp.int32)

    def key_block(b: int, i: jax.Array, t: jax.Array, first: Any, scalars: Any) -> jax.Array:
        return jnp.maximum(i + t + 1 - scalars[0], first[b, i])  # what is left out is not read either

    queries = pl.BlockSpec((None, None, width, block), lambda b, h, g, i, t, *_: (b, h * group + g, 0, i))
    keys = pl.BlockSpec((None, None, block, width), lambda b, h, g, i, t, *refs: (b, h, key_block(b, i, t, *refs), 0))
    q_ids = pl.BlockSpec((None, block, LANES), lambda b, h, g, i, t, *_: (b, i, 0))
    k_ids = pl.BlockSpec((None, 1, block), lambda b, h, g, i, t, *refs: (b, 0, key_block(b, i, t, *refs)))
    results = pl.BlockSpec((None, None, block, width), lambda b, h, g, i, t, *_: (b, h * group + g, i, 0))
    call = pl.pallas_call(
        partial(_kernel, tilings=tilings, rule=rule),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads, group, length // block, depth),
            in_specs=[queries, keys, keys, q_ids, k_ids],
            out_specs=results,
            scratch_shapes=[pltpu.VMEM((block, columns), jnp.float32) for columns in (LANES, LANES, width)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, heads, length, width), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(*["parallel"] * 4, "arbitrary")),
        name="attend_tpu",
    )
    on_lanes = jnp.broadcast_to(segment_ids[:, :, None], (batch, length, LANES))
    return call(first_blocks(segment_ids, block), scalars, q, k, v, on_lanes, segment_ids[:, None, :])


def first_blocks(segment_ids: jax.Array, block: int) -> jax.Array:
    """For each block of queries the first block with a key of one of their segments, or earlier: int32 [B, blocks].

    Where the ranges of ids in two blocks do not meet, no query of one sees a key of the other.
    """
    ids = jnp.where(segment_ids > 0, segment_ids, jnp.iinfo(jnp.int32).max).reshape(len(segment_ids), -1, block)
    least, most = ids.min(axis=2), ids.max(axis=2)
    meet = (least[:, :, None] <= most[:, None, :]) & (least[:, None, :] <= most[:, :, None])
    return jnp.argmax(meet, axis=2).astype(jnp.int32)


def _kernel(*refs: Any, tilings: list[Tiling], rule: AttentionRule) -> None:
    """One block of queries with one of keys, `back` blocks before it; its own comes last. One of `tilings` holds."""
    at = _Refs(*refs)
    queries, back = pl.program_id(3), at.scalars[0] - 1 - pl.program_id(4)
    visited = queries - back >= at.first[pl.program_id(0), queries]

    @pl.when(pl.program_id(4) == 0)
    def begin() -> None:
        at.top[...] = jnp.full_like(at.top, _MASKED)
        at.total[...] = jnp.zeros_like(at.total)
        at.mixed[...] = jnp.zeros_like(at.mixed)

    inside, block = visited, tilings[0].block
    for (edge, window), tilings_of in edge_cases(tilings).items():
        found = visited & (back == edge)
        if len(tilings_of) < len(tilings):
            found &= at.scalars[1] == tilings_of[0]
        pl.when(found)(partial(_update, at, rule, edge_parts(block, edge, window), (edge, window)))
        inside &= ~found
    if any(tiling.depth > len(tiling.edges) for tiling in tilings):
        pl.when(inside)(partial(_update, at, rule, [(slice(0, block), slice(0, block))], None))

    @pl.when(back == 0)
    def end() -> None:
        mixed = at.mixed[...]
        at.z[...] = (mixed * _spread(1 / at.total[...], mixed.shape[1])).astype(at.z.dtype)


def _update(at: _Refs, rule: AttentionRule, parts: Parts, edge: tuple[int, int | None] | None) -> None:
    """Take in one block of keys. Stage by stage over all its parts, so that the parts overlap in the processor."""
    scores = []
    for rows, keys in parts:
        seen = _spread(at.q_ids[rows, :], keys.stop - keys.start) == at.k_ids[:, keys]
        if edge is not None:
            seen &= _in_reach(rows, keys, edge[0] * at.q.shape[1], edge[1])
        scores.append(jnp.where(seen, _scaled(_dot(at.q[:, rows], at.k[keys, :], 0, 1), rule), _MASKED))
    before = [at.top[rows, :] for rows, _ in parts]
    tops = [jnp.maximum(top, part.max(axis=1, keepdims=True)) for top, part in zip(before, scores, strict=True)]
    weights = [jnp.exp2(part - _spread(top, part.shape[1])) for top, part in zip(tops, scores, strict=True)]
    mixed = [_dot(part.astype(at.v.dtype), at.v[keys, :], 1, 0) for part, (_, keys) in zip(weights, parts, strict=True)]
    for index, (rows, _) in enumerate(parts):
        kept = jnp.exp2(before[index] - tops[index])
        at.top[rows, :] = tops[index]
        at.total[rows, :] = kept * at.total[rows, :] + weights[index].sum(axis=1, keepdims=True)
        at.mixed[rows, :] = _spread(kept, mixed[index].shape[1]) * at.mixed[rows, :] + mixed[index]


def _in_reach(rows: slice, keys: slice, back: int, window: int | None) -> jax.Array:
    """Which keys are neither too late nor too far, bool [rows, keys]; these are of a block `back` tokens before."""
    shape = (rows.stop - rows.start, keys.stop - keys.start)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    distance = row - column + (back + rows.start - keys.start)
    reached = distance >= 0 if back == 0 else None
    near = distance < window if window is not None else None
    return near if reached is None else reached if near is None else reached & near


def _scaled(products: jax.Array, rule: AttentionRule) -> jax.Array:
    """Scores in units of log2(e), for exponentials of base 2."""
    if rule.softcap is None:
        return products * (rule.scale * _LOG2_E)
    return jnp.tanh(products * (rule.scale / rule.softcap)) * (rule.softcap * _LOG2_E)


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The product of two matrices over one axis of each, float32."""
    over = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, over, preferred_element_type=jnp.float32)


def _spread(same: jax.Array, width: int) -> jax.Array:
    """What is the same on all lanes, [rows, 128], with `width` columns."""
    return jnp.tile(same, (1, -(-width // LANES)))[:, :width]
