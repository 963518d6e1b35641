"""Latent attention (DeepSeek): keys and values of all heads are made of one narrow vector of each token.

In: x [B, T, D]. Out: what attention adds to the residual stream, [B, T, D]. Guarantee: as `attention`. The last columns
of a head of q and k are rotated, and those of k are common to all heads. Cost: keys and values are made for each head,
as in training; there is no cache that a narrow vector would save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import attention
from .attention_rule import rule_of
from .config import LayerKind, ModelConfig
from .modules import FromHeads, Linear, Tap, ToHeads

if TYPE_CHECKING:
    from jaxtyping import Float

    from .block import Shared

_EPSILON = 1e-6  # of the norms inside, whatever the configuration says


class LatentAttention(nnx.Module):
    """q, k and v through narrow vectors, rotation of a part, attention, output projection."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, norm: Callable):
        if kind.latent is None:
            raise ValueError("this kind of layer has no latent attention")
        self.config, self.kind, self.kept = config, kind, kind.head_width - kind.rotated_width
        heads, width, latent, bias = kind.num_heads, config.width, kind.latent, config.qkv_bias
        self.narrow_q = latent.q_rank is not None
        if latent.q_rank is not None:
            self.q_down = Linear(width, latent.q_rank, bias, dtype)
            self.q_norm = norm(latent.q_rank, _EPSILON, dtype)
        self.q = ToHeads(heads, kind.head_width, latent.q_rank or width, False, dtype)
        self.kv_down = Linear(width, latent.kv_rank, bias, dtype)
        self.kv_norm = norm(latent.kv_rank, _EPSILON, dtype)
        self.k = ToHeads(heads, self.kept, latent.kv_rank, False, dtype)
        self.k_rotated = Linear(width, latent.rotated_width, bias, dtype)
        self.v = ToHeads(heads, latent.value_width, latent.kv_rank, False, dtype)
        self.o = FromHeads(heads, latent.value_width, width, config.output_bias, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what attention adds to the residual stream, [B, T, D], given x [B, T, D]."""
        of_kv = self.kv_norm(self.kv_down(x))  # [B, T, kv_rank]
        q, k, v = self._queries(x), self.k(of_kv), self.v(of_kv)
        tap("attn.hook_q", q.reshape(*x.shape[:2], -1))
        tap("attn.hook_v", v.reshape(*x.shape[:2], -1))
        rotation = shared.rotation_of(self.kind)
        common = rotation(self.k_rotated(x)[:, :, None])  # [B, T, 1, R]
        q = jnp.concatenate([q[..., : self.kept], rotation(q[..., self.kept :])], axis=-1)
        k = jnp.concatenate([k, jnp.broadcast_to(common, (*k.shape[:3], common.shape[-1]))], axis=-1)
        z = attention(q, k, v, shared.segment_ids, rule_of(self.config, self.kind, x.shape[1]))  # [B, T, H, Dv]
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)

    def _queries(self, x: jax.Array) -> jax.Array:
        """Return q [B, T, H, Dh] before the rotation."""
        return self.q(self.q_norm(self.q_down(x)) if self.narrow_q else x)
