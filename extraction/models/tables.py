"""Weight tables: for each part of a model, our parameter path -> the tensor in the file.

Most families name their tensors as Llama does; what they share is here.
"""

from collections.abc import Mapping
from functools import partial

import jax

from .config import ModelConfig
from .weights import Entry, Table, transposed

Entries = dict[str, Entry]


def linear(ours: str, theirs: str, bias: bool) -> Entries:
    """A linear map, whose kernel torch keeps as [O, I]."""
    table = {f"{ours}.kernel": Entry(f"{theirs}.weight", transposed)}
    return table | {f"{ours}.bias": Entry(f"{theirs}.bias")} if bias else table


def affine(ours: str, theirs: str) -> Entries:
    """A norm with a scale and a bias; `ours` ends in a dot where the norm is in something."""
    return {f"{ours}scale": Entry(f"{theirs}.weight"), f"{ours}bias": Entry(f"{theirs}.bias")}


def to_heads(head_width: int, tensor: jax.Array) -> jax.Array:
    """[H, Dh, ...] of what is [H*Dh, ...]."""
    return tensor.reshape(-1, head_width, *tensor.shape[1:])


def from_heads(head_width: int, tensor: jax.Array) -> jax.Array:
    """[H, Dh, D] of what is [D, H*Dh]."""
    return to_heads(head_width, tensor.T)


def output(config: ModelConfig, theirs: str) -> Entries:
    """What takes the heads to x, whose kernel torch keeps as [D, H*Dh]."""
    table = {"attention.o.kernel": Entry(f"{theirs}.weight", partial(from_heads, config.head_width))}
    return table | {"attention.o.bias": Entry(f"{theirs}.bias")} if config.output_bias else table


def attention(config: ModelConfig) -> Entries:
    """Attention with a tensor for each of q, k and v, and their norms where there are any."""
    table, heads = output(config, "model.layers.{l}.self_attn.o_proj"), partial(to_heads, config.head_width)
    for name in "qkv":
        theirs = f"model.layers.{{l}}.self_attn.{name}_proj"
        table[f"attention.{name}.kernel"] = Entry(f"{theirs}.weight", heads)
        if config.qkv_bias:
            table[f"attention.{name}.bias"] = Entry(f"{theirs}.bias", heads)
    if config.qk_norm:
        table |= norms({"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"})
    return table


def gated_mlp(config: ModelConfig) -> Entries:
    """An mlp with a gate."""
    table = {}
    for name in ("gate", "up", "down"):
        table |= linear(f"mlp.{name}", f"model.layers.{{l}}.mlp.{name}_proj", config.mlp_bias)
    return table


def norms(names: Mapping[str, str]) -> Entries:
    """Norms of a block without bias, by our and their name."""
    return {f"{ours}.scale": Entry(f"model.layers.{{l}}.{theirs}.weight") for ours, theirs in names.items()}


def model(block: Entries) -> Table:
    """The whole table, from the block's."""
    return {
        "embedding": {"table": Entry("model.embed_tokens.weight")},
        "blocks": block,
        "final_norm": {"scale": Entry("model.norm.weight")},
    }
