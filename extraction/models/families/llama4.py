"""Llama 4: attention in chunks, layers without rotation, a mixture whose weights multiply what experts read.

`hook_q` and `hook_k` are the outputs of the projections; in rotated layers their heads are normalized after the
rotation. In layers with a mixture `hook_pre` and `hook_post` do not exist. The weight names are those of
`Llama4ForCausalLM`; in `Llama4ForConditionalGeneration`, which also sees, they follow another prefix.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import DamagedData
from ..config import Experts, LayerKind, ModelConfig, QueryGrowth
from ..used_config_keys import ModelView
from ..weight_tables import (
    LLAMA_NORMS,
    Entries,
    Entry,
    Table,
    attention,
    linear,
    llama_table,
    norms,
    transposed,
    unchanged,
)
from .base import Family, ReferencePlace, renamed
from .reading import by_layer_types, checked_experts, decoder, layer_kind, rope

if TYPE_CHECKING:
    import jax

_MLP = "model.layers.{l}.feed_forward"


def _read(config: ModelView, path: Path) -> ModelConfig:
    chunk = config.attention_chunk_size
    if chunk is None and "chunked_attention" in config.layer_types:
        raise DamagedData(f"{path}: layer_types has chunked_attention, but attention_chunk_size is null")
    full = layer_kind(config, path, rope=None, mlp_width=config.intermediate_size_mlp)
    kinds = {"full_attention": full, "chunked_attention": replace(full, window=chunk, chunked=True)}
    rotation = replace(rope(config.rope_parameters, config, path), interleaved=True)
    growth = QueryGrowth(float(config.attn_scale), int(config.floor_scale), ahead=1)
    rotated = {"rope": rotation, "unit_heads": bool(config.use_qk_norm)}
    unrotated = {"growth": growth} if config.attn_temperature_tuning else {}
    layers = [
        replace(kind, **(rotated if config.no_rope_layers[layer] else unrotated))
        for layer, kind in enumerate(by_layer_types(config, path, kinds))
    ]
    return decoder(config, path, [_layer(config, path, at, kind) for at, kind in enumerate(layers)])


def _layer(config: ModelView, path: Path, layer: int, kind: LayerKind) -> LayerKind:
    """Return the kind of this layer, with its mixture if it has one."""
    if layer not in config.moe_layers:
        return kind
    width = config.intermediate_size
    experts = Experts(
        config.num_local_experts,
        config.num_experts_per_tok,
        normalized=False,
        sigmoid=True,
        scaled_input=True,
        shared_width=width,
    )
    return replace(kind, mlp_width=width, experts=checked_experts(experts, path))


def _weight_table(config: ModelConfig) -> Table:
    return llama_table(config)._replace(block=partial(_block, config))


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    table = attention(config, kind) | norms(LLAMA_NORMS)
    place, ours = (f"{_MLP}.shared_expert", "mlp.shared") if kind.experts else (_MLP, "mlp")
    for name in ("gate", "up", "down"):
        table |= linear(f"{ours}.{name}", f"{place}.{name}_proj", False)
    if kind.experts:
        table["mlp.router.kernel"] = Entry(f"{_MLP}.router.weight", transposed)
        for ours, theirs, part in (("gate", "gate_up", _gate), ("up", "gate_up", _up), ("down", "down", unchanged)):
            table[f"mlp.experts.{ours}.kernel"] = Entry(f"{_MLP}.experts.{theirs}_proj", part)
    return table


def _gate(tensor: "jax.Array") -> "jax.Array":
    return tensor[..., : tensor.shape[-1] // 2]


def _up(tensor: "jax.Array") -> "jax.Array":
    return tensor[..., tensor.shape[-1] // 2 :]


def _weights(config: Any, scores: np.ndarray) -> np.ndarray:
    return -np.sort(-scores, axis=-1)[..., : config.num_experts_per_tok]


def _chosen(config: Any, scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=-1, kind="stable")[..., : config.num_experts_per_tok]


LLAMA4_TEXT = Family(
    _read,
    weight_table=_weight_table,
    # The router gives the scores of all experts, 0 where they are not chosen.
    places=renamed({".mlp": ".feed_forward"})
    | {
        "mlp.hook_router_logits": ReferencePlace(f"{_MLP}.router", "out.1"),
        "mlp.hook_expert_weights": ReferencePlace(f"{_MLP}.router", "out.0", _weights),
        "mlp.hook_expert_indices": ReferencePlace(f"{_MLP}.router", "out.0", _chosen),
    },
)
LLAMA4 = replace(LLAMA4_TEXT, inside="text_config")
