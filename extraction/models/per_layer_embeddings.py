"""Embeddings of tokens that each layer has of its own, beside the model's, and the mlp that adds one to a layer.

In: tokens [B, T] and x [B, T, D] after the embedding. Out: [L, B, T, d] for the L layers that run. Guarantee: a layer
that does not run has no part in the parameters. Cost: one gather and one product for each layer, and memory for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .config import ModelConfig, PerLayer
from .modules import ACTIVATIONS, Linear, ScaledEmbedding, WideRMSNorm

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class PerLayerInputs(nnx.Module):
    """For each layer the sum of a table's entry and of x, mapped and normalized: table [L, V, d], kernel [L, D, d]."""

    def __init__(self, config: ModelConfig, per_layer: PerLayer, dtype: jnp.dtype):
        layers, width = config.num_layers, per_layer.width
        self.table = nnx.Param(jnp.zeros((layers, per_layer.vocab_size, width), dtype))
        self.kernel = nnx.Param(jnp.zeros((layers, config.width, width), dtype))
        self.norm = WideRMSNorm(width, config.norm_epsilon, dtype)

    def __call__(self, tokens: Int[jax.Array, "B T"], x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "L B T d"]:
        """Return [L, B, T, d] of tokens [B, T] and x [B, T, D]."""
        of_x = jnp.einsum("btd,lde->lbte", x, self.kernel[...], preferred_element_type=jnp.float32)
        of_x = self.norm((of_x * x.shape[-1] ** -0.5).astype(x.dtype))
        of_token = self.table[...][:, tokens]
        of_token *= jnp.asarray(of_token.shape[-1] ** 0.5, x.dtype)
        return ((of_x.astype(jnp.float32) + of_token.astype(jnp.float32)) * 2**-0.5).astype(x.dtype)


class PerLayerEmbedding(ScaledEmbedding):
    """The scaled embedding of a model whose layers may have embeddings of their own."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.per_layer = PerLayerInputs(config, config.per_layer, dtype) if config.per_layer else None

    def of_layers(
        self, tokens: Int[jax.Array, "B T"], x: Float[jax.Array, "B T D"]
    ) -> Float[jax.Array, "L B T d"] | None:
        """Return [L, B, T, d] of tokens [B, T] and their embedding x [B, T, D], or None if layers have none."""
        return self.per_layer(tokens, x) if self.per_layer else None


class PerLayerMLP(nnx.Module):
    """x [B, T, D] -> [B, T, D] through the width of a layer's embedding, which is multiplied by a gate of x."""

    def __init__(self, config: ModelConfig, per_layer: PerLayer, dtype: jnp.dtype):
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.width, per_layer.width, False, dtype)
        self.down = Linear(per_layer.width, config.width, False, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], embedded: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B T D"]:
        """Return [B, T, D] of x [B, T, D] and the layer's embedding [B, T, d]."""
        return self.down(self.activation(self.gate(x)) * embedded)
