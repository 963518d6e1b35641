"""Mixtral and Qwen3-MoE: the block of Llama with a mixture of experts as its mlp, see `mixture`.

`mlp.hook_post` does not exist in a layer with a mixture: each token has its own choice of experts. The weight names are
those of `MixtralForCausalLM` and `Qwen3MoeForCausalLM`, one tensor for each expert.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import Experts, ModelConfig
from ..config_reads import ModelView
from ..tables import llama_table, mixture_entries, named_experts
from .base import LLAMA_PLACES, QK_NORM_PLACES, ROUTER_PLACES, Family
from .reading import alike, checked_experts, decoder, layer_kind


def _mixtral(config: ModelView, path: Path) -> ModelConfig:
    experts = Experts(config.num_local_experts, config.num_experts_per_tok, True)
    kind = layer_kind(config, path, experts=checked_experts(experts, path))
    return decoder(config, path, alike(config, kind))


def _qwen3_moe(config: ModelView, path: Path) -> ModelConfig:
    """Read a model with a mixture in each layer of its `decoder_sparse_step`, but for `mlp_only_layers`."""
    experts = Experts(config.num_experts, config.num_experts_per_tok, bool(config.norm_topk_prob))
    dense = layer_kind(config, path)
    mixture = replace(dense, mlp_width=config.moe_intermediate_size, experts=checked_experts(experts, path))
    layers = [
        dense if layer in config.mlp_only_layers or (layer + 1) % config.decoder_sparse_step else mixture
        for layer in range(config.num_hidden_layers)
    ]
    window = config.sliding_window
    return decoder(config, path, [replace(kind, window=window) for kind in layers], qk_norm="head")


_numbered = partial(mixture_entries, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
MIXTRAL = Family(
    _mixtral,
    weight_table=partial(llama_table, mixture=_numbered),
    places=LLAMA_PLACES | ROUTER_PLACES,
)
QWEN3_MOE = Family(
    _qwen3_moe,
    weight_table=partial(llama_table, mixture=named_experts),
    places=LLAMA_PLACES | QK_NORM_PLACES | ROUTER_PLACES,
)
