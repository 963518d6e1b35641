"""DeepSeek-V2 and V3 (Moonlight): latent attention, and after the first layers a mixture with shared experts.

`hook_k` does not exist, since a part of the keys is common to all heads. The weight names are those of
`DeepseekV2ForCausalLM` and `DeepseekV3ForCausalLM`; further layers, which predict tokens ahead, are ignored.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import DamagedData, InvalidRequest
from ..config import Experts, Groups, Latent, LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import (
    EXPERT_STACKS,
    LLAMA_NORMS,
    Entries,
    Entry,
    Table,
    gated_mlp,
    linear,
    llama_table,
    named_experts,
    norms,
    output,
    shared_entries,
    to_heads,
)
from .base import LLAMA_PLACES, Family, ReferencePlace, sorted_router_places
from .reading import checked_experts, decoder, layer_kind, rope, yarn_scale

if TYPE_CHECKING:
    import jax

_ATTENTION, _MLP = "model.layers.{l}.self_attn", "model.layers.{l}.mlp"


def _deepseek2(config: ModelView, path: Path) -> ModelConfig:
    if config.topk_method not in ("greedy", "group_limited_greedy"):
        raise InvalidRequest(f"{path}: topk_method {config.topk_method!r} is not handled for deepseek_v2")
    count, chosen = config.n_group, config.topk_group
    groups = Groups(count, chosen, best=1) if config.topk_method == "group_limited_greedy" else None
    experts = _experts(config, normalized=False, groups=groups)
    return _deepseek(config, path, experts, interleaved=True, mlp_bias=bool(config.mlp_bias))


def _deepseek3(config: ModelView, path: Path) -> ModelConfig:
    groups = Groups(config.n_group, config.topk_group, best=2)
    experts = _experts(config, normalized=bool(config.norm_topk_prob), groups=groups, sigmoid=True, corrected=True)
    return _deepseek(config, path, experts, interleaved=bool(config.rope_interleave))


def _experts(config: ModelView, **more: Any) -> Experts:
    return Experts(
        config.n_routed_experts,
        config.num_experts_per_tok,
        scale=float(config.routed_scaling_factor),
        shared_width=config.moe_intermediate_size * config.n_shared_experts,
        **more,
    )


def _deepseek(config: ModelView, path: Path, experts: Experts, interleaved: bool, **more: Any) -> ModelConfig:
    if config.num_key_value_heads != config.num_attention_heads:
        raise DamagedData(f"{path}: num_key_value_heads differs from num_attention_heads in latent attention")
    if config.head_dim != config.qk_rope_head_dim:
        raise DamagedData(f"{path}: head_dim is {config.head_dim}, qk_rope_head_dim {config.qk_rope_head_dim}")
    parameters, width = config.rope_parameters, config.qk_nope_head_dim + config.qk_rope_head_dim
    dense = layer_kind(
        config,
        path,
        head_width=width,
        rope=replace(rope(parameters, config, path), interleaved=interleaved),
        latent=Latent(config.kv_lora_rank, config.q_lora_rank, config.qk_rope_head_dim, config.v_head_dim),
    )
    mixture = replace(dense, mlp_width=config.moe_intermediate_size, experts=checked_experts(experts, path))
    first = config.first_k_dense_replace
    layers = [dense if layer < first else mixture for layer in range(config.num_hidden_layers)]
    return decoder(config, path, layers, attention_scale=width**-0.5 * yarn_scale(parameters) ** 2, **more)


def _weight_table(config: ModelConfig) -> Table:
    return llama_table(config)._replace(block=partial(_block, config))


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    mlp = _mixture(config, kind) if kind.experts else gated_mlp(config)
    return _attention(config, kind) | mlp | norms(LLAMA_NORMS)


def _attention(config: ModelConfig, kind: LayerKind) -> Entries:
    heads, kept = partial(to_heads, kind.head_width), kind.head_width - kind.rotated_width
    table = output(config, kind, f"{_ATTENTION}.o_proj")
    if kind.latent and kind.latent.q_rank is not None:
        table |= linear("attention.q_down", f"{_ATTENTION}.q_a_proj", config.qkv_bias)
        table |= norms({"attention.q_norm": "self_attn.q_a_layernorm"})
        table["attention.q.kernel"] = Entry(f"{_ATTENTION}.q_b_proj.weight", heads)
    else:
        table["attention.q.kernel"] = Entry(f"{_ATTENTION}.q_proj.weight", heads)
    for ours, columns in (("kv_down", slice(-kind.rotated_width)), ("k_rotated", slice(-kind.rotated_width, None))):
        down = f"{_ATTENTION}.kv_a_proj_with_mqa"
        table[f"attention.{ours}.kernel"] = Entry(f"{down}.weight", partial(_rows_transposed, columns))
        if config.qkv_bias:
            table[f"attention.{ours}.bias"] = Entry(f"{down}.bias", partial(_rows, columns))
    table |= norms({"attention.kv_norm": "self_attn.kv_a_layernorm"})
    for ours, columns in (("k", slice(kept)), ("v", slice(kept, None))):
        part = partial(_part_of_heads, kept + kind.value_width, columns)
        table[f"attention.{ours}.kernel"] = Entry(f"{_ATTENTION}.kv_b_proj.weight", part)
    return table


def _mixture(config: ModelConfig, kind: LayerKind) -> Entries:
    table = named_experts(kind)
    if kind.required_experts.corrected:
        table["mlp.correction"] = Entry(f"{_MLP}.gate.e_score_correction_bias")
    return table | shared_entries(config, f"{_MLP}.shared_experts")


def _rows(rows: slice, tensor: "jax.Array") -> "jax.Array":
    return tensor[rows]


def _rows_transposed(rows: slice, tensor: "jax.Array") -> "jax.Array":
    return tensor[rows].T


def _part_of_heads(width: int, columns: slice, tensor: "jax.Array") -> "jax.Array":
    """Return some columns of each head, [H, ..., I], made of [H*width, I]."""
    return to_heads(width, tensor)[:, columns]


def _values(config: Any, y: np.ndarray) -> np.ndarray:
    return y.reshape(y.shape[-2], config.num_attention_heads, -1)[..., config.qk_nope_head_dim :]


_PLACES = (
    LLAMA_PLACES
    | sorted_router_places(f"{_MLP}.gate")
    | {
        "attn.hook_q": ReferencePlace(f"{_ATTENTION}.q_b_proj|{_ATTENTION}.q_proj", "out"),
        "attn.hook_v": ReferencePlace(f"{_ATTENTION}.kv_b_proj", "out", _values),
    }
)
DEEPSEEK_V2 = Family(_deepseek2, weight_table=_weight_table, places=_PLACES, expert_stacks=EXPERT_STACKS)
DEEPSEEK_V3 = replace(DEEPSEEK_V2, read=_deepseek3)
