"""Means over the windows of a row, on the device.

In: values [B, T, width], segment_ids and `pooled` [B, T]. Out: float32 [B, T, width], at each token the mean over the
pooled tokens of its window up to it; a window's last token has the window's mean. Guarantee: no value of one window
enters another, not even NaN. Sums are made by doubling, 1, 2, 4, ... tokens, in float32: their rounding grows with
log2(T), and their order is the same on every device. Cost: log2(T) passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def window_means(
    values: Float[jax.Array, "B T width"], segment_ids: Int[jax.Array, "B T"], pooled: Bool[jax.Array, "B T"]
) -> Float[jax.Array, "B T width"]:
    """Return running means over windows, float32 [B, T, width]; 0 where a window has no pooled token yet.

    Args:
        values: [B, T, width].
        segment_ids: [B, T].
        pooled: bool [B, T], the tokens that are part of a mean.
    """
    totals = _running_sums(jnp.where(pooled[:, :, None], values.astype(jnp.float32), 0.0), segment_ids)
    counts = _running_sums(pooled[:, :, None].astype(jnp.float32), segment_ids)
    return totals / jnp.maximum(counts, 1.0)


def _running_sums(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Return sums over the tokens of a window up to each; each round doubles the number of tokens in a sum."""
    place = jnp.arange(segment_ids.shape[1])[None, :]

    def double(round_number: int, sums: jax.Array) -> jax.Array:
        reach = 1 << round_number
        same = (segment_ids == jnp.roll(segment_ids, reach, 1)) & (place >= reach)
        return sums + jnp.where(same[:, :, None], jnp.roll(sums, reach, 1), 0.0)

    return jax.lax.fori_loop(0, (segment_ids.shape[1] - 1).bit_length(), double, values)
