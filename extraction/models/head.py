"""The loss of each token: -log p of the next token of its record.

In: x [B, T, D] after the final norm, the head's table [V, D], and targets int32 [B, T], the next tokens. Out: float32
[B, T, 1], NaN where a token has no next one (target -1). Guarantee: no tensor of [B, T, V] exists; sums are in float32.
Cost: the head's product once, in blocks of the vocabulary; on a mesh each device of a group has a part of it, and
exchanges three numbers for each token.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from .config import ModelConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_BLOCK_ELEMENTS = 1 << 25  # logits of one block that are in memory on a device


class Head(nnx.Module):
    """The table [V, D] of the head, and its bias. A tied head has a copy of the embedding, split by the vocabulary."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.width), dtype))
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), dtype)) if config.head_bias else None


class Sums(NamedTuple):
    """Over the logits of a part of the vocabulary: maximum, sum of exp(logit - maximum), the target's logit or 0."""

    largest: Float[jax.Array, "B T"]
    total: Float[jax.Array, "B T"]
    target: Float[jax.Array, "B T"]


def token_losses(
    x: Float[jax.Array, "B T D"],
    table: Float[jax.Array, "V D"],
    bias: Float[jax.Array, " V"] | None,
    targets: Int[jax.Array, "B T"],
    config: ModelConfig,
) -> Float[jax.Array, "B T 1"]:
    """Return -log p of the targets, float32 [B, T, 1]; NaN for the target -1.

    Args:
        x: [B, T, D], normalized.
        table: [V, D].
        bias: [V] or None.
        targets: int32 [B, T].
        config: scale and softcap of the logits.
    """
    bias = jnp.zeros(len(table), table.dtype) if bias is None else bias
    mesh = jax.sharding.get_abstract_mesh()
    sums = partial(_sums, config=config)
    if mesh.size > 1 and mesh.shape["model"] > 1 and len(table) % mesh.shape["model"] == 0:
        rows, part = PartitionSpec("data"), PartitionSpec("model")
        specs = (rows, part, part, rows)
        sums = jax.shard_map(partial(_sums_of_part, config=config), in_specs=specs, out_specs=rows, check_vma=False)
    found = sums(x, table, bias, targets)
    losses = found.largest + jnp.log(found.total) - found.target
    return jnp.where(targets < 0, jnp.nan, losses)[..., None]


def _sums_of_part(x: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array, config: ModelConfig) -> Sums:
    """Return the sums over the vocabulary of all devices of a group, each of which has a part of it."""
    own = _sums(x, table, bias, targets - jax.lax.axis_index("model") * len(table), config)
    largest = jax.lax.pmax(own.largest, "model")
    total = jax.lax.psum(own.total * jnp.exp(own.largest - largest), "model")
    return Sums(largest, total, jax.lax.psum(own.target, "model"))


def _sums(x: jax.Array, table: jax.Array, bias: jax.Array, targets: jax.Array, config: ModelConfig) -> Sums:
    """Return the sums over a vocabulary; a target outside it has the logit 0."""
    vocab, tokens = len(table), x.shape[0] * x.shape[1]
    block = min(vocab, max(128, _BLOCK_ELEMENTS // tokens // 128 * 128))

    def add(number: jax.Array, sums: Sums) -> Sums:
        start = jnp.minimum(number * block, vocab - block)
        entries = start + jnp.arange(block)
        rows, offsets = (jax.lax.dynamic_slice_in_dim(part, start, block) for part in (table, bias))
        logits = jnp.einsum("btd,vd->btv", x, rows, preferred_element_type=jnp.float32)
        logits = (logits + offsets.astype(jnp.float32)[None, None]) * config.logit_scale
        if config.logit_softcap is not None:
            logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
        is_new = (entries >= number * block)[None, None]  # the last block begins inside the one before
        logits = jnp.where(is_new, logits, -jnp.inf)
        largest = jnp.maximum(sums.largest, logits.max(axis=-1))
        total = sums.total * jnp.exp(sums.largest - largest) + jnp.exp(logits - largest[..., None]).sum(axis=-1)
        is_target = is_new & (entries[None, None] == targets[..., None])
        return Sums(largest, total, sums.target + jnp.where(is_target, logits, 0.0).sum(axis=-1))

    zeros = jnp.zeros(x.shape[:2], jnp.float32)
    return jax.lax.fori_loop(0, -(-vocab // block), add, Sums(zeros - jnp.inf, zeros, zeros))
