"""Fused attention for NVIDIA GPUs: one Pallas kernel, forward only, lowered through Triton.

In: q [B, S, H, Dh], k and v [B, S, K, Dh], float16 or bfloat16, H a multiple of K, Dh one of 64, 128 and 256, any S;
segment_ids int32 [B, S] with 0 for padding, or None for one segment in each row. Out: [B, S, H, Dh] in q's dtype.
Guarantee: the attention of `attention.attend`, causal or not, for any S: a tile neither reads nor writes beyond the
end of a row. Scores, softmax and sums are in float32; weights are rounded to v's dtype before the
product with v.

How: a program loads one tile of queries of one head, loops over the tiles of keys that any of them can see, and keeps
the running maximum, sum and result of the online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao,
arXiv 2307.08691). A tile of keys that every query sees whole is not masked.

Cost: one read of q and one write of the result, and k and v once for each tile of queries; no score leaves the chip.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from .attention_rule import AttentionRule

HEAD_WIDTHS = (64, 128, 256)
_LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2
_MASKED = -1e30  # finite, so that a query that sees no key gives numbers
_SMALLEST_TILE = 16  # of the hardware's matrix product
_PROGRAMS_WANTED = 256  # two for each multiprocessor of an H100


@dataclass(frozen=True)
class Tiles:
    """Rows of q and of k in a tile (powers of two, at least 16), warps of a program, stages of its prefetch."""

    q: int
    k: int
    warps: int
    stages: int


_LARGE = {64: Tiles(128, 64, 8, 3), 128: Tiles(128, 64, 8, 3), 256: Tiles(64, 32, 8, 2)}
_SMALL = {64: Tiles(64, 64, 4, 3), 128: Tiles(64, 64, 4, 3), 256: Tiles(64, 32, 8, 2)}


@dataclass(frozen=True)
class KernelForm:
    """Causal or not; the tiles, by default `default_tiles`; `interpret` runs the kernel in Python, on any machine."""

    causal: bool = True
    tiles: Tiles | None = None
    interpret: bool = False


@dataclass(frozen=True)
class _Problem:
    length: int
    rule: AttentionRule
    causal: bool
    tiles: Tiles


def default_tiles(batch: int, length: int, heads: int, head_width: int) -> Tiles:
    """Return tiles that fit registers and shared memory, or smaller ones if these would leave processors idle."""
    tiles = _LARGE[head_width]
    if batch * heads * pl.cdiv(length, tiles.q) < _PROGRAMS_WANTED:
        tiles = _SMALL[head_width]
    whole = max(_SMALLEST_TILE, pl.next_power_of_2(length))
    return replace(tiles, q=min(tiles.q, whole), k=min(tiles.k, whole))


def fused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    rule: AttentionRule,
    form: KernelForm = KernelForm(),
) -> jax.Array:
    """Compute attention in one kernel. Raises ValueError for an unsupported dtype, head width or grouping."""
    batch, length, heads, head_width = q.shape
    kv_heads = k.shape[2]
    half = q.dtype in (jnp.float16, jnp.bfloat16)
    if not half or head_width not in HEAD_WIDTHS or heads % kv_heads or k.shape != v.shape:
        raise ValueError(f"no fused attention of q {q.dtype}{q.shape} with k {k.shape} and v {v.shape}")
    tiles = form.tiles or default_tiles(batch, length, heads, head_width)
    group = heads // kv_heads
    queries = pl.BlockSpec((None, tiles.q, None, head_width), lambda i, h, b: (b, i, h, 0))
    keys = pl.BlockSpec((None, length, None, head_width), lambda i, h, b: (b, 0, jax.lax.div(h, group), 0))
    segments = None if segment_ids is None else pl.BlockSpec((None, length), lambda i, h, b: (b, 0))
    call = pl.pallas_call(
        partial(_kernel, problem=_Problem(length, rule, form.causal, tiles)),
        grid=(pl.cdiv(length, tiles.q), heads, batch),
        in_specs=[queries, keys, keys, segments],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=form.interpret,
        name="fused_attention",
    )
    return call(q, k, v, segment_ids)


def _kernel(q_ref, k_ref, v_ref, segments_ref, out_ref, *, problem: _Problem):
    """Compute one tile of queries of one head, over all keys that it sees."""
    length, rule, causal, tiles = problem.length, problem.rule, problem.causal, problem.tiles
    start = pl.program_id(0) * tiles.q
    rows = start + jnp.arange(tiles.q)
    q = triton.load(q_ref, mask=(rows < length)[:, None], other=0.0)
    segments = None if segments_ref is None else _segments(segments_ref, start, rows < length)

    def over_tile(index: jax.Array, state: tuple, masked: bool) -> tuple:
        mixed, top, total = state
        first = index * tiles.k
        columns = first + jnp.arange(tiles.k)
        inside = (columns < length)[:, None] if masked else None
        k = triton.load(k_ref.at[pl.ds(first, tiles.k), :], mask=inside, other=0.0 if masked else None)
        v = triton.load(v_ref.at[pl.ds(first, tiles.k), :], mask=inside, other=0.0 if masked else None)
        scores = _scores(triton.dot(q, k.T), rule)  # [tile of q, tile of k]
        if masked:
            seen = _seen(rows[:, None], columns[None, :], rule.window, causal) & (columns < length)[None, :]
            if segments_ref is not None:
                theirs = _segments(segments_ref, first, columns < length)
                own = segments[:, None]  # pyright: ignore[reportOptionalSubscript] - set with segments_ref
                seen &= (own == theirs[None, :]) & (theirs > 0)[None, :]
            scores = jnp.where(seen, scores, _MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        rescale = jnp.exp2(top - new_top)
        mixed = mixed * rescale[:, None] + triton.dot(weights.astype(v.dtype), v)
        return mixed, new_top, total * rescale + jnp.sum(weights, axis=1)

    state = (jnp.zeros(q.shape, jnp.float32), jnp.full(tiles.q, -jnp.inf), jnp.zeros(tiles.q))
    first, whole, end = _tile_ranges(start, problem)
    some_seen_whole = segments_ref is None and rule.window is None
    if some_seen_whole:
        state = jax.lax.fori_loop(first, whole, partial(over_tile, masked=False), state)
        first = whole
    if not some_seen_whole or causal or length % tiles.k:
        state = jax.lax.fori_loop(first, end, partial(over_tile, masked=True), state)
    mixed, _, total = state
    triton.store(out_ref, (mixed / total[:, None]).astype(out_ref.dtype), mask=(rows < length)[:, None])


def _segments(ref, first: jax.Array, inside: jax.Array) -> jax.Array:
    return triton.load(ref.at[pl.ds(first, len(inside))], mask=inside, other=0)


def _scores(products: jax.Array, rule: AttentionRule) -> jax.Array:
    """Return scores in units of log2(e), for exponentials of base 2."""
    if rule.softcap is None:
        return products * (rule.scale * _LOG2_E)
    return jnp.tanh(products * (rule.scale / rule.softcap)) * (rule.softcap * _LOG2_E)


def _seen(row: jax.Array, column: jax.Array, window: int | None, causal: bool) -> jax.Array:
    """Return whether the query at `row` may see the key at `column`, apart from segments and the end of the row.

    A window has two sides unless attention is causal.
    """
    seen = (row >= column) if causal else jnp.full((row.shape[0], column.shape[1]), True)
    if window is not None:
        seen &= jnp.abs(row - column) < window
    return seen


def _tile_ranges(start: jax.Array, problem: _Problem) -> tuple:
    """Return the tiles of keys for queries from `start` on: first, end of the tiles without a mask, end."""
    length, window, causal, tiles = problem.length, problem.rule.window, problem.causal, problem.tiles
    first, whole, end = 0, length // tiles.k, pl.cdiv(length, tiles.k)
    if causal:
        whole = jax.lax.div(start + 1, tiles.k)
        end = jnp.minimum(end, jax.lax.div(start + (tiles.q + tiles.k - 1), tiles.k))
    if window is not None:
        first = jax.lax.div(jnp.maximum(start - (window - 1), 0), tiles.k)
        if not causal:
            end = jnp.minimum(end, jax.lax.div(start + (tiles.q + window - 1 + tiles.k - 1), tiles.k))
    return first, whole, end
