"""Rotary position embedding: the frequencies of each kind, the table for a batch, and the rotation.

In: positions and lengths of documents, int32 [B, T], and a `Rope`. Out: cos and sin, float32 [B, T, 1, R/2]; R of a
head's width are rotated. Guarantee: the frequencies equal the reference's to one unit in the last place, and rotations
are in float32. Where frequencies depend on the length of a document, each document in a row has those that it has
alone. Cost: one table for each batch; with dynamic NTK a constant of R/2 for each length above the original positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from .config import QueryGrowth, Rope

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def rotation(
    positions: Int[jax.Array, "B T"], segment_ids: Int[jax.Array, "B T"], head_width: int, rope: Rope
) -> tuple[Float[jax.Array, "B T 1 half"], Float[jax.Array, "B T 1 half"]]:
    """Return cos and sin, float32 [B, T, 1, R/2], of positions and segments [B, T]."""
    lengths = _lengths(rope, positions.shape[1])
    table = np.stack([rope_frequencies(head_width, rope, length) for length in lengths])
    if len(lengths) == 1:
        frequencies = jnp.asarray(table)[None]  # [1, 1, R/2]
    else:
        rows = jnp.clip(document_lengths(positions, segment_ids) - lengths[0], 0, len(lengths) - 1)
        frequencies = jnp.asarray(table)[rows]  # [B, T, R/2]
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies[:, :, None]
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def _lengths(rope: Rope, longest: int) -> range:
    """Return the lengths of documents that have frequencies of their own, up to the longest.

    Shorter documents have those of the first length, longer ones those of the last.
    """
    first = rope.original_max_positions
    end = {"dynamic": longest, "longrope": min(longest, first + 1)}.get(rope.kind, first)
    return range(first, max(first, end) + 1)


def document_lengths(positions: Int[jax.Array, "B T"], segment_ids: Int[jax.Array, "B T"]) -> Int[jax.Array, "B T"]:
    """Return the number of tokens of the document of each token, int32 [B, T]; of padding any number."""
    place = jnp.arange(positions.shape[1], dtype=jnp.int32)[None]
    following = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    last = jnp.where(segment_ids != following, place, positions.shape[1])
    return jax.lax.cummin(last, axis=1, reverse=True) - place + positions + 1


def query_scale(positions: Int[jax.Array, "B T"], growth: QueryGrowth) -> Float[jax.Array, "B T 1 1"]:
    """Return the factor of q at positions [B, T], float32 [B, T, 1, 1]."""
    steps = ((positions + growth.ahead) // growth.every).astype(jnp.float32)
    return (1 + growth.rate * jnp.log(1 + steps))[..., None, None]


def rotate(
    x: Float[jax.Array, "B T H Dh"],
    cos: Float[jax.Array, "B T 1 half"],
    sin: Float[jax.Array, "B T 1 half"],
    interleaved: bool = False,
) -> Float[jax.Array, "B T H Dh"]:
    """Rotate x [B, T, H, Dh]: the first half of its first R columns against the second half of them.

    With interleaved columns the even ones are rotated against the odd ones, and come out in the order even, odd. q and
    k have the same order then, so their products do not depend on it.
    """
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = jnp.split(wide, [half, 2 * half], axis=-1)
    if interleaved:
        first, second = wide[..., : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def rope_frequencies(head_width: int, rope: Rope, length: int = 0) -> Float[np.ndarray, " half"]:
    """Return the radians for each position in a document of this length, float32 [R/2].

    Computed on the host and rounded where the reference rounds: at position 10,000 a difference in the last place
    rotates by a thousandth, and powers on an accelerator differ by more than that.
    """
    width = head_width if rope.kind == "proportional" else int(head_width * rope.fraction)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    is_long = length > rope.original_max_positions
    theta = _dynamic_theta(width, rope, length) if rope.kind == "dynamic" and is_long else rope.theta
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "proportional":
        turning = np.arange(len(frequencies)) < int(rope.fraction * width // 2)
        return np.where(turning, frequencies / np.float32(rope.factor), np.float32(0))
    if rope.kind == "longrope":
        factors = np.array(rope.long_factors if is_long else rope.short_factors, np.float32)
        return np.float32(1) / (factors * powers)
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(frequencies, np.float32(1) / (np.float32(rope.factor) * powers), width, rope)
    return frequencies


def _dynamic_theta(width: int, rope: Rope, length: int) -> np.float32:
    """Return the base for a document longer than the original positions."""
    growth = np.float32(rope.factor) * np.float32(length) / np.float32(rope.original_max_positions)
    stretch = np.power(growth - np.float32(rope.factor - 1), np.float32(width / (width - 2)))
    return np.float32(rope.theta) * stretch


def _llama3(frequencies: np.ndarray, rope: Rope) -> np.ndarray:
    """Stretch long wavelengths by the factor, keep short ones, and blend those between."""
    low, high, factor = np.array([rope.low_freq_factor, rope.high_freq_factor, rope.factor], np.float32)
    wavelengths = (1 / frequencies) * np.float32(2 * np.pi)
    turns = (1 / wavelengths) * np.float32(rope.original_max_positions)
    blend = np.clip((turns - low) / (high - low or np.float32(1e-6)), 0, 1)
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
