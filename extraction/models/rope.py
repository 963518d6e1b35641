"""Rotary position embedding: the frequencies of each kind, the table for a batch, and the rotation.

In: positions int32 [B, T] and a `Rope`. Out: cos and sin, float32 [B, T, 1, R/2]; R of a head's width are rotated.
Guarantee: the frequencies equal the reference's to one unit in the last place, and rotations are in float32. Cost: one
table for each batch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .config import Rope


def rotation(positions: jax.Array, head_width: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin, float32 [B, T, 1, R/2], of positions [B, T]."""
    frequencies = rope_frequencies(head_width, rope)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate x [B, T, H, Dh]: the first half of its first R columns against the second half of them."""
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def rope_frequencies(head_width: int, rope: Rope) -> np.ndarray:
    """Return the radians for each position, float32 [R/2].

    Computed on the host and rounded where the reference rounds: at position 10,000 a difference in the last place
    rotates by a thousandth, and powers on an accelerator differ by more than that.
    """
    width = head_width if rope.kind == "proportional" else int(head_width * rope.fraction)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "proportional":
        turning = np.arange(len(frequencies)) < int(rope.fraction * width // 2)
        return np.where(turning, frequencies / np.float32(rope.factor), np.float32(0))
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(frequencies, np.float32(1) / (np.float32(rope.factor) * powers), width, rope)
    return frequencies


def _llama3(frequencies: np.ndarray, rope: Rope) -> np.ndarray:
    """Stretch long wavelengths by the factor, keep short ones, and blend those between."""
    low, high, factor = np.array([rope.low_freq_factor, rope.high_freq_factor, rope.factor], np.float32)
    wavelengths = (1 / frequencies) * np.float32(2 * np.pi)
    turns = (1 / wavelengths) * np.float32(rope.original_max_positions)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def _yarn(frequencies: np.ndarray, stretched: np.ndarray, width: int, rope: Rope) -> np.ndarray:
    """Blend both between the dimensions that turn `beta_fast` and `beta_slow` times in the original length."""

    def dimension(turns: float) -> float:
        return width * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(span), 0, 1)
    kept = 1 - ramp
    return stretched * (1 - kept) + frequencies * kept
