"""Causal attention inside segments: `attention(q, k, v, segment_ids)`.

In: q [B, T, H, Dh], k and v [B, T, K, Dh] with H a multiple of K, segment_ids [B, T] with 0 for padding. Out:
[B, T, H, Dh]. Guarantee: a token sees its own segment up to itself and nothing else, so its result does not depend on
what else is in the row; padding gives finite values. The softmax is in float32.

Cost: blocks of queries see only the keys that causality leaves them, about half of the T x T scores, and no more than
one block of them is in memory.
"""

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128
_MASKED = -1e30  # finite, so that a row without any key stays a number


def attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, scale: float) -> jax.Array:
    """Attention by blocks of queries, each over the keys up to its end."""
    length = q.shape[1]
    blocks = [
        attend(q[:, start:end], k[:, :end], v[:, :end], segment_ids[:, :end], scale)
        for start in range(0, length, QUERY_BLOCK)
        for end in [min(start + QUERY_BLOCK, length)]
    ]
    return jnp.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, scale: float) -> jax.Array:
    """Plain attention of the last t positions, q [B, t, H, Dh], over all S, k and v [B, S, K, Dh]."""
    batch, t, heads, head_width = q.shape
    s, kv_heads = k.shape[1:3]
    grouped = q.reshape(batch, t, kv_heads, heads // kv_heads, head_width)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32) * scale
    here = jnp.arange(s - t, s)[:, None]
    allowed = (jnp.arange(s)[None, :] <= here)[None] & (segment_ids[:, s - t :, None] == segment_ids[:, None, :])
    allowed &= (segment_ids > 0)[:, None, :]
    weights = jax.nn.softmax(jnp.where(allowed[:, None, None], scores, _MASKED), axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return mixed.reshape(batch, t, heads, head_width)
