"""GPT-NeoX and Pythia: layer norms, a plain mlp, a part of each head rotated, attention and mlp in parallel or in turn.

In parallel there is no `hook_resid_mid`, as in TransformerLens. The weight names are those of `GPTNeoXForCausalLM`,
which keeps q, k and v of each head side by side in one matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from . import block
from .config import ModelConfig
from .modules import MLP, Embedding, LayerNorm
from .tables import Table, linear, output
from .weights import Entry

__all__ = ["NOT_NEEDED", "PREFIX", "Block", "Embedding", "FinalNorm", "weight_table"]

PREFIX = "gpt_neox."
# The head, which gets the prefix on its way, and buffers of older checkpoints.
NOT_NEEDED = (
    r"gpt_neox\.embed_out\.weight", r"lm_head\.weight",
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)
FinalNorm = LayerNorm


def Block(config: ModelConfig, dtype: jnp.dtype) -> nnx.Module:
    norm = partial(LayerNorm, config.width, config.norm_epsilon, dtype)
    kind = block.ParallelBlock if config.parallel else block.Block
    return kind(block.Attention(config, dtype), MLP(config, dtype), before=norm)


def weight_table(config: ModelConfig) -> dict[str, Table]:
    """For each part, our parameter path -> the name in the file, `{l}` being the layer."""
    table = output(config, "gpt_neox.layers.{l}.attention.dense")
    table |= linear("mlp.up", "gpt_neox.layers.{l}.mlp.dense_h_to_4h", True)
    table |= linear("mlp.down", "gpt_neox.layers.{l}.mlp.dense_4h_to_h", True)
    for third, ours in enumerate("qkv"):
        theirs, part = "gpt_neox.layers.{l}.attention.query_key_value", partial(_third, third, config.num_heads)
        table[f"attention.{ours}.kernel"] = Entry(f"{theirs}.weight", part)
        if config.qkv_bias:
            table[f"attention.{ours}.bias"] = Entry(f"{theirs}.bias", part)
    for ours, theirs in (("norm_attention", "input_layernorm"), ("norm_mlp", "post_attention_layernorm")):
        table[f"{ours}.scale"] = Entry(f"gpt_neox.layers.{{l}}.{theirs}.weight")
        table[f"{ours}.bias"] = Entry(f"gpt_neox.layers.{{l}}.{theirs}.bias")
    final = "gpt_neox.final_layer_norm"
    return {
        "embedding": {"table": Entry("gpt_neox.embed_in.weight")},
        "blocks": table,
        "final_norm": {"scale": Entry(f"{final}.weight"), "bias": Entry(f"{final}.bias")},
    }


def _third(index: int, num_heads: int, tensor: jax.Array) -> jax.Array:
    """q, k or v, [H, Dh, D] or [H, Dh], of what is [H*3*Dh, D] or [H*3*Dh]."""
    return tensor.reshape(num_heads, 3, -1, *tensor.shape[1:])[:, index]
