"""Mamba-2 in place of attention: a state for each head that decays, and to which each token adds its value.

In: x [B, T, D] and segment_ids [B, T]. Out: [B, T, D]. Guarantee: neither the state nor the short convolution crosses a
document, wherever in the row it begins; padding gives finite values. Cost: that of `state_scan`, and the projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .config import LayerKind, Mamba, ModelConfig
from .delta_net import ConvolvedHeads, Decay
from .modules import FromHeads, Tap, ToHeads, over_rms
from .state_scan import ScanRows, scan_states

if TYPE_CHECKING:
    from jaxtyping import Float

    from .block import Shared


class BiasedConvolution(ConvolvedHeads):
    """Convolved heads with a bias [H, Dh] before the non-linearity."""

    def __init__(self, heads: int, head_width: int, inputs: int, taps: int, activation: str, dtype: jnp.dtype):
        super().__init__(heads, head_width, inputs, taps, activation, dtype)
        self.filter_bias = nnx.Param(jnp.zeros((heads, head_width), dtype))

    def finished(self, mixed: Float[jax.Array, "B T H Dh"], dtype: jnp.dtype) -> Float[jax.Array, "B T H Dh"]:
        """Return the convolution's sums, float32 [B, T, H, Dh], after bias and non-linearity, in this dtype."""
        return super().finished(mixed + self.filter_bias[...].astype(jnp.float32)[None, None], dtype)


class GroupedNorm(nnx.Module):
    """Heads times silu(gate), divided by their rms over each of `groups` groups of heads, times scale [H, Dh]."""

    def __init__(self, heads: int, head_width: int, groups: int, epsilon: float, dtype: jnp.dtype):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.zeros((heads, head_width), dtype))

    def __call__(
        self, heads: Float[jax.Array, "B T H Dh"], gate: Float[jax.Array, "B T H Dh"]
    ) -> Float[jax.Array, "B T H Dh"]:
        """Return float32 [B, T, H, Dh] of heads and gate [B, T, H, Dh]."""
        gated = heads.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
        normalized = over_rms(gated.reshape(*heads.shape[:2], self.groups, -1), self.epsilon)
        return normalized.reshape(heads.shape) * self.scale[...].astype(jnp.float32)[None, None]


class Mamba2(nnx.Module):
    """The layer. Values have `num_heads` heads; each of the `num_kv_heads` heads of queries and keys serves a few.

    In the words of Mamba, queries are C, keys B and values x; `skip` is D, the part of a value that is read at once.
    """

    def __init__(self, config: ModelConfig, kind: LayerKind, mamba: Mamba, dtype: jnp.dtype):
        heads, groups, width = kind.num_heads, kind.num_kv_heads, kind.head_width
        inputs, taps, activation = config.width, mamba.taps, mamba.activation
        self.queries = BiasedConvolution(groups, mamba.key_width, inputs, taps, activation, dtype)
        self.keys = BiasedConvolution(groups, mamba.key_width, inputs, taps, activation, dtype)
        self.values = BiasedConvolution(heads, width, inputs, taps, activation, dtype)
        self.decay, self.least_step = Decay(heads, inputs, dtype), mamba.least_step
        self.skip = nnx.Param(jnp.zeros((heads,), jnp.float32))
        self.gate = ToHeads(heads, width, inputs, False, dtype)
        self.norm = GroupedNorm(heads, width, groups, config.norm_epsilon, dtype)
        self.o = FromHeads(heads, width, inputs, False, dtype)

    def __call__(self, x: Float[jax.Array, "B T D"], shared: Shared, tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return what the layer adds to the residual stream, [B, T, D], given x [B, T, D]."""
        q, k, v = (part.convolve(part(x), shared.segment_ids) for part in (self.queries, self.keys, self.values))
        steps = jnp.maximum(self.decay.steps(x), self.least_step)
        rows = ScanRows(q, k, v, self.decay.of_steps(steps), steps, shared.segment_ids)
        read = scan_states(rows, corrects=False) + self.skip[...][None, None, :, None] * v.astype(jnp.float32)
        z = self.norm(read, self.gate(x)).astype(x.dtype)  # [B, T, H, Dv]
        tap("attn.hook_z", z.reshape(*x.shape[:2], -1))
        return self.o(z)
