"""Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE: the block of Llama with a mixture of experts as its mlp, see `mixture`.

`mlp.hook_post` does not exist in a layer with a mixture: each token has its own choice of experts. The weight names are
those of `MixtralForCausalLM`, `Qwen3MoeForCausalLM` and `OlmoeForCausalLM`, one tensor for each expert or for all.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Experts, LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import (
    EXPERT_STACKS,
    Entry,
    Table,
    llama_table,
    mixture_entries,
    named_experts,
    shared_entries,
    transposed,
)
from .base import LLAMA_PLACES, QK_NORM_PLACES, ROUTER_PLACES, Family
from .reading import alike, checked_experts, decoder, has_mixture, layer_kind, windowed


def _mixtral(config: ModelView, path: Path) -> ModelConfig:
    experts = Experts(config.num_local_experts, config.num_experts_per_tok, True)
    kind = layer_kind(config, path, experts=checked_experts(experts, path))
    return decoder(config, path, alike(config, kind))


def _olmoe(config: ModelView, path: Path) -> ModelConfig:
    experts = Experts(config.num_experts, config.num_experts_per_tok, bool(config.norm_topk_prob))
    kind = layer_kind(config, path, experts=checked_experts(experts, path))
    layers = [kind] * config.num_hidden_layers  # the reference makes no mask of a window
    return decoder(config, path, layers, qk_norm="width")


def _qwen2_moe(config: ModelView, path: Path) -> ModelConfig:
    shared = {"shared_width": config.shared_expert_intermediate_size, "shared_gate": True}
    layers = _sparse(config, path, windowed(config, path, layer_kind(config, path)), **shared)
    return decoder(config, path, layers, qkv_bias=bool(config.qkv_bias), output_bias=False)


def _qwen3_moe(config: ModelView, path: Path) -> ModelConfig:
    layers = [layer_kind(config, path, window=config.sliding_window)] * config.num_hidden_layers
    return decoder(config, path, _sparse(config, path, layers), qk_norm="head")


def _sparse(config: ModelView, path: Path, layers: list[LayerKind], **shared: Any) -> list[LayerKind]:
    """Return the layers, with a mixture in those that have one."""
    experts = Experts(config.num_experts, config.num_experts_per_tok, bool(config.norm_topk_prob), **shared)
    checked_experts(experts, path)
    return [
        replace(dense, mlp_width=config.moe_intermediate_size, experts=experts) if has_mixture(config, layer) else dense
        for layer, dense in enumerate(layers)
    ]


def _qwen2_table(config: ModelConfig) -> Table:
    gate = {"mlp.shared_gate.kernel": Entry("model.layers.{l}.mlp.shared_expert_gate.weight", transposed)}
    shared = shared_entries(config, "model.layers.{l}.mlp.shared_expert") | gate
    return llama_table(config, mixture=lambda kind: named_experts(kind) | shared)


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
    expert_stacks=EXPERT_STACKS,
)
OLMOE = replace(QWEN3_MOE, read=_olmoe)
QWEN2_MOE = replace(MIXTRAL, read=_qwen2_moe, weight_table=_qwen2_table, expert_stacks=EXPERT_STACKS)
