"""A mixture of experts in place of an mlp.

In: x [B, T, D]. Out: [B, T, D]. A router assigns each token to a few experts. Rows are sorted by expert, and each
expert multiplies its own rows. Guarantee: no token is dropped. Cost: a token is computed by its experts only.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from .config import LayerKind, ModelConfig
from .modules import ACTIVATIONS, GatedMLP, Linear, Tap

_MIN_BLOCK = 64  # rows that are multiplied at once where the loop over blocks runs


class Kernels(nnx.Module):
    """The kernels of all experts, [E, I, O]."""

    def __init__(self, count: int, inputs: int, outputs: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((count, inputs, outputs), dtype))


class Experts(nnx.Module):
    """The kernels of gated mlps."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        count, width = kind.mixture.count, kind.mixture.width or kind.mlp_width
        self.gate = Kernels(count, config.width, width, dtype)
        self.up = Kernels(count, config.width, width, dtype)
        self.down = Kernels(count, width, config.width, dtype)


class Mixture(nnx.Module):
    """x [B, T, D] -> [B, T, D]. On a mesh each device routes its own rows, with its part of every expert's width."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        self.activation, self.mixture = ACTIVATIONS[config.activation], kind.mixture
        self.router = Linear(config.width, kind.mixture.count, False, dtype)
        self.experts = Experts(config, kind, dtype)
        if width := kind.mixture.shared_width:
            self.shared = GatedMLP(config, replace(kind, mlp_width=width), dtype)
            self.shared_gate = Linear(config.width, 1, False, dtype)

    def __call__(self, x: jax.Array, tap: Tap) -> jax.Array:
        """Return the weighted sum of the chosen experts of each token, and the shared expert's part, [B, T, D]."""
        mixed = self.routed(x, self.router(x), tap)
        if self.mixture.shared_width:
            gate = jax.nn.sigmoid(self.shared_gate(x).astype(jnp.float32)).astype(x.dtype)  # [B, T, 1]
            mixed += gate * self.shared(x, lambda name, value: None)
        return mixed

    def routed(self, x: jax.Array, logits: jax.Array, tap: Tap) -> jax.Array:
        """Return the weighted sum of the experts that the router's output, [B, T, E], chooses."""
        kernels = [part.kernel[...] for part in (self.experts.gate, self.experts.up, self.experts.down)]
        run, mesh = self._route, jax.sharding.get_abstract_mesh()
        if mesh.size > 1:
            rows, inner = PartitionSpec("data"), PartitionSpec(None, None, "model")
            axes = (rows, rows, inner, inner, PartitionSpec(None, "model", None))
            run = jax.shard_map(self._route_part, in_specs=axes, out_specs=(rows, rows, rows), check_vma=False)
        mixed, weights, chosen = run(x, logits, *kernels)
        tap("mlp.hook_router_logits", logits)
        tap("mlp.hook_expert_weights", weights)
        tap("mlp.hook_expert_indices", chosen)
        return mixed.astype(x.dtype)

    def _route_part(self, *own: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mixed, weights, chosen = self._route(*own)
        return jax.lax.psum(mixed, "model"), weights, chosen

    def _route(self, x: jax.Array, logits: jax.Array, *kernels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the weighted sum of the chosen experts, float32 [B, T, D], and weights and experts of each token."""
        weights, chosen = self._choose(logits)
        return self._mix(x, weights, chosen, *kernels), weights, chosen

    def _mix(self, x: jax.Array, weights: jax.Array, chosen: jax.Array, *kernels: jax.Array) -> jax.Array:
        """Return the weighted sum of the chosen experts.

        Args:
            x: [B, T, D].
            weights: float32 [B, T, k].
            chosen: int32 [B, T, k], the experts, the best first.
            kernels: gate and up [E, D, F], down [E, F, D].

        Returns:
            float32 [B, T, D].
        """
        gate, up, down = kernels
        k, experts = chosen.shape[-1], chosen.reshape(-1)  # [M], M = B*T*k
        order = jnp.argsort(experts)  # stable, so that the rows of an expert stay in the order of tokens
        sizes = (experts[:, None] == jnp.arange(len(gate))[None, :]).sum(axis=0)
        rows = x.reshape(-1, x.shape[-1])[order // k]  # [M, D]
        inner = self.activation(grouped_dot(rows, gate, sizes)) * grouped_dot(rows, up, sizes)  # [M, F]
        rows = grouped_dot(inner, down, sizes)
        # Gathered, best expert first: additions in place have no fixed order on some devices.
        places = jnp.argsort(order).reshape(chosen.shape)
        parts = (rows[places[..., i]].astype(jnp.float32) * weights[..., i, None] for i in range(k))
        return jnp.asarray(sum(parts))

    def _choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return weights, float32 [B, T, k], and experts, int32 [B, T, k], of each token, the best first."""
        chances = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(chances, self.mixture.per_token)
        if self.mixture.normalized:
            weights /= weights.sum(axis=-1, keepdims=True)
        return weights, chosen


def grouped_dot(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiply rows [M, I], sorted by group, by the kernel of their group.

    A TPU has a kernel for it. Other compilers would multiply all rows by all kernels, so they get a loop.

    Args:
        rows: [M, I].
        kernels: [E, I, O].
        sizes: [E], rows of each group, M in total.

    Returns:
        [M, O].
    """
    return jax.lax.platform_dependent(rows, kernels, sizes, tpu=jax.lax.ragged_dot, default=dot_by_blocks)


def dot_by_blocks(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Compute `grouped_dot` block by block, about eight to a group, so that few products are wasted.

    A group's last block covers rows of the next group, whose own blocks come later and overwrite them.
    """
    block = max(_MIN_BLOCK, len(rows) // (8 * len(sizes)))
    last_block = jnp.cumsum(-(-sizes // block))
    first_row = jnp.cumsum(sizes) - sizes
    padded = jnp.pad(rows, ((0, block), (0, 0)))

    def multiply(number: jax.Array, out: jax.Array) -> jax.Array:
        group = jnp.searchsorted(last_block, number, side="right")
        done = jnp.where(group > 0, last_block[group - 1], 0)
        start = first_row[group] + (number - done) * block
        part = jax.lax.dynamic_slice_in_dim(padded, start, block)
        product = jnp.einsum("mi,io->mo", part, kernels[group], preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(out, product.astype(out.dtype), start, 0)

    out = jnp.zeros((len(padded), kernels.shape[-1]), rows.dtype)
    return jax.lax.fori_loop(0, last_block[-1], multiply, out)[: len(rows)]
