"""Configurations of mixtures of experts: Mixtral and Qwen3-MoE."""

import json
from pathlib import Path
from typing import Any

from ...errors import DamagedData, InvalidRequest
from .base import Experts, ModelConfig
from .common import DECODER, decoder, window_everywhere

_MOE = DECODER | {"num_experts_per_tok", "num_local_experts", "sliding_window"}
MIXTRAL = _MOE - {"attention_bias"}
# What Qwen3-Coder's file says of every Qwen3-MoE.
_SAID = {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True}
QWEN3_MOE = _MOE | {
    "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "use_sliding_window",
} | _SAID.keys()


def mixtral(config: Any, path: Path) -> ModelConfig:
    experts = Experts(config.num_local_experts, config.num_experts_per_tok, True)
    return decoder(config, path, experts=_checked(experts, path), **window_everywhere(config))


def qwen3_moe(config: Any, path: Path) -> ModelConfig:
    """Blocks are scanned, so all must be made alike: a model that mixes dense and sparse layers is refused."""
    for name, value in _SAID.items():
        if (found := getattr(config, name, value)) != value:
            raise InvalidRequest(f"{path}: {name} = {json.dumps(found)} is not handled for {config.model_type}")
    layers = range(config.num_hidden_layers)
    dense = [n for n in layers if n in config.mlp_only_layers or (n + 1) % config.decoder_sparse_step]
    if dense:
        raise InvalidRequest(f"{path}: layer {dense[0]} has no experts; a model whose layers differ so is not handled")
    experts = Experts(config.num_experts, config.num_experts_per_tok, bool(config.norm_topk_prob))
    return decoder(
        config, path, qk_norm="head", mlp_width=config.moe_intermediate_size, experts=_checked(experts, path),
        **window_everywhere(config),
    )


def _checked(experts: Experts, path: Path) -> Experts:
    if not 1 <= experts.per_token <= experts.count:
        raise DamagedData(f"{path}: {experts.per_token} of {experts.count} experts for each token")
    return experts
