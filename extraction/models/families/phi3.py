"""Phi-3 and Phi-4: Llama's block with q, k and v in one tensor, and gate and up in another.

A part of each head may be rotated, with LongRoPE. The weight names are those of `Phi3ForCausalLM`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import llama_table
from .base import FUSED_MLP_PLACES, LLAMA_PLACES, Family, ReferencePlace
from .reading import alike, decoder, layer_kind, partial_rope


def _part(index: int) -> ReferencePlace:
    """Return the place of q, k or v, side by side in the output of one module."""

    def pick(config: Any, y: np.ndarray) -> np.ndarray:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        parts = np.split(y, heads + 2 * kv_heads, axis=-1)
        first = (0, heads, heads + kv_heads, heads + 2 * kv_heads)
        return np.concatenate(parts[first[index] : first[index + 1]], axis=-1)

    return ReferencePlace("model.layers.{l}.self_attn.qkv_proj", "out", pick)


def _read(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path, rope=partial_rope(config, path))))


PHI3 = Family(
    _read,
    weight_table=partial(llama_table, fused=("attention", "mlp")),
    places=LLAMA_PLACES
    | FUSED_MLP_PLACES
    | {"attn.hook_q": _part(0), "attn.hook_k": _part(1), "attn.hook_v": _part(2)},
)
