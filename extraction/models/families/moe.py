"""Mixtral and Qwen3-MoE: the block of Llama with a mixture of experts as its mlp, see `mixture`.

`mlp.hook_post` does not exist in a layer with a mixture: each token has its own choice of experts. The weight names are
those of `MixtralForCausalLM` and `Qwen3MoeForCausalLM`, one tensor for each expert.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import Experts, LayerKind, ModelConfig
from ..config_reads import ModelView
from ..tables import Entries, Entry, llama_table, transposed
from .base import LLAMA_PLACES, QK_NORM_PLACES, Family, ReferencePlace
from .reading import alike, checked_experts, decoder, layer_kind

ROUTER_PLACES = {
    "mlp.hook_router_logits": ReferencePlace("model.layers.{l}.mlp.gate", "out.0"),
    "mlp.hook_expert_weights": ReferencePlace("model.layers.{l}.mlp.gate", "out.1"),
    "mlp.hook_expert_indices": ReferencePlace("model.layers.{l}.mlp.gate", "out.2"),
}


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


def _entries(place: str, names: Mapping[str, str], kind: LayerKind) -> Entries:
    """Return the entries of a mixture at `place` of its block, and these `names` of an expert's kernels."""
    mixture = f"model.layers.{{l}}.{place}"
    entries = {"mlp.router.kernel": Entry(f"{mixture}.gate.weight", transposed)}
    for ours, theirs in names.items():
        name = f"{mixture}.experts.{{e}}.{theirs}.weight"
        entries[f"mlp.experts.{ours}.kernel"] = Entry(name, transposed, kind.mixture.count)
    return entries


_numbered = partial(_entries, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
_named = partial(_entries, "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
MIXTRAL = Family(
    _mixtral,
    weight_table=partial(llama_table, mixture=_numbered),
    places=LLAMA_PLACES | ROUTER_PLACES,
)
QWEN3_MOE = Family(
    _qwen3_moe,
    weight_table=partial(llama_table, mixture=_named),
    places=LLAMA_PLACES | QK_NORM_PLACES | ROUTER_PLACES,
)
