"""Gated DeltaNet in place of attention: a state for each head that a rule corrects token by token.

In: x [B, T, D] and segment_ids [B, T]. Out: [B, T, D]. Guarantee: neither the state nor the short convolution crosses a
document, wherever in the row it begins; padding gives finite values. Cost: that of `state_scan`, and the projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .config import LayerKind, ModelConfig
from .modules import ACTIVATIONS, FromHeads, RMSNorm, Tap, ToHeads
from .state_scan import ScanRows, scan_states

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .block import Shared


class ConvolvedHeads(ToHeads):
    """x [B, T, D] -> [B, T, H, Dh]; the heads of a token are mixed with those of the tokens before it.

    `filter` [H, Dh, n] weighs the last n tokens of the document, the token itself last. `activation` follows.
    """

    def __init__(self, heads: int, head_width: int, inputs: int, taps: int, activation: str, dtype: jnp.dtype):
        super().__init__(heads, head_width, inputs, False, dtype)
        self.activation = ACTIVATIONS[activation]
        self.filter = nnx.Param(jnp.zeros((heads, head_width, taps), dtype))

    def convolve(
        self, heads: Float[jax.Array, "B T H Dh"], segment_ids: Int[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T H Dh"]:
        """Return the heads [B, T, H, Dh] after the convolution inside each document and the non-linearity."""
        weights, mixed = self.filter[...].astype(jnp.float32), jnp.zeros(heads.shape, jnp.float32)
        taps = weights.shape[-1]
        for back in range(min(taps, heads.shape[1])):
            same = _earlier(segment_ids, back, -1) == segment_ids
            part = _earlier(heads, back, 0).astype(jnp.float32) * weights[None, None, :, :, taps - 1 - back]
            mixed += jnp.where(same[:, :, None, None], part, 0.0)
        return self.finished(mixed, heads.dtype)

    def finished(self, mixed: Float[jax.Array, "B T H Dh"], dtype: jnp.dtype) -> Float[jax.Array, "B T H Dh"]:
        """Return the convolution's sums, float32 [B, T, H, Dh], after the non-linearity, in this dtype."""
        return self.activation(mixed.astype(dtype))


class PerHead(nnx.Module):
    """x [B, T, D] -> float32 [B, T, H], one number for each head; kernel [H, D]."""

    def __init__(self, heads: int, inputs: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((heads, inputs), dtype))

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H"]:
        """Return the numbers of x [B, T, D], float32 [B, T, H]."""
        return jnp.einsum("btd,hd->bth", x, self.kernel[...], preferred_element_type=jnp.float32)


class Decay(PerHead):
    """The logarithm of the factor by which each token's state decays, at most 0. `log_rate` and `bias` are float32."""

    def __init__(self, heads: int, inputs: int, dtype: jnp.dtype):
        super().__init__(heads, inputs, dtype)
        self.log_rate = nnx.Param(jnp.zeros((heads,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((heads,), jnp.float32))

    def __call__(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H"]:
        """Return the log decays of x [B, T, D], float32 [B, T, H]."""
        return self.of_steps(self.steps(x))

    def steps(self, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T H"]:
        """Return the time step of each token, float32 [B, T, H], above 0."""
        return jax.nn.softplus(super().__call__(x) + self.bias[...][None, None])

    def of_steps(self, steps: Float[jax.Array, "B T H"]) -> Float[jax.Array, "B T H"]:
        """Return the log decays over these time steps."""
        return -jnp.exp(self.log_rate[...])[None, None] * steps


class GatedDeltaNet(nnx.Module):
    """The layer. Values have `num_heads` heads; each of the `num_kv_heads` heads of queries and keys serves a few."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        heads, key_heads, width, delta = kind.num_heads, kind.num_kv_heads, kind.head_width, kind.required_recurrence
        inputs, taps, activation = config.width, delta.taps, config.activation
        self.queries = ConvolvedHeads(key_heads, delta.key_width, inputs, taps, activation, dtype)
        self.keys = ConvolvedHeads(key_heads, delta.key_width, inputs, taps, activation, dtype)
        self.values = ConvolvedHeads(heads, width, inputs, taps, activation, dtype)
        self.rate, self.decay = PerHead(heads, config.width, dtype), Decay(heads, config.width, dtype)
        self.gate = ToHeads(heads, width, config.width, False, dtype)
        self.norm = RMSNorm(width, config.norm_epsilon, dtype)
        self.o = FromHeads(heads, width, config.width, False, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what the layer adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q, k, v = (part.convolve(part(x), shared.segment_ids) for part in (self.queries, self.keys, self.values))
        rows = ScanRows(q, k, v, self.decay(x), jax.nn.sigmoid(self.rate(x)), shared.segment_ids)
        read = scan_states(rows, corrects=True)
        scale = self.norm.scale[...].astype(jnp.float32)[None, None, None]
        gate = jax.nn.silu(self.gate(x).astype(jnp.float32))
        z = (self.norm.normalized(read) * scale * gate).astype(x.dtype)  # [B, T, H, Dv]
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)


def _earlier(part: jax.Array, back: int, fill: int) -> jax.Array:
    """Return [B, T, ...] with the row of `back` tokens before in the place of each token, `fill` before the first."""
    length = part.shape[1]
    return jnp.pad(part, ((0, 0), (back, 0), *((0, 0),) * (part.ndim - 2)), constant_values=fill)[:, :length]
