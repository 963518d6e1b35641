"""OLMo 2: no norm before attention and mlp but one after each, and q/k norms over all heads at once.

`hook_attn_out` and `hook_mlp_out` are what is added to the residual stream, after the norm. The weight names are those
of `Olmo2ForCausalLM`.
"""

from functools import partial

import jax.numpy as jnp

from . import block, tables
from .config import ModelConfig
from .modules import Embedding, GatedMLP, WideRMSNorm
from .tables import NOT_NEEDED, Table

__all__ = ["NOT_NEEDED", "PREFIX", "Block", "Embedding", "FinalNorm", "weight_table"]

PREFIX = "model."
FinalNorm = WideRMSNorm


class Block(block.Block):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        norm = partial(WideRMSNorm, config.width, config.norm_epsilon, dtype)
        attention = block.Attention(config, dtype, WideRMSNorm)
        super().__init__(attention, GatedMLP(config, dtype), before=None, after=norm)


def weight_table(config: ModelConfig) -> dict[str, Table]:
    norms = tables.norms({
        "norm_attention_out": "post_attention_layernorm", "norm_mlp_out": "post_feedforward_layernorm",
    })
    return tables.model(tables.attention(config) | tables.gated_mlp(config) | norms)
