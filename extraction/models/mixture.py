"""A mixture of experts in place of an mlp.

In: x [B, T, D]. Out: [B, T, D]. A router assigns each token to a few experts, and shared experts see all. Rows are
sorted by expert, and each expert multiplies its own rows. Guarantee: no token is dropped. Cost: a token is computed by
its experts only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from .config import Experts, Groups, LayerKind, ModelConfig
from .modules import ACTIVATIONS, MLP, GatedMLP, Linear, Tap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_MIN_BLOCK = 64  # rows that are multiplied at once where the loop over blocks runs


class Kernels(nnx.Module):
    """One linear map of all experts: kernels [E, I, O], and biases [E, O] or none."""

    def __init__(self, experts: Experts, inputs: int, outputs: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((experts.count, inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((experts.count, outputs), dtype)) if experts.biases else None


class ExpertMlps(nnx.Module):
    """The kernels of mlps."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        experts = kind.required_experts
        width = experts.width or kind.mlp_width
        self.gate = Kernels(experts, config.width, width, dtype) if experts.gated else None
        self.up = Kernels(experts, config.width, width, dtype)
        self.down = Kernels(experts, width, config.width, dtype)


class Mixture(nnx.Module):
    """x [B, T, D] -> [B, T, D]. On a mesh each device routes its own rows, with its part of every expert's width."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype):
        mixture = kind.required_experts
        self.activation, self.mixture = ACTIVATIONS[config.activation], mixture
        self.router = Linear(config.width, mixture.count, mixture.biases, dtype)
        self.experts = ExpertMlps(config, kind, dtype)
        # In float32 whatever the weights are: rounded, it would change which experts are chosen.
        self.correction = nnx.Param(jnp.zeros((mixture.count,), jnp.float32)) if mixture.corrected else None
        if width := mixture.shared_width:
            self.shared = (GatedMLP if mixture.gated else MLP)(config, replace(kind, mlp_width=width), dtype)
        self.shared_gate = Linear(config.width, 1, False, dtype) if mixture.shared_gate else None

    def __call__(self, x: Float[jax.Array, "B T D"], tap: Tap) -> Float[jax.Array, "B T D"]:
        """Return the weighted sum of the chosen experts of each token, [B, T, D]."""
        return self.routed(x, self.router.wide(x), tap)

    def routed(
        self, x: Float[jax.Array, "B T D"], logits: Float[jax.Array, "B T E"], tap: Tap
    ) -> Float[jax.Array, "B T D"]:
        """Return the weighted sum of the experts that the router's output, [B, T, E], chooses."""
        up, down = self.experts.up, self.experts.down
        inputs = [part for part in (self.experts.gate, up) if part is not None]
        kernels = [part.kernel[...] for part in (*inputs, down)]
        biases = [part.bias[...] for part in inputs if part.bias is not None]
        run, mesh = self._route, jax.sharding.get_abstract_mesh()
        if mesh.size > 1:
            rows, inner = PartitionSpec("data"), PartitionSpec(None, None, "model")
            experts = [*[inner] * len(inputs), PartitionSpec(None, "model", None)], PartitionSpec(None, "model")
            axes = (rows, (rows, PartitionSpec()), *experts)
            run = jax.shard_map(self._route_part, in_specs=axes, out_specs=(rows, rows, rows), check_vma=False)
        correction = None if self.correction is None else self.correction[...]
        mixed, weights, chosen = run(x, (logits, correction), kernels, biases)
        if down.bias is not None:
            mixed += weighted_sum(weights, (down.bias[...][chosen[..., i]] for i in range(chosen.shape[-1])))
        tap("mlp.hook_router_logits", logits)
        tap("mlp.hook_expert_weights", weights)
        tap("mlp.hook_expert_indices", chosen)
        mixed = mixed.astype(x.dtype)
        return mixed + self._of_shared(x) if self.mixture.shared_width else mixed

    def _of_shared(self, x: jax.Array) -> jax.Array:
        """Return the output of the mlp that sees every token, [B, T, D]."""
        shared = self.shared(x, lambda *tapped: None)
        return shared if self.shared_gate is None else jax.nn.sigmoid(self.shared_gate(x)) * shared

    def _route_part(self, *own: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        mixed, weights, chosen = self._route(*own)
        return jax.lax.psum(mixed, "model"), weights, chosen

    def _route(
        self,
        x: jax.Array,
        routed: tuple[jax.Array, jax.Array | None],
        kernels: list[jax.Array],
        biases: list[jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the weighted sum of the chosen experts, float32 [B, T, D], and weights and experts of each token."""
        weights, chosen = self._choose(*routed)
        return self._mix(x, weights, chosen, kernels, biases), weights, chosen

    def _mix(
        self, x: jax.Array, weights: jax.Array, chosen: jax.Array, kernels: list[jax.Array], biases: list[jax.Array]
    ) -> jax.Array:
        """Return the weighted sum of the chosen experts, without the bias of their last linear map.

        Args:
            x: [B, T, D].
            weights: float32 [B, T, k].
            chosen: int32 [B, T, k], the experts, the best first.
            kernels: gate, if there is one, and up [E, D, F], down [E, F, D].
            biases: of all but down [E, F], or none.

        Returns:
            float32 [B, T, D].
        """
        k, experts = chosen.shape[-1], chosen.reshape(-1)  # [M], M = B*T*k
        order = jnp.argsort(experts)  # stable, so that the rows of an expert stay in the order of tokens
        sizes = (experts[:, None] == jnp.arange(self.mixture.count)[None, :]).sum(axis=0)
        rows = x.reshape(-1, x.shape[-1])[order // k]  # [M, D]
        if self.mixture.scaled_input:
            rows *= weights.reshape(-1)[order][:, None].astype(rows.dtype)
            weights = jnp.ones_like(weights)
        inner = [grouped_dot(rows, kernel, sizes) for kernel in kernels[:-1]]  # [M, F]
        if biases:
            inner = [part + bias[experts[order]] for part, bias in zip(inner, biases, strict=True)]
        rows = grouped_dot(self._product(*inner), kernels[-1], sizes)
        # Gathered, best expert first: additions in place have no fixed order on some devices.
        places = jnp.argsort(order).reshape(chosen.shape)
        return weighted_sum(weights, (rows[places[..., i]] for i in range(k)))

    def _product(self, gate: jax.Array, up: jax.Array | None = None) -> jax.Array:
        """Return the product of an expert's gate, after the non-linearity, and its other linear map if any, [M, F]."""
        clamp = self.mixture.gate
        if up is None:
            return self.activation(gate)
        if clamp is None:
            return self.activation(gate) * up
        wide, upper = jnp.minimum(gate.astype(jnp.float32), clamp.limit), jnp.clip(up, -clamp.limit, clamp.limit)
        upper = (upper + 1).astype(jnp.float32)
        return (upper * wide * jax.nn.sigmoid(clamp.alpha * wide)).astype(gate.dtype)

    def _choose(self, logits: jax.Array, correction: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return weights, float32 [B, T, k], and experts, int32 [B, T, k], of each token, the largest weight first."""
        mixture, k, logits = self.mixture, self.mixture.per_token, logits.astype(jnp.float32)
        scores = jax.nn.sigmoid(logits) if mixture.sigmoid else jax.nn.softmax(logits, axis=-1)
        # Not by a sigmoid, which is 1 for all large numbers.
        ranked = logits if mixture.sigmoid else scores
        ranked = ranked if correction is None else scores + correction[None, None]
        _, chosen = jax.lax.top_k(_limited(ranked, mixture.groups) if mixture.groups else ranked, k)
        weights, order = jax.lax.top_k(jnp.take_along_axis(scores, chosen, axis=-1), k)
        if mixture.normalized:
            weights /= weights.sum(axis=-1, keepdims=True)
        return weights * mixture.scale, jnp.take_along_axis(chosen, order, axis=-1)


def _limited(ranked: jax.Array, groups: Groups) -> jax.Array:
    """Return the ranked scores [B, T, E], with -inf for those of experts outside the chosen groups."""
    grouped = ranked.reshape(*ranked.shape[:2], groups.count, -1)
    best = jax.lax.top_k(grouped, groups.best)[0].sum(axis=-1)  # [B, T, G]
    _, chosen = jax.lax.top_k(best, groups.chosen)
    kept = (chosen[..., None] == jnp.arange(groups.count)[None, None, None]).any(axis=-2)
    return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(ranked.shape)


def weighted_sum(
    weights: Float[jax.Array, "B T k"], parts: Iterable[Float[jax.Array, "B T D"]]
) -> Float[jax.Array, "B T D"]:
    """Return the sum of k parts [B, T, D] with weights [B, T, k], float32, the first part first."""
    return jnp.asarray(sum(part.astype(jnp.float32) * weights[..., i, None] for i, part in enumerate(parts)))


def grouped_dot(
    rows: Float[jax.Array, "M I"], kernels: Float[jax.Array, "E I O"], sizes: Int[jax.Array, " E"]
) -> Float[jax.Array, "M O"]:
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


def dot_by_blocks(
    rows: Float[jax.Array, "M I"], kernels: Float[jax.Array, "E I O"], sizes: Int[jax.Array, " E"]
) -> Float[jax.Array, "M O"]:
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
