"""Causal attention inside segments: `attention(q, k, v, segment_ids, rule, windowed)`.

In: q [B, T, H, Dh], k and v [B, T, K, Dh] with H a multiple of K, segment_ids [B, T] with 0 for padding. Out:
[B, T, H, Dh]. Guarantee: a token sees its own segment up to itself (with a window, itself and the `window - 1` tokens
before it) and nothing else, so its result does not depend on what else is in the row; padding gives finite values. The
softmax is in float32.

On a TPU it is jax's splash kernel (splash_attention.py), on a GPU cuDNN's where that has the case, else and on a CPU
blocks of queries (`attend_blocks`). `attend` is the plain form that all are tested against.

Cost: blocks see only the keys that causality and the window leave them, about half of the T x T scores, and no more
than one block of scores is in memory; the kernels keep scores on the chip.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from .attention_rule import AttentionRule
from .devices import current_platform

_MASKED = -1e30  # finite, so that a row without any key stays a number
_CUDNN_MAX_HEAD_WIDTH = 128  # on every GPU that it supports
_MIN_BLOCK, _MAX_BLOCKS = 128, 16  # more than 16 blocks save little arithmetic and take longer to compile


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    rule: AttentionRule,
    windowed: jax.Array | None = None,
) -> jax.Array:
    """Attention in the form for the platform that the step is compiled for.

    `windowed`, a bool scalar, is for a model in which only some layers have the rule's window: does this one?
    """
    attend_so = form_for(current_platform(), q, rule)
    if windowed is None:
        return attend_so(q, k, v, segment_ids, rule)
    near, far = (partial(attend_so, rule=each) for each in (rule, replace(rule, window=None)))
    return jax.lax.cond(windowed, near, far, q, k, v, segment_ids)


def form_for(platform: str, q: jax.Array, rule: AttentionRule) -> Callable:
    """The one place where a form of attention is chosen."""
    if platform == "tpu":
        from .splash_attention import attend_splash

        return attend_splash
    if platform == "gpu" and cudnn_has(q, rule):
        return partial(attend_library, implementation="cudnn")
    return attend_blocks


def cudnn_has(q: jax.Array, rule: AttentionRule) -> bool:
    """Whether cuDNN's kernel covers this case."""
    half = q.dtype in (jnp.float16, jnp.bfloat16)
    return half and q.shape[-1] <= _CUDNN_MAX_HEAD_WIDTH and q.shape[-1] % 8 == 0 and rule.softcap is None


def attend_library(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    rule: AttentionRule,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """jax's own attention, `cudnn` or `xla`; it has no softcap."""
    window = None if rule.window is None else (rule.window - 1, 0)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=_same_segment(segment_ids, q.shape[1])[:, None],
        scale=rule.scale,
        is_causal=True,
        local_window_size=window,
        implementation=implementation,
    )


def attend_blocks(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, rule: AttentionRule) -> jax.Array:
    """`attend` for one block of queries after the other, each over no more keys than it can see."""
    length = q.shape[1]
    size = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if rule.window is None else max(0, start - rule.window + 1)
        keys, values, segments = (part[:, first:end] for part in (k, v, segment_ids))
        blocks.append(attend(q[:, start:end], keys, values, segments, rule))
    return jnp.concatenate(blocks, axis=1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, rule: AttentionRule) -> jax.Array:
    """Plain attention of the last t of S positions, q [B, t, H, Dh], over all S, k and v [B, S, K, Dh]."""
    batch, t, heads, head_width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, t, kv_heads, heads // kv_heads, head_width)
    # Both products come out in the order of their axes; a CPU takes twice as long where scores are transposed.
    scores = jnp.einsum("bskd,btkgd->bktgs", k, grouped, preferred_element_type=jnp.float32) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    scores = jnp.where(_visible(segment_ids, t, rule.window)[:, None, :, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bskd,bktgs->bktgd", v, weights, preferred_element_type=jnp.float32)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(batch, t, heads, head_width).astype(v.dtype)


def _visible(segment_ids: jax.Array, t: int, window: int | None) -> jax.Array:
    """Which of S keys each of the last t positions sees: bool [B, t, S]."""
    s = segment_ids.shape[1]
    back = jnp.arange(s - t, s)[:, None] - jnp.arange(s)[None, :]
    near = (back >= 0) if window is None else (back >= 0) & (back < window)
    return near[None] & _same_segment(segment_ids, t)


def _same_segment(segment_ids: jax.Array, t: int) -> jax.Array:
    """Which of S keys are real and in the segment of each of the last t positions: bool [B, t, S]."""
    same = segment_ids[:, segment_ids.shape[1] - t :, None] == segment_ids[:, None, :]
    return same & (segment_ids > 0)[:, None, :]
