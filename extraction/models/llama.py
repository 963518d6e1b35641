"""Llama (SmolLM2), Mistral, Qwen2, Qwen2.5 and Qwen3: RMS norms before attention and a gated mlp.

Biases, q/k norms and windows are where the configuration says so. The weight names are those of `LlamaForCausalLM`.
"""

from functools import partial

import jax.numpy as jnp

from . import block, tables
from .config import ModelConfig
from .modules import Embedding, GatedMLP, RMSNorm
from .tables import NOT_NEEDED, Table

__all__ = ["NOT_NEEDED", "PREFIX", "Block", "Embedding", "FinalNorm", "weight_table"]

PREFIX = "model."
FinalNorm = RMSNorm


class Block(block.Block):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        norm = partial(RMSNorm, config.width, config.norm_epsilon, dtype)
        super().__init__(block.Attention(config, dtype), GatedMLP(config, dtype), before=norm)


def weight_table(config: ModelConfig) -> dict[str, Table]:
    norms = tables.norms({"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"})
    return tables.model(tables.attention(config) | tables.gated_mlp(config) | norms)
