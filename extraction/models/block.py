"""The block that the families share: attention, then an mlp, each added to the residual stream.

In: x [B, T, D] and the values that all blocks share (segments, rotations). Out: x [B, T, D]; hook points go to `tap`.
Guarantee: layers of one kind run one program. Cost: the model's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from .attention import attention
from .attention_rule import rule_of
from .config import LayerKind, Mamba, ModelConfig, Rope
from .delta_net import GatedDeltaNet
from .families.base import Modules
from .latent_attention import LatentAttention
from .mamba import Mamba2
from .mixture import Mixture
from .modules import (
    MLP,
    Embedding,
    FromHeads,
    GatedMLP,
    LayerNorm,
    MultipliedEmbedding,
    NormalizedEmbedding,
    OffsetRMSNorm,
    PositionEmbedding,
    RMSNorm,
    ScaledEmbedding,
    Tap,
    ToHeads,
    UnbiasedLayerNorm,
    WideRMSNorm,
    over_rms,
    times,
)
from .per_layer_embeddings import PerLayerEmbedding
from .rope import query_scale, rotate, rotation

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# The modules that `Modules` of a family can name.
NORMS: dict[str, Callable[[int, float, jnp.dtype], Any]] = {
    norm.__name__: norm for norm in (RMSNorm, WideRMSNorm, OffsetRMSNorm, LayerNorm, UnbiasedLayerNorm)
}
MLPS: dict[str, Callable[[ModelConfig, LayerKind, jnp.dtype], nnx.Module]] = {
    mlp.__name__: mlp for mlp in (MLP, GatedMLP)
}
EMBEDDINGS: dict[str, Callable[[ModelConfig, jnp.dtype], nnx.Module]] = {
    embedding.__name__: embedding
    for embedding in (
        Embedding,
        NormalizedEmbedding,
        ScaledEmbedding,
        MultipliedEmbedding,
        PositionEmbedding,
        PerLayerEmbedding,
    )
}


@dataclass(frozen=True)
class Shared:
    """The values that all blocks share.

    Attributes:
        segment_ids, positions: int32 [B, T].
        rotations: cos and sin, float32 [B, T, 1, R/2], of each rotation and width of what it turns.
        per_layer: [L, B, T, d], the embeddings that each layer has of its own, or None.
        layer: int32, the number of the layer that runs.
        kept: k and v, [B, T, K, Dh] and rotated, of the layers that have run and keep theirs, by their numbers.
    """

    segment_ids: Int[jax.Array, "B T"]
    positions: Int[jax.Array, "B T"]
    rotations: dict[tuple[Rope, int], tuple[Float[jax.Array, "B T 1 _"], Float[jax.Array, "B T 1 _"]]]
    per_layer: Float[jax.Array, "L B T d"] | None = None
    layer: Int[jax.Array, ""] | np.integer | int = 0
    kept: dict[int, tuple[Float[jax.Array, "B T _ _"], Float[jax.Array, "B T _ _"]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, layers: tuple[LayerKind, ...], segment_ids: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]
    ) -> Shared:
        """Return the values for these layers."""
        wanted = dict.fromkeys((kind.rope, kind.rotated_width) for kind in layers if kind.rope is not None)
        rotations = {(rope, width): rotation(positions, segment_ids, width, rope) for rope, width in wanted}
        return cls(segment_ids, positions, rotations)

    def seen_together(self, kind: LayerKind) -> Int[jax.Array, "B T"]:
        """Return int32 [B, T]: the segments, or where attention is chunked a number of its own for each chunk."""
        length = self.segment_ids.shape[1]
        if not kind.chunked or kind.window is None or kind.window >= length:
            return self.segment_ids
        first = (self.segment_ids - 1) * -(-length // kind.window) + 1
        return jnp.where(self.segment_ids > 0, first + self.positions // kind.window, 0)

    def rotation_of(self, kind: LayerKind) -> Callable[[jax.Array], jax.Array]:
        """Return the function that rotates heads [B, T, H, R] of a kind of layer, which has a rotation."""
        if kind.rope is None:
            raise ValueError("this kind of layer has no rotation")
        cos, sin = self.rotations[kind.rope, kind.rotated_width]
        return partial(rotate, cos=cos, sin=sin, interleaved=kind.rope.interleaved)


class Attention(nnx.Module):
    """q, k and v of x, rotation, attention, output gate, output projection. `norm` makes the norms of q and k."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, norm: Callable):
        self.config, self.kind = config, kind
        heads, kv_heads, width = kind.num_heads, kind.num_kv_heads, kind.head_width
        self.q = ToHeads(heads, width, config.width, config.qkv_bias, dtype)
        self.k = ToHeads(kv_heads, width, config.width, config.qkv_bias, dtype)
        self.v = ToHeads(kv_heads, width, config.width, config.qkv_bias, dtype)
        self.o = FromHeads(heads, width, config.width, config.output_bias, dtype)
        if config.output_gate:
            self.gate = ToHeads(heads, width, config.width, config.qkv_bias, dtype)
        if config.qk_norm:
            shapes = {
                "head": (width, width),
                "width": (kind.heads_width, kind.kv_width),
                "each_head": ((heads, width), (kv_heads, width)),
            }
            norm = UnbiasedLayerNorm if config.qk_norm == "each_head" else norm
            self.q_norm, self.k_norm = (norm(shape, config.norm_epsilon, dtype) for shape in shapes[config.qk_norm])
        self.sinks = nnx.Param(jnp.zeros((heads,), dtype)) if config.sinks else None

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what attention adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q, k, v = self._project(x)
        for name, heads in (("q", q), ("k", k), ("v", v)):
            tap(f"attn.hook_{name}", heads.reshape(*x.shape[:2], -1))
        if self.kind.rope is not None:
            rotation = shared.rotation_of(self.kind)
            q, k = rotation(q), rotation(k)
        if self.kind.unit_heads:
            q, k = (over_rms(heads, self.config.norm_epsilon).astype(heads.dtype) for heads in (q, k))
        if self.kind.growth:
            q *= query_scale(shared.positions, self.kind.growth).astype(q.dtype)
        if self.config.scaled_by_layer:
            q = (q.astype(jnp.float32) / jnp.asarray(shared.layer + 1, jnp.float32)).astype(q.dtype)
        sinks = None if self.sinks is None else self.sinks[...]
        rule = rule_of(self.config, self.kind, x.shape[1])
        z = attention(q, k, v, shared.seen_together(self.kind), rule, sinks)  # [B, T, H, Dh]
        if self.config.output_gate:
            z = z * jax.nn.sigmoid(self.gate(x).astype(jnp.float32)).astype(z.dtype)
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q [B, T, H, Dh], k and v [B, T, K, Dh], normalized if the model does so."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.config.qk_norm == "width":
            normed = (norm(y.reshape(*x.shape[:2], -1)) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
            q, k = (y.reshape(*x.shape[:2], -1, self.kind.head_width) for y in normed)
        elif self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, whole_if_shared(k), whole_if_shared(v)


def whole_if_shared(heads: Float[jax.Array, "B T K Dh"]) -> Float[jax.Array, "B T K Dh"]:
    """Return key or value heads [B, T, K, Dh], all of them on each device where there are fewer heads than devices.

    The compiler would else compute parts and exchange them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and heads.shape[2] % mesh.shape["model"]:
        return jax.lax.with_sharding_constraint(heads, PartitionSpec("data"))
    return heads


class Block(nnx.Module):
    """Attention and mlp in turn, or one of them, with the norms that the configuration names before and after each."""

    def __init__(
        self, config: ModelConfig, attention: nnx.Module | None, mlp: nnx.Module | None, norm: Callable[[], Any]
    ):
        self.attention: Any = attention
        self.mlp: Any = mlp
        self.before, self.after = "before" in config.norms, "after" in config.norms
        self.scale = config.residual_scale
        self.shared_norm = config.shared_norm
        if self.before and attention is not None:
            self.norm_attention = norm()
        if self.before and mlp is not None and not self.shared_norm:
            self.norm_mlp = norm()
        if self.after:
            self.norm_attention_out, self.norm_mlp_out = norm(), norm()

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the residual stream after this block, [B, T, D]."""
        if self.attention is not None:
            x = x + self.attend(x, shared, tap)
        tap("hook_resid_mid", x)
        if self.mlp is not None:
            x = x + self.feed_forward(x, tap)
        tap("hook_resid_post", x)
        return x

    def attend(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what attention adds to the residual stream, with its norms."""
        if self.before:
            tap("ln1.hook_normalized", self.norm_attention.normalized(x))
            x = self.norm_attention(x)
        tap("hook_attn_in", x)
        added = self.attention(x, shared, tap)
        added = times(self.norm_attention_out(added) if self.after else added, self.scale)
        tap("hook_attn_out", added)
        return added

    def feed_forward(self, x: Float[jax.Array, "B T D"], tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what the mlp adds to the residual stream, with its norms."""
        residual = x
        if self.before:
            norm = self.norm_attention if self.shared_norm else self.norm_mlp
            tap("ln2.hook_normalized", norm.normalized(x))
            x = norm(x)
        tap("hook_mlp_in", x)
        added = self.run_mlp(x, residual, tap)
        added = times(self.norm_mlp_out(added) if self.after else added, self.scale)
        tap("hook_mlp_out", added)
        return added

    def run_mlp(
        self, x: Float[jax.Array, "B T D"], residual: Float[jax.Array, "B T D"], tap: Tap
    ) -> Float[jax.Array, "B T D"]:
        """Return the mlp of x, what the norm made of the residual stream."""
        return self.mlp(x, tap)


class ParallelBlock(Block):
    """Attention and mlp of the same x, with one norm or two, added together: `hook_resid_mid` does not exist."""

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the residual stream after this block, [B, T, D]."""
        from_attention = self.attend(x, shared, tap)
        x = self.feed_forward(x, tap) + from_attention + x
        tap("hook_resid_post", x)
        return x


def attention_of(config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, norm: Callable) -> nnx.Module:
    """Return the attention of this kind of layer, or what it has in place of it."""
    if isinstance(kind.recurrent, Mamba):
        return Mamba2(config, kind, kind.recurrent, dtype)
    if kind.recurrent:
        return GatedDeltaNet(config, kind, dtype)
    return (LatentAttention if kind.latent else Attention)(config, kind, dtype, norm)


def make_block(config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, modules: Modules) -> nnx.Module:
    """Return a block of this kind, made of the family's modules."""
    norm = NORMS[modules.norm]
    mlp = Mixture if kind.experts else MLPS[modules.mlp]
    return (ParallelBlock if config.parallel else Block)(
        config,
        attention_of(config, kind, dtype, norm) if "attention" in kind.parts else None,
        mlp(config, kind, dtype) if "mlp" in kind.parts else None,
        partial(norm, config.width, config.norm_epsilon, dtype),
    )


def block_of(config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, modules: Modules) -> nnx.Module:
    """Return a block of this kind, made by the function that the family names."""
    return resolve_name(modules.block)(config, kind, dtype, modules)


def ends_of(config: ModelConfig, dtype: jnp.dtype, modules: Modules) -> dict[str, Callable[[], nnx.Module]]:
    """Return the functions that make the embedding and the final norm."""
    return {
        "embedding": partial(EMBEDDINGS[modules.embedding], config, dtype),
        "final_norm": partial(NORMS[modules.norm], config.width, config.norm_epsilon, dtype),
    }
