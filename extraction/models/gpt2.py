"""GPT-2: learned positions, layer norms, a plain mlp.

The weight names are those of `GPT2LMHeadModel`, whose matrices are [I, O], with q, k and v side by side in one.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from . import block
from .config import ModelConfig
from .modules import MLP, LayerNorm
from .tables import Table, to_heads
from .weights import Entry

PREFIX = "transformer."
NOT_NEEDED = (r"lm_head\.weight", r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
FinalNorm = LayerNorm


class Block(block.Block):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        norm = partial(LayerNorm, config.width, config.norm_epsilon, dtype)
        super().__init__(block.Attention(config, dtype), MLP(config, dtype), before=norm)


class Embedding(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.table = nnx.Param(jnp.zeros((config.vocab_size, config.width), dtype))
        self.positions = nnx.Param(jnp.zeros((config.max_positions, config.width), dtype))

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x [B, T, D], and nothing that all blocks share."""
        return self.table[...][tokens] + self.positions[...][positions], {}


def weight_table(config: ModelConfig) -> dict[str, Table]:
    """For each part, our parameter path -> the name in the file, `{l}` being the layer."""
    heads = partial(to_heads, config.head_width)
    table = {
        "attention.o.kernel": Entry("transformer.h.{l}.attn.c_proj.weight", heads),
        "attention.o.bias": Entry("transformer.h.{l}.attn.c_proj.bias"),
    }
    for ours, theirs in (("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
        table[f"{ours}.kernel"] = Entry(f"transformer.h.{{l}}.{theirs}.weight")
        table[f"{ours}.bias"] = Entry(f"transformer.h.{{l}}.{theirs}.bias")
    for third, ours in enumerate("qkv"):
        part = partial(_third, third, config.head_width)
        table[f"attention.{ours}.kernel"] = Entry("transformer.h.{l}.attn.c_attn.weight", part)
        table[f"attention.{ours}.bias"] = Entry("transformer.h.{l}.attn.c_attn.bias", part)
    for ours, theirs in (("norm_attention", "ln_1"), ("norm_mlp", "ln_2")):
        table[f"{ours}.scale"] = Entry(f"transformer.h.{{l}}.{theirs}.weight")
        table[f"{ours}.bias"] = Entry(f"transformer.h.{{l}}.{theirs}.bias")
    return {
        "embedding": {"table": Entry("transformer.wte.weight"), "positions": Entry("transformer.wpe.weight")},
        "blocks": table,
        "final_norm": {"scale": Entry("transformer.ln_f.weight"), "bias": Entry("transformer.ln_f.bias")},
    }


def _third(index: int, head_width: int, tensor: jax.Array) -> jax.Array:
    """q, k or v, [H, Dh, D] or [H, Dh], of what is [D, 3*D] or [3*D]."""
    return to_heads(head_width, jnp.split(tensor, 3, axis=-1)[index].T)
