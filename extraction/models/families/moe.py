"""Mixtral and Qwen3-MoE: the block of Llama with a mixture of experts as its mlp, see `mixture`.

`mlp.hook_post` does not exist: each token has its own choice of experts. The weight names are those of
`MixtralForCausalLM` and `Qwen3MoeForCausalLM`, one tensor for each expert.
"""

from functools import partial
from pathlib import Path

from ...core.errors import DamagedData, InvalidRequest
from ..config import Experts, ModelConfig
from ..config_reads import ModelView
from ..tables import Entry, Table, llama_table, transposed
from .base import Family, Modules
from .reading import decoder, window_everywhere


def _mixtral(config: ModelView, path: Path) -> ModelConfig:
    experts = Experts(config.num_local_experts, config.num_experts_per_tok, True)
    return decoder(config, path, experts=_checked(experts, path), **window_everywhere(config))


def _qwen3_moe(config: ModelView, path: Path) -> ModelConfig:
    """Read a model whose layers all have experts. Blocks are scanned, so a model with dense layers is refused."""
    layers = range(config.num_hidden_layers)
    dense = [n for n in layers if n in config.mlp_only_layers or (n + 1) % config.decoder_sparse_step]
    if dense:
        raise InvalidRequest(f"{path}: layer {dense[0]} has no experts; a model whose layers differ so is not handled")
    experts = Experts(config.num_experts, config.num_experts_per_tok, bool(config.norm_topk_prob))
    return decoder(
        config,
        path,
        qk_norm="head",
        mlp_width=config.moe_intermediate_size,
        experts=_checked(experts, path),
        **window_everywhere(config),
    )


def _checked(experts: Experts, path: Path) -> Experts:
    if not 1 <= experts.per_token <= experts.count:
        raise DamagedData(f"{path}: {experts.per_token} of {experts.count} experts for each token")
    return experts


def _weight_table(place: str, names: dict[str, str], config: ModelConfig) -> Table:
    """Return the table of a model with a mixture at `place` of its blocks, and these `names` of an expert's kernels."""
    mixture = f"model.layers.{{l}}.{place}"
    table = {"mlp.router.kernel": Entry(f"{mixture}.gate.weight", transposed)}
    for ours, theirs in names.items():
        name = f"{mixture}.experts.{{e}}.{theirs}.weight"
        table[f"mlp.experts.{ours}.kernel"] = Entry(name, transposed, config.mixture.count)
    return llama_table(config, mlp=table)


_numbered = partial(_weight_table, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
_named = partial(_weight_table, "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
MIXTRAL = Family(_mixtral, Modules(mlp="Mixture"), _numbered)
QWEN3_MOE = Family(_qwen3_moe, Modules(mlp="Mixture"), _named)
