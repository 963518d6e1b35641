"""Attention on a TPU: jax's splash kernel, which keeps the scores on the chip and skips blocks without visible pairs.

In, out and guarantee are those of `attention.attention`, for any T: rows are padded to the kernel's blocks. On a mesh
each device computes its own rows and heads. Cost: about half of the T x T scores, or those of the window, in whole
blocks (`tiling.multiplied_pairs`), so for T=2048 a quarter more. The kernel reads heads before tokens, the layout of
the products before it: no copy.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from .attention_rule import AttentionRule
from .devices import current_platform
from .tiling import block_of

_ROWS_AND_HEADS = PartitionSpec("data", None, "model", None)


def attend_splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    rule: AttentionRule,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Compute attention with the kernel; on another platform than a TPU it is run in Python."""
    mesh = jax.sharding.get_abstract_mesh()
    local = partial(_attend_local, rule=rule)
    if mesh.size <= 1:
        return local(q, k, v, segment_ids, sinks)
    copies = -(-mesh.shape["model"] // k.shape[2])  # with fewer key-value heads than devices, each device gets a copy
    k, v = (jnp.repeat(part, copies, axis=2) if copies > 1 else part for part in (k, v))
    in_specs = (_ROWS_AND_HEADS, _ROWS_AND_HEADS, _ROWS_AND_HEADS, PartitionSpec("data", None), PartitionSpec("model"))
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=_ROWS_AND_HEADS, check_vma=False)
    return mapped(q, k, v, segment_ids, sinks)


def _attend_local(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sinks: jax.Array | None, rule: AttentionRule
) -> jax.Array:
    """Compute attention on one device, [B, T, H, Dh]."""
    length, heads = q.shape[1:3]
    block = block_of(length)
    added = -length % block
    q, k, v = (
        jnp.pad(part, ((0, 0), (0, added), (0, 0), (0, 0))).transpose(0, 2, 1, 3) for part in (q * rule.scale, k, v)
    )  # [B, H, T, Dh], [B, K, T, Dh], [B, K, T, Dh]
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, added)))
    shape = (length + added, length + added)
    mask = masks.CausalMask(shape) if rule.window is None else masks.LocalMask(shape, (rule.window - 1, 0), 0)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernel.BlockSizes(block, block),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.softcap,
        interpret=current_platform() != "tpu",
    )
    over_rows = jax.vmap(attend, in_axes=(0, 0, 0, 0, None))
    mixed = cast(jax.Array, over_rows(q, k, v, kernel.SegmentIds(segment_ids, segment_ids), sinks))
    return mixed.transpose(0, 2, 1, 3)[:, :length]
