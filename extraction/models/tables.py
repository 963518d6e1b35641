"""Weight tables: for each part of a model, our parameter path -> the tensor in the file.

`{l}` in a name stands for the layer. Most families name their tensors as Llama does; what they share is here.
"""

from collections.abc import Mapping

from .config import ModelConfig
from .weights import Entry, transposed

Table = dict[str, Entry]
# Rotary frequencies, which older checkpoints carry along, and the head, which never runs.
NOT_NEEDED = (r"lm_head\.weight", r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def linear(ours: str, theirs: str, bias: bool) -> Table:
    """A linear map, whose kernel torch keeps as [O, I]."""
    table = {f"{ours}.kernel": Entry(f"{theirs}.weight", transposed)}
    return table | {f"{ours}.bias": Entry(f"{theirs}.bias")} if bias else table


def attention(config: ModelConfig) -> Table:
    table = linear("attention.o", "model.layers.{l}.self_attn.o_proj", config.output_bias)
    for name in "qkv":
        table |= linear(f"attention.{name}", f"model.layers.{{l}}.self_attn.{name}_proj", config.qkv_bias)
    if config.qk_norm:
        table |= norms({"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"})
    return table


def gated_mlp(config: ModelConfig) -> Table:
    table = {}
    for name in ("gate", "up", "down"):
        table |= linear(f"mlp.{name}", f"model.layers.{{l}}.mlp.{name}_proj", config.mlp_bias)
    return table


def norms(names: Mapping[str, str]) -> Table:
    """Norms of a block without bias, by our and their name."""
    return {f"{ours}.scale": Entry(f"model.layers.{{l}}.{theirs}.weight") for ours, theirs in names.items()}


def model(block: Table) -> dict[str, Table]:
    """The whole table, from the block's."""
    return {
        "embedding": {"table": Entry("model.embed_tokens.weight")},
        "blocks": block,
        "final_norm": {"scale": Entry("model.norm.weight")},
    }
