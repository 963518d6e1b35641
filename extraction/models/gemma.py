"""Gemma 2 and the text models of Gemma 3: norms before and after attention and mlp, and a scaled embedding.

Gemma 2 caps its attention scores; Gemma 3 has q/k norms, and a rotation of their own for its windowed layers. Norms
scale by 1 + weight. `hook_attn_out` and `hook_mlp_out` are what is added to the residual stream, after the second norm,
as in TransformerLens. The weight names are those of `Gemma2ForCausalLM` and `Gemma3ForCausalLM`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import block, modules, tables
from .config import ModelConfig
from .modules import GatedMLP, WideRMSNorm
from .tables import NOT_NEEDED, Table

__all__ = ["NOT_NEEDED", "PREFIX", "Block", "Embedding", "FinalNorm", "weight_table"]

PREFIX = "model."


class Norm(WideRMSNorm):
    offset = 1.0


FinalNorm = Norm


class Block(block.Block):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        norm = partial(Norm, config.width, config.norm_epsilon, dtype)
        super().__init__(block.Attention(config, dtype, Norm), GatedMLP(config, dtype), before=norm, after=norm)


class Embedding(modules.Embedding):
    """Scaled by sqrt(D), which is rounded to the dtype of the weights first, as the reference does."""

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, shared = super().__call__(tokens, positions)
        return x * jnp.asarray(np.sqrt(self.config.width), x.dtype), shared


def weight_table(config: ModelConfig) -> dict[str, Table]:
    norms = tables.norms({
        "norm_attention": "input_layernorm", "norm_attention_out": "post_attention_layernorm",
        "norm_mlp": "pre_feedforward_layernorm", "norm_mlp_out": "post_feedforward_layernorm",
    })
    return tables.model(tables.attention(config) | tables.gated_mlp(config) | norms)
