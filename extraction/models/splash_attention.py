"""Attention on a TPU: jax's splash kernel, which keeps the scores on the chip and skips blocks without visible pairs.

In, out and guarantee are those of `attention.attention`, on one device and for any T: rows are padded to the kernel's
blocks. Cost: about half of the T x T scores, or those of the window, in whole blocks
(`splash_blocks.multiplied_pairs`), so for T=2048 a quarter more. The kernel reads heads before tokens, the layout of
the products before it: no copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from .attention_rule import AttentionRule
from .devices import current_device
from .splash_blocks import splash_block

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def attend_splash(
    q: Float[jax.Array, "B T H Dh"],
    k: Float[jax.Array, "B T K Dh"],
    v: Float[jax.Array, "B T K Dv"],
    segment_ids: Int[jax.Array, "B T"],
    rule: AttentionRule,
    sinks: Float[jax.Array, " H"] | None = None,
) -> Float[jax.Array, "B T H Dv"]:
    """Compute attention on one device; on another platform than a TPU the kernel is run in Python."""
    length, heads = q.shape[1:3]
    block = splash_block(length)
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
        interpret=current_device().platform != "tpu",
    )
    over_rows = jax.vmap(attend, in_axes=(0, 0, 0, 0, None))
    mixed = cast(jax.Array, over_rows(q, k, v, kernel.SegmentIds(segment_ids, segment_ids), sinks))
    return mixed.transpose(0, 2, 1, 3)[:, :length]
