"""The block that the families share: attention, then an mlp, each added to the residual stream.

In: x [B, T, D], the values that all blocks share (segments, rotations), and the flags of this layer. Out: x [B, T, D];
hook points go to `tap`. Guarantee: one program serves all layers of a stack. Cost: if only some layers have a window,
both forms of attention are compiled and a layer runs one of them, so that a window saves arithmetic.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import attention
from .attention_rule import AttentionRule
from .config import ModelConfig
from .families.base import Modules
from .mixture import Mixture
from .modules import (
    MLP,
    Embedding,
    FromHeads,
    GatedMLP,
    LayerNorm,
    OffsetRMSNorm,
    PositionEmbedding,
    RMSNorm,
    ScaledEmbedding,
    Tap,
    ToHeads,
    WideRMSNorm,
)
from .rope import rotate

# The modules that `Modules` of a family can name.
NORMS: dict[str, Callable[[int, float, jnp.dtype], Any]] = {
    norm.__name__: norm for norm in (RMSNorm, WideRMSNorm, OffsetRMSNorm, LayerNorm)
}
PARTS: dict[str, Callable[[ModelConfig, jnp.dtype], nnx.Module]] = {
    part.__name__: part for part in (MLP, GatedMLP, Mixture, Embedding, ScaledEmbedding, PositionEmbedding)
}


class Attention(nnx.Module):
    """q, k and v of x, rotation, attention, output projection. `norm` makes the norms of q and k."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, norm: Callable):
        self.config = config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        self.q = ToHeads(heads, width, config.width, config.qkv_bias, dtype)
        self.k = ToHeads(kv_heads, width, config.width, config.qkv_bias, dtype)
        self.v = ToHeads(kv_heads, width, config.width, config.qkv_bias, dtype)
        self.o = FromHeads(heads, width, config.width, config.output_bias, dtype)
        if config.qk_norm:
            widths = (heads * width, kv_heads * width) if config.qk_norm == "width" else (width, width)
            self.q_norm, self.k_norm = (norm(width, config.norm_epsilon, dtype) for width in widths)

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        """Return what attention adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q, k, v = self.q(x), self.k(x), self.v(x)  # [B, T, H, Dh], [B, T, K, Dh], [B, T, K, Dh]
        if self.config.qk_norm == "width":
            normed = (norm(y.reshape(*x.shape[:2], -1)) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
            q, k = (y.reshape(*x.shape[:2], -1, self.config.head_width) for y in normed)
        elif self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope is not None:
            cos, sin = self._rotation(shared)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        z = self._attend(q, k, v, shared)  # [B, T, H, Dh]
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)

    def _rotation(self, shared: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        if self.config.window_rope is None:
            return shared["cos"], shared["sin"]
        cos, sin = (jnp.where(shared["windowed"], shared[f"window_{name}"], shared[name]) for name in ("cos", "sin"))
        return cos, sin

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, shared: dict[str, jax.Array]) -> jax.Array:
        config = self.config
        scale = config.head_width**-0.5 if config.attention_scale is None else config.attention_scale
        window = config.window if config.window is not None and config.window < q.shape[1] else None
        some = window is not None and not all(config.windowed)
        rule = AttentionRule(scale, window, config.softcap)
        return attention(q, k, v, shared["segment_ids"], rule, shared["windowed"] if some else None)


class Block(nnx.Module):
    """Attention and mlp in turn. `before` makes the norms of their inputs, `after` of their outputs, if not None."""

    def __init__(
        self,
        attention: nnx.Module,
        mlp: nnx.Module,
        before: Callable[[], nnx.Module] | None,
        after: Callable[[], nnx.Module] | None = None,
    ):
        self.attention, self.mlp = attention, mlp
        if before:
            self.norm_attention, self.norm_mlp = before(), before()
        if after:
            self.norm_attention_out, self.norm_mlp_out = after(), after()
        self.before, self.after = before is not None, after is not None

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        """Return the residual stream after this block, [B, T, D]."""
        added = self.attention(self.norm_attention(x) if self.before else x, shared, tap)
        added = self.norm_attention_out(added) if self.after else added
        tap("hook_attn_out", added)
        x = x + added
        tap("hook_resid_mid", x)
        added = self.mlp(self.norm_mlp(x) if self.before else x, tap)
        added = self.norm_mlp_out(added) if self.after else added
        tap("hook_mlp_out", added)
        x = x + added
        tap("hook_resid_post", x)
        return x


class ParallelBlock(Block):
    """Attention and mlp of the same x, each with its own norm, added together: `hook_resid_mid` does not exist."""

    def __call__(self, x: jax.Array, shared: dict[str, jax.Array], tap: Tap) -> jax.Array:
        """Return the residual stream after this block, [B, T, D]."""
        from_attention = self.attention(self.norm_attention(x), shared, tap)
        tap("hook_attn_out", from_attention)
        from_mlp = self.mlp(self.norm_mlp(x), tap)
        tap("hook_mlp_out", from_mlp)
        x = from_mlp + from_attention + x
        tap("hook_resid_post", x)
        return x


def parts(config: ModelConfig, dtype: jnp.dtype, chosen: Modules) -> dict[str, Callable[[], nnx.Module]]:
    """Return the functions that make the embedding, one block and the final norm of a model."""
    norm, mlp, embedding = NORMS[chosen.norm], PARTS[chosen.mlp], PARTS[chosen.embedding]
    make_norm = partial(norm, config.width, config.norm_epsilon, dtype)
    block = partial(
        ParallelBlock if config.parallel else Block,
        before=make_norm if "before" in chosen.norms else None,
        after=make_norm if "after" in chosen.norms else None,
    )
    return {
        "embedding": lambda: embedding(config, dtype),
        "blocks": lambda: block(Attention(config, dtype, norm), mlp(config, dtype)),
        "final_norm": make_norm,
    }
