"""The flax modules that the families share: linear maps, norms, embeddings, and both kinds of mlp.

In: x [B, T, D] in the compute dtype, as are the parameters. Out: arrays in the dtype of x. Guarantee: products are
accumulated and norms computed in float32. Cost: the model's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .config import LayerKind, ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Tap = Callable[[str, jax.Array], None]  # receives the name and value of a hook point


def _rounded_once(activation: Callable) -> Callable:
    """Return the activation, computed in float32 and rounded once, as torch does."""
    return lambda x: activation(x.astype(jnp.float32)).astype(x.dtype)


_TANH_GELU = _rounded_once(partial(jax.nn.gelu, approximate=True))
ACTIVATIONS = {
    "silu": _rounded_once(jax.nn.silu),
    "gelu": _rounded_once(partial(jax.nn.gelu, approximate=False)),
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": jax.nn.relu,
    "relu2": _rounded_once(lambda x: jnp.square(jax.nn.relu(x))),
}


def times(x: Float[jax.Array, " *axes"], factor: float) -> Float[jax.Array, " *axes"]:
    """Return x times a constant, computed in float32 and rounded once, as torch does."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


class Linear(nnx.Module):
    """x [..., I] -> [..., O]; kernel [I, O]."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: Float[jax.Array, "... I"]) -> Float[jax.Array, "... O"]:
        """Return the linear map of x [..., I], [..., O]."""
        return self.wide(x).astype(x.dtype)

    def wide(self, x: Float[jax.Array, "... I"]) -> Float[jax.Array, "... O"]:
        """Return the linear map of x [..., I] in float32, [..., O]."""
        y = jnp.einsum("...i,io->...o", x, self.kernel[...], preferred_element_type=jnp.float32)
        return y if self.bias is None else y + _last(self.bias, y.ndim)


class ToHeads(nnx.Module):
    """x [B, T, D] -> [B, T, H, Dh]; kernel [H, Dh, D].

    Heads are an axis of the kernel, with D last, because the product then has the layout that attention reads. With
    another layout a TPU copies it twice.
    """

    def __init__(self, heads: int, head_width: int, inputs: int, bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((heads, head_width, inputs), dtype))
        self.bias = nnx.Param(jnp.zeros((heads, head_width), dtype)) if bias else None

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H Dh"]:
        """Return the heads of x [B, T, D], [B, T, H, Dh]."""
        y = jnp.einsum("btd,hkd->bthk", x, self.kernel[...], preferred_element_type=jnp.float32)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)[None, None]
        return y.astype(x.dtype)


class FromHeads(nnx.Module):
    """z [B, T, H, Dh] -> [B, T, D]; kernel [H, Dh, D]."""

    def __init__(self, heads: int, head_width: int, outputs: int, bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((heads, head_width, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, z: Float[jax.Array, "B T H Dh"]) -> Float[jax.Array, "B T D"]:
        """Return the output projection of heads z [B, T, H, Dh], [B, T, D]."""
        y = jnp.einsum("bthk,hkd->btd", z, self.kernel[...], preferred_element_type=jnp.float32)
        if self.bias is not None:
            y += _last(self.bias, y.ndim)
        return y.astype(z.dtype)


def over_rms(x: Float[jax.Array, " *axes"], epsilon: float) -> Float[jax.Array, " *axes"]:
    """Return x / rms(x) over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + epsilon)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, rounded to the dtype of x before the scale, as Llama does."""

    def __init__(self, width: int, epsilon: float, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((width,), dtype))

    def __call__(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x normalized and scaled, in its shape and dtype."""
        return self.normalized(x).astype(x.dtype) * jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))

    def normalized(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x / rms(x) in float32."""
        return over_rms(x, self.epsilon)


class WideRMSNorm(RMSNorm):
    """x / rms(x) * (offset + scale) over the last axis, rounded once at the end."""

    offset = 0.0

    def __call__(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x normalized and scaled, in its shape and dtype."""
        return (self.normalized(x) * (self.offset + _last(self.scale, x.ndim))).astype(x.dtype)


class OffsetRMSNorm(WideRMSNorm):
    """x / rms(x) * (1 + scale), as Gemma does."""

    offset = 1.0


class UnbiasedLayerNorm(nnx.Module):
    """(x - mean) / std * scale over the last axis. The scale is [D], or [H, Dh] for heads of their own scales."""

    def __init__(self, shape: int | tuple[int, ...], epsilon: float, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros(shape, dtype))

    def __call__(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x normalized and scaled, in its shape and dtype."""
        return self.scaled(x).astype(x.dtype)

    def scaled(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x normalized and scaled in float32."""
        return self.normalized(x) * _last(self.scale, x.ndim)

    def normalized(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return (x - mean) / std in float32."""
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        return wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)


class LayerNorm(UnbiasedLayerNorm):
    """(x - mean) / std * scale + bias over the last axis."""

    def __init__(self, width: int, epsilon: float, dtype: jnp.dtype):
        super().__init__(width, epsilon, dtype)
        self.bias = nnx.Param(jnp.zeros((width,), dtype))

    def scaled(self, x: Float[jax.Array, " *axes"]) -> Float[jax.Array, " *axes"]:
        """Return x normalized, scaled and shifted in float32."""
        return super().scaled(x) + _last(self.bias, x.ndim)


class MLP(nnx.Module):
    """x [B, T, D] -> [B, T, D] through one non-linearity."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.width, kind.mlp_width, config.mlp_bias, dtype)
        self.down = Linear(kind.mlp_width, config.width, config.mlp_bias, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the mlp of x, [B, T, D]."""
        before = self.up(x)  # [B, T, F]
        tap("mlp.hook_pre", before)
        inner = self.activation(before)
        tap("mlp.hook_post", inner)
        return self.down(inner)


class GatedMLP(nnx.Module):
    """x [B, T, D] -> [B, T, D]; one linear map is gated by another."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.width, kind.mlp_width, config.mlp_bias, dtype)
        self.up = Linear(config.width, kind.mlp_width, config.mlp_bias, dtype)
        self.down = Linear(kind.mlp_width, config.width, config.mlp_bias, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the mlp of x, [B, T, D]."""
        gate = self.gate(x)  # [B, T, F]
        tap("mlp.hook_pre", gate)
        inner = self.activation(gate) * self.up(x)
        tap("mlp.hook_post", inner)
        return self.down(inner)


class Embedding(nnx.Module):
    """The embedding of models without learned positions."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.width), dtype))

    def __call__(self, tokens: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T D"]:
        """Return x [B, T, D] of tokens and positions [B, T]."""
        return self.table[...][tokens]


class ScaledEmbedding(Embedding):
    """The embedding times sqrt(D), which is rounded to the dtype of the weights first, as Gemma does."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.scale = float(np.sqrt(config.width))

    def __call__(self, tokens: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T D"]:
        """Return x [B, T, D] of tokens and positions [B, T], scaled."""
        x = super().__call__(tokens, positions)
        return x * jnp.asarray(self.scale, x.dtype)


class MultipliedEmbedding(Embedding):
    """The embedding times a factor of the configuration, rounded once, as Granite does."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.scale = config.embedding_scale

    def __call__(self, tokens: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T D"]:
        """Return x [B, T, D] of tokens and positions [B, T], scaled."""
        return times(super().__call__(tokens, positions), self.scale)


class NormalizedEmbedding(Embedding):
    """The embedding after a layer norm, as BLOOM does."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.norm = LayerNorm(config.width, config.norm_epsilon, dtype)

    def __call__(self, tokens: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T D"]:
        """Return x [B, T, D] of tokens and positions [B, T], normalized."""
        return self.norm(super().__call__(tokens, positions))


class PositionEmbedding(Embedding):
    """The embedding of models with learned positions."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.positions = nnx.Param(jnp.zeros((config.max_positions, config.width), dtype))

    def __call__(self, tokens: Int[jax.Array, "B T"], positions: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T D"]:
        """Return x [B, T, D] of tokens and positions [B, T]."""
        return super().__call__(tokens, positions) + self.positions[...][positions]


def _last(parameter: nnx.Param, ndim: int) -> jax.Array:
    """Return the parameter in float32, along the last of `ndim` axes."""
    return jnp.expand_dims(parameter[...].astype(jnp.float32), tuple(range(ndim - parameter.ndim)))
