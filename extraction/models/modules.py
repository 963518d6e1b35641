"""The flax modules that the architectures share, and rotary embedding.

Parameters are in the compute dtype; norms and rotations compute in float32. Shapes: x [B, T, D].
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .config import Rope

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class Linear(nnx.Module):
    """x [..., I] -> [..., O]; kernel [I, O]."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("...i,io->...o", x, self.kernel[...], preferred_element_type=jnp.float32)
        if self.bias is not None:
            y += jnp.expand_dims(self.bias[...].astype(jnp.float32), tuple(range(y.ndim - 1)))
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis."""

    def __init__(self, width: int, epsilon: float, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((width,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis."""

    def __init__(self, width: int, epsilon: float, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((width,), dtype))
        self.bias = nnx.Param(jnp.zeros((width,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        axes = tuple(range(x.ndim - 1))
        scale, bias = (jnp.expand_dims(p[...].astype(jnp.float32), axes) for p in (self.scale, self.bias))
        return (wide * scale + bias).astype(x.dtype)


def rotation(positions: jax.Array, head_width: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, Dh/2], for positions [B, T]."""
    frequencies = rope_frequencies(head_width, rope)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(head_width: int, rope: Rope) -> np.ndarray:
    """Turns in radians for each position, float32 [Dh/2].

    On the host, and rounded where the reference rounds: at position 10,000 a difference in the last place is a
    rotation by a thousandth, and powers on an accelerator differ by more than that.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        # Long wavelengths are stretched by the factor, short ones kept, those between are blended.
        low, high, factor = np.float32([rope.low_freq_factor, rope.high_freq_factor, rope.factor])
        wavelengths = (1 / frequencies) * np.float32(2 * np.pi)
        turns = (1 / wavelengths) * np.float32(rope.original_max_positions)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - blend) * frequencies / factor + blend * frequencies
    return frequencies


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, T, H, Dh] with its first and second half of Dh rotated against each other."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
