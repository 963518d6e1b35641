"""The block of Gemma 4: k and v that layers share, a mixture beside the mlp, a layer's own embedding, a last factor.

In, out and guarantee are those of `block`. k and v that later layers use are kept in `Shared.kept`; a layer that keeps
them is alone of its kind, so it runs once and outside of a scan. Cost: the model's arithmetic.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import attention
from .attention_rule import rule_of
from .block import NORMS, Attention, Block, Shared, whole_if_shared
from .config import LayerKind, ModelConfig
from .families.base import Modules
from .mixture import Mixture
from .modules import GatedMLP, Linear, Tap, over_rms
from .per_layer_embeddings import PerLayerMLP

if TYPE_CHECKING:
    from jaxtyping import Float


class SharedAttention(Attention):
    """Attention whose k and v may be those of an earlier layer, with norms of q, k and v."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, modules: Modules):
        super().__init__(config, kind, dtype, NORMS[modules.norm])
        if kind.kv_of is not None:
            del self.k, self.k_norm
        if kind.kv_of is not None or kind.v_is_k:
            del self.v

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what attention adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q = self.q_norm(self.q(x))
        tap("attn.hook_q", _flat(q))
        if self.kind.kv_of is None:
            k, v = self._keys_and_values(x)
            tap("attn.hook_k", _flat(k))
            tap("attn.hook_v", _flat(v))
            k = self._rotated(k, shared)
        else:
            k, v = shared.kept[self.kind.kv_of]
        if self.kind.kv_kept_as is not None:
            shared.kept[self.kind.kv_kept_as] = k, v
        rule = rule_of(self.config, self.kind, x.shape[1])
        z = attention(self._rotated(q, shared), k, v, shared.segment_ids, rule)  # [B, T, H, Dh]
        tap("attn.hook_z", _flat(z))
        return self.o(z)

    def _rotated(self, heads: jax.Array, shared: Shared) -> jax.Array:
        """Return heads [B, T, H, Dh] with the rotation of this kind of layer, if it has one."""
        return shared.rotation_of(self.kind)(heads) if self.kind.rope else heads

    def _keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return k and v [B, T, K, Dh], normalized; v has no gain."""
        k = self.k(x)
        v = k if self.kind.v_is_k else self.v(x)
        v = over_rms(v, self.config.norm_epsilon).astype(v.dtype)
        return whole_if_shared(self.k_norm(k)), whole_if_shared(v)


def _flat(heads: jax.Array) -> jax.Array:
    return heads.reshape(*heads.shape[:2], -1)


class Router(Linear):
    """x [B, T, D] -> [B, T, E] of x, normalized and scaled; `expert_scale` [E] multiplies the weights of experts."""

    def __init__(self, config: ModelConfig, experts: int, dtype: jnp.dtype):
        super().__init__(config.width, experts, False, dtype)
        self.epsilon = config.norm_epsilon
        self.scale = nnx.Param(jnp.zeros((config.width,), dtype))
        self.expert_scale = nnx.Param(jnp.zeros((experts,), dtype))

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T E"]:
        """Return the router's output, [B, T, E]."""
        scale = self.scale[...].astype(jnp.float32)[None, None] * x.shape[-1] ** -0.5
        return super().__call__((over_rms(x, self.epsilon) * scale).astype(x.dtype))


class ScaledMixture(Mixture):
    """A mixture whose experts each scale their weights."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        super().__init__(config, kind, dtype)
        self.router = Router(config, kind.required_experts.count, dtype)

    def _choose(self, logits: jax.Array, correction: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return weights and experts of each token, the most likely first."""
        weights, chosen = super()._choose(logits, correction)
        return weights * self.router.expert_scale[...].astype(jnp.float32)[chosen], chosen


class Gemma4Block(Block):
    """Attention and mlp in turn, then the layer's own embedding, then one factor for the residual stream."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype, modules: Modules):
        norm = partial(NORMS[modules.norm], config.width, config.norm_epsilon, dtype)
        super().__init__(config, SharedAttention(config, kind, dtype, modules), GatedMLP(config, kind, dtype), norm)
        self.mixture = ScaledMixture(config, kind, dtype) if kind.experts else None
        if kind.experts:
            self.norm_dense_out, self.norm_mixture, self.norm_mixture_out = norm(), norm(), norm()
        self.per_layer = PerLayerMLP(config, config.per_layer, dtype) if config.per_layer else None
        if config.per_layer:
            self.norm_per_layer = norm()
        self.factor = nnx.Param(jnp.zeros((1,), dtype))

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the residual stream after this block, [B, T, D]."""
        x = x + self.attend(x, shared, tap)
        tap("hook_resid_mid", x)
        x = x + self.feed_forward(x, tap)
        if self.per_layer is not None and shared.per_layer is not None:
            embedded = jax.lax.dynamic_index_in_dim(shared.per_layer, shared.layer, keepdims=False)
            x = x + self.norm_per_layer(self.per_layer(x, embedded))
        x = x * self.factor[...][None, None]
        tap("hook_resid_post", x)
        return x

    def run_mlp(
        self, x: Float[jax.Array, "B T D"], residual: Float[jax.Array, "B T D"], tap: Tap
    ) -> Float[jax.Array, "B T D"]:
        """Return the mlp of x [B, T, D], and a mixture's of the residual stream if there is one."""
        added = self.mlp(x, tap)
        if self.mixture is None:
            return added
        mixed = self.mixture.routed(self.norm_mixture(residual), self.mixture.router(residual), tap)
        return self.norm_dense_out(added) + self.norm_mixture_out(mixed)
