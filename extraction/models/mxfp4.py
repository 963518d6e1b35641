"""MXFP4 weights: values of four bits, in blocks of 32 with a common scale.

In: blocks uint8 [..., G, 16], the lower four bits of a byte first, and scales uint8 [..., G], powers of two from 2^-127
on. Out: float32 [..., G*32]. Guarantee: the values are exact, also when rounded to bfloat16. Cost: one read of the
blocks and one write of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
_EXPONENT_BIAS = 127


def expand_mxfp4(
    blocks: UInt8[jax.Array, "*rows G 16"], scales: UInt8[jax.Array, "*rows G"]
) -> Float[jax.Array, "*rows values"]:
    """Return the values of packed weights, float32 [..., G*32]. Raises ValueError for scales of other blocks."""
    if blocks.shape[:-1] != scales.shape:
        raise ValueError(f"blocks {blocks.shape} do not fit scales {scales.shape}")
    codes = jnp.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, -1)
    exponents = scales.astype(jnp.int32) - _EXPONENT_BIAS
    values = jnp.ldexp(jnp.asarray(_VALUES)[codes], exponents[..., None])
    return values.reshape(*scales.shape[:-1], -1)
