"""Causal attention inside segments: `attention(q, k, v, segment_ids, rule, sinks)`.

In: q [B, T, H, Dh], k and v [B, T, K, Dh] with H a multiple of K (heads of v may have another width Dv), segment_ids
[B, T] with 0 for padding, sinks [H] or None. Out: [B, T, H, Dv]. Guarantee: a token attends to its own segment up to
itself (with a window, to itself and the `window - 1` tokens before it) and to nothing else, so its result does not
depend on the rest of the row as long as that is finite; padding gives finite values. The softmax is in float32. The
sink of a head is one more term of its sum, without a value.

A TPU uses jax's splash kernel (splash_attention.py), unless scores have slopes (ALiBi). A Hopper GPU uses our kernel
(fused_attention.py) if that covers the case, another GPU cuDNN's. Otherwise, on a CPU and with `--attention plain`,
queries are computed in blocks (`attend_blocks`). On a mesh each device runs its kernel on its own rows and heads. Tests
compare all forms with one written out in NumPy, and a start compares the kernel that it uses with the plain form
(attention_check.py).

Cost: a block multiplies only the keys that it can see, about half of the T x T scores, on a GPU all of them. One block
of scores is in memory, on a CPU all blocks; the kernels keep scores on the chip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from .attention_rule import AttentionRule, alibi_slopes
from .devices import DeviceKind, current_device

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_MASKED = -1e30  # finite, so that a row without any key stays a number
_ROWS_AND_HEADS = PartitionSpec("data", None, "model", None)
_HOPPER = re.compile(r"\b(H100|H200|H800|H20|GH200)\b")
_CUDNN_MAX_HEAD_WIDTH = 128  # on every GPU that it supports
_IS_PLAIN = ContextVar("plain attention", default=False)
_MIN_BLOCK, _MAX_BLOCKS = 128, 16  # more than 16 blocks save little arithmetic and take longer to compile


def attention(
    q: Float[jax.Array, "B T H Dh"],
    k: Float[jax.Array, "B T K Dh"],
    v: Float[jax.Array, "B T K Dv"],
    segment_ids: Int[jax.Array, "B T"],
    rule: AttentionRule,
    sinks: Float[jax.Array, " H"] | None = None,
) -> Float[jax.Array, "B T H Dv"]:
    """Compute attention in the form for the platform that the step is compiled for.

    Args:
        q: [B, T, H, Dh].
        k: [B, T, K, Dh].
        v: [B, T, K, Dv].
        segment_ids: [B, T], 0 for padding.
        rule: scale, window and softcap.
        sinks: [H], the score of each head that no value belongs to; None for none.

    Returns:
        [B, T, H, Dv].
    """
    plain = _IS_PLAIN.get()
    form = attend_blocks if plain else form_for(current_device(), q, rule, sinks is not None, v.shape[-1])
    return form(q, k, v, segment_ids, rule) if sinks is None else form(q, k, v, segment_ids, rule, sinks)


@contextmanager
def attention_form(name: str) -> Iterator[None]:
    """Have programs that are traced in this context use the plain form (`plain`) or that of the device (`auto`)."""
    token = _IS_PLAIN.set(name == "plain")
    try:
        yield
    finally:
        _IS_PLAIN.reset(token)


def form_for(
    device: DeviceKind,
    q: Float[jax.Array, "B T H Dh"],
    rule: AttentionRule,
    with_sinks: bool = False,
    value_width: int | None = None,
) -> Callable:
    """Return the form of attention for a kind of device and a case. Values have the width of q unless it is given."""
    if device.platform == "tpu" and not rule.alibi:
        from .splash_attention import attend_splash

        return OnEachDevice(attend_splash)
    if value_width not in (None, q.shape[-1]):  # latent attention, which the kernels of a GPU lack
        return attend_blocks
    if device.platform == "gpu" and _HOPPER.search(device.name):
        from .fused_attention import FusedAttention, fused_has

        if fused_has(q, rule):
            return OnEachDevice(FusedAttention())
    if device.platform == "gpu" and cudnn_has(q, rule) and not with_sinks:
        return OnEachDevice(attend_library)
    return attend_blocks


@dataclass(frozen=True)
class OnEachDevice:
    """The form of a kernel, which XLA cannot divide: on a mesh each device takes its own rows and heads."""

    kernel: Callable

    def __call__(
        self,
        q: Float[jax.Array, "B T H Dh"],
        k: Float[jax.Array, "B T K Dh"],
        v: Float[jax.Array, "B T K Dv"],
        segment_ids: Int[jax.Array, "B T"],
        rule: AttentionRule,
        sinks: Float[jax.Array, " H"] | None = None,
    ) -> Float[jax.Array, "B T H Dv"]:
        """Compute attention, [B, T, H, Dh]."""
        mesh = jax.sharding.get_abstract_mesh()

        def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, sinks: jax.Array | None) -> jax.Array:
            return self.kernel(q, k, v, ids, rule, sinks)

        if mesh.size <= 1:
            return local(q, k, v, segment_ids, sinks)
        copies = -(-mesh.shape["model"] // k.shape[2])  # with fewer key-value heads than devices, each gets a copy
        k, v = (jnp.repeat(part, copies, axis=2) if copies > 1 else part for part in (k, v))
        in_specs = (*[_ROWS_AND_HEADS] * 3, PartitionSpec("data", None), PartitionSpec("model"))
        mapped = jax.shard_map(local, in_specs=in_specs, out_specs=_ROWS_AND_HEADS, check_vma=False)
        return mapped(q, k, v, segment_ids, sinks)


def cudnn_has(q: Float[jax.Array, "B T H Dh"], rule: AttentionRule) -> bool:
    """Return whether cuDNN's kernel covers this case."""
    half = q.dtype in (jnp.float16, jnp.bfloat16)
    plain = rule.softcap is None and not rule.alibi
    return half and q.shape[-1] <= _CUDNN_MAX_HEAD_WIDTH and q.shape[-1] % 8 == 0 and plain


def attend_library(
    q: Float[jax.Array, "B T H Dh"],
    k: Float[jax.Array, "B T K Dh"],
    v: Float[jax.Array, "B T K Dv"],
    segment_ids: Int[jax.Array, "B T"],
    rule: AttentionRule,
    sinks: None = None,
) -> Float[jax.Array, "B T H Dv"]:
    """Compute attention with jax's own function, on a GPU cuDNN's kernel; it has no softcap and no sinks."""
    window = None if rule.window is None else (rule.window - 1, 0)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=_same_segment(segment_ids, q.shape[1])[:, None],
        scale=rule.scale,
        is_causal=True,
        local_window_size=window,
        implementation="cudnn" if current_device().platform == "gpu" else "xla",
    )


def attend_blocks(
    q: Float[jax.Array, "B T H Dh"],
    k: Float[jax.Array, "B T K Dh"],
    v: Float[jax.Array, "B T K Dv"],
    segment_ids: Int[jax.Array, "B T"],
    rule: AttentionRule,
    sinks: Float[jax.Array, " H"] | None = None,
) -> Float[jax.Array, "B T H Dv"]:
    """Compute `attend` block of queries by block, each over the keys that it can see.

    A GPU's compiler needs seconds for each shape of a product: there all blocks have as many keys.
    """
    if current_device().platform == "gpu":
        return attend_equal_blocks(q, k, v, segment_ids, rule, sinks)
    length = q.shape[1]
    size = _block_size(length)
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if rule.window is None else max(0, start - rule.window + 1)
        keys, values, segments = (part[:, first:end] for part in (k, v, segment_ids))
        blocks.append(attend(q[:, start:end], keys, values, segments, rule, sinks))
    return jnp.concatenate(blocks, axis=1)


def _block_size(length: int) -> int:
    return min(length, max(_MIN_BLOCK, -(-length // _MAX_BLOCKS)))


def scores_at_once(length: int, window: int | None, platform: str) -> int:
    """Return how many scores of a head and row plain attention keeps: a block's, before and after the softmax.

    A CPU's compiler keeps those of all blocks.
    """
    size = _block_size(length)
    block = size * _keys_of_block(length, size, window)
    if platform != "cpu":
        return 2 * block
    ends = range(size, length + size, size)
    return block + size * sum(end if window is None else min(end, size + window - 1) for end in ends)


def _keys_of_block(length: int, size: int, window: int | None) -> int:
    """Return the keys that a block of queries sees, with padding to whole blocks."""
    keys = length + -length % size
    return keys if window is None else min(keys, size + window - 1)


def attend_equal_blocks(
    q: Float[jax.Array, "B T H Dh"],
    k: Float[jax.Array, "B T K Dh"],
    v: Float[jax.Array, "B T K Dv"],
    segment_ids: Int[jax.Array, "B T"],
    rule: AttentionRule,
    sinks: Float[jax.Array, " H"] | None = None,
) -> Float[jax.Array, "B T H Dv"]:
    """Compute `attend` in a loop over blocks of queries; what is before a row's first key is padding."""
    batch, length, heads, _ = q.shape
    size = _block_size(length)
    after, keys = -length % size, _keys_of_block(length, size, rule.window)
    q = _padded(q, 0, after)
    k, v, segment_ids = (_padded(part, keys - size, after) for part in (k, v, segment_ids))

    def block(start: jax.Array) -> jax.Array:
        own = lax.dynamic_slice_in_dim(q, start, size, axis=1)
        k_seen, v_seen, ids = (lax.dynamic_slice_in_dim(part, start, keys, axis=1) for part in (k, v, segment_ids))
        return attend(own, k_seen, v_seen, ids, rule, sinks)

    blocks = lax.map(block, jnp.arange(0, length, size))  # [blocks, B, size, H, Dv]
    return blocks.swapaxes(0, 1).reshape(batch, length + after, heads, -1)[:, :length]


def _padded(array: jax.Array, before: int, after: int) -> jax.Array:
    """Return the array with zeros before and after its second axis."""
    return jnp.pad(array, ((0, 0), (before, after), *((0, 0),) * (array.ndim - 2)))


def attend(
    q: Float[jax.Array, "B t H Dh"],
    k: Float[jax.Array, "B S K Dh"],
    v: Float[jax.Array, "B S K Dv"],
    segment_ids: Int[jax.Array, "B S"],
    rule: AttentionRule,
    sinks: Float[jax.Array, " H"] | None = None,
) -> Float[jax.Array, "B t H Dv"]:
    """Compute plain attention of the last t of S positions, q [B, t, H, Dh], over k and v [B, S, K, Dh]."""
    batch, t, heads, head_width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, t, kv_heads, heads // kv_heads, head_width)
    # Both products come out in the order of their axes; a CPU takes twice as long where scores are transposed.
    scores = jnp.einsum("bskd,btkgd->bktgs", k, grouped, preferred_element_type=jnp.float32) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    if rule.alibi:
        scores -= _alibi(heads, t, k.shape[1]).reshape(1, kv_heads, -1, t, k.shape[1]).swapaxes(2, 3)
    scores = jnp.where(_visible(segment_ids, t, rule.window)[:, None, :, None], scores, _MASKED)
    weights = _softmax(scores, sinks).astype(v.dtype)
    mixed = jnp.einsum("bskd,bktgs->bktgd", v, weights, preferred_element_type=jnp.float32)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(batch, t, heads, -1).astype(v.dtype)


def _alibi(heads: int, t: int, s: int) -> jax.Array:
    """Return the slope of each head times the distance of the last t of S positions to each, float32 [H, t, S]."""
    slopes = jnp.asarray(alibi_slopes(heads), jnp.float32)
    return slopes[:, None, None] * _back(t, s).astype(jnp.float32)[None]


def _back(t: int, s: int) -> jax.Array:
    """Return int32 [t, S], how far each position is before each of the last t."""
    return jnp.arange(s - t, s)[:, None] - jnp.arange(s)[None, :]


def _softmax(scores: jax.Array, sinks: jax.Array | None) -> jax.Array:
    """Return weights [B, K, t, G, S] of scores: their softmax, with the sink [H] of each head as one more term."""
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    kv_heads, group = scores.shape[1], scores.shape[3]
    sink = sinks.astype(jnp.float32).reshape(1, kv_heads, 1, group, 1)
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink)
    weights = jnp.exp(scores - top)
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sink - top))


def _visible(segment_ids: jax.Array, t: int, window: int | None) -> jax.Array:
    """Return bool [B, t, S], the keys that each of the last t positions sees."""
    back = _back(t, segment_ids.shape[1])
    near = (back >= 0) if window is None else (back >= 0) & (back < window)
    return near[None] & _same_segment(segment_ids, t)


def _same_segment(segment_ids: jax.Array, t: int) -> jax.Array:
    """Return bool [B, t, S], the keys in the segment of each of the last t positions; padding is in none."""
    same = segment_ids[:, segment_ids.shape[1] - t :, None] == segment_ids[:, None, :]
    return same & (segment_ids > 0)[:, None, :]
