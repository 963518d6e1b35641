"""Gemma 4: the text model, alone and inside the models that also see and hear.

Beyond Gemma 3: full layers have heads of another width and number, and may make v of k's projection; v is normalized;
the last layers may use k and v of earlier ones; each layer may have an embedding of its own, and ends in a factor; a
mixture may run beside the mlp. `hook_attn_out` and `hook_mlp_out` are the outputs of the second norms. The weight names
are those of `Gemma4ForCausalLM`; in models with other towers they follow another prefix.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import DamagedData, InvalidRequest
from ..config import Experts, LayerKind, ModelConfig, PerLayer
from ..used_config_keys import ModelView
from ..weight_tables import GEMMA_NORMS, LM_HEAD, Entries, Entry, Table, attention, gated_mlp, linear, norms, transposed
from .base import GEMMA_PLACES, LLAMA_PLACES, QK_NORM_PLACES, Family, Modules, ReferencePlace, text_model_of
from .reading import activation, by_layer_types, checked_experts, decoder, layer_kind, rope

if TYPE_CHECKING:
    import jax

_BLOCK = "model.layers.{l}"
_MODULES = Modules("WideRMSNorm", embedding="PerLayerEmbedding", block="extraction.models.gemma4_block:Gemma4Block")
_PLACES = (
    LLAMA_PLACES
    | GEMMA_PLACES
    | QK_NORM_PLACES
    | {
        "attn.hook_v": ReferencePlace(f"{_BLOCK}.self_attn.v_norm", "out"),
        "mlp.hook_router_logits": ReferencePlace(f"{_BLOCK}.router.proj", "out"),
        "mlp.hook_expert_weights": ReferencePlace(f"{_BLOCK}.router", "out.1"),
        "mlp.hook_expert_indices": ReferencePlace(f"{_BLOCK}.router", "out.2"),
    }
)


def _read(config: ModelView, path: Path) -> ModelConfig:
    if config.use_bidirectional_attention == "all":
        raise InvalidRequest(f"{path}: use_bidirectional_attention = all is not handled: tokens see later ones")
    kinds = {layer_type: _kind(config, layer_type, path) for layer_type in set(config.layer_types)}
    layers = _sharing(config, by_layer_types(config, path, kinds))
    return decoder(
        config,
        path,
        layers,
        activation=activation(config.hidden_activation, path),
        attention_scale=1.0,
        qk_norm="head",
        norms=("before", "after"),
        per_layer=_per_layer(config, path),
    )


def _kind(config: ModelView, layer_type: str, path: Path) -> LayerKind:
    """Return the kind of the layers of one type, before they share k and v."""
    full = layer_type == "full_attention"
    return layer_kind(
        config.of_layers(layer_type),
        path,
        rope=rope(config.rope_parameters[layer_type], config, path),
        window=None if full else config.sliding_window,
        experts=_experts(config, path),
        v_is_k=full and bool(config.attention_k_eq_v),
    )


def _experts(config: ModelView, path: Path) -> Experts | None:
    """Return the mixture beside the mlp, None if there is none, as in all models of type `gemma4_unified`."""
    names = ("num_experts", "top_k_experts", "moe_intermediate_size")
    count, per_token, width = (getattr(config, name, None) for name in names)
    if not getattr(config, "enable_moe_block", False):
        return None
    if count is None or per_token is None or width is None:
        raise DamagedData(f"{path}: enable_moe_block without one of {', '.join(names)}")
    return checked_experts(Experts(count, per_token, True, width), path)


def _per_layer(config: ModelView, path: Path) -> PerLayer | None:
    """Return the embeddings of each layer, None if there are none, as in all models of type `gemma4_unified`."""
    width, rows = (getattr(config, f"{name}_per_layer_input", 0) for name in ("hidden_size", "vocab_size"))
    if not width:
        return None
    if rows < config.vocab_size:
        sizes = f"vocab_size_per_layer_input is {rows}, less than vocab_size, {config.vocab_size}"
        raise DamagedData(f"{path}: {sizes}")
    return PerLayer(width, rows)


def _sharing(config: ModelView, layers: list[LayerKind]) -> list[LayerKind]:
    """Return the layers; the last ones use k and v of the last layer of their type that has its own."""
    modes, types = config.kv_sharing_modes, config.layer_types
    widening = 2 if config.use_double_wide_mlp else 1
    if not config.num_kv_shared_layers:
        return layers
    source = {types[layer]: layer for layer, mode in enumerate(modes) if mode == "store"}
    if missing := {types[layer] for layer, mode in enumerate(modes) if mode == "reuse"} - set(source):
        raise ValueError(f"no layer has the k and v that layers of type {min(missing)} use")
    of_others = {
        "store": lambda layer: {"kv_kept_as": layer},
        "reuse": lambda layer: {"kv_of": source[types[layer]], "mlp_width": widening * layers[layer].mlp_width},
    }
    return [
        replace(kind, **of_others[mode](layer)) if mode else kind
        for layer, (kind, mode) in enumerate(zip(layers, modes, strict=True))
    ]


def _weight_table(config: ModelConfig) -> Table:
    embedding = {"table": Entry("model.embed_tokens.weight")}
    if config.per_layer:
        shape = config.num_layers, config.per_layer.width
        embedding |= {
            "per_layer.table": Entry("model.embed_tokens_per_layer.weight", partial(_by_layer, shape)),
            "per_layer.kernel": Entry("model.per_layer_model_projection.weight", partial(_by_layer_transposed, shape)),
            "per_layer.norm.scale": Entry("model.per_layer_projection_norm.weight"),
        }
    return Table(embedding, partial(_block, config), {"scale": Entry("model.norm.weight")}, LM_HEAD)


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    table = attention(config, kind) | gated_mlp(config) | norms(GEMMA_NORMS)
    unused = ("v",) if kind.v_is_k else ()
    unused = ("k", "v", "k_norm") if kind.kv_of is not None else unused
    table = {ours: entry for ours, entry in table.items() if ours.split(".")[1] not in unused}
    table["factor"] = Entry(f"{_BLOCK}.layer_scalar")
    if config.per_layer:
        table |= linear("per_layer.gate", f"{_BLOCK}.per_layer_input_gate", False)
        table |= linear("per_layer.down", f"{_BLOCK}.per_layer_projection", False)
        table |= norms({"norm_per_layer": "post_per_layer_input_norm"})
    return table | _mixture() if kind.experts else table


def _unread(kind: LayerKind) -> Sequence[str]:
    """Return the names of the projections and norms of a layer that uses k and v of another one: files have them."""
    names = ("k_proj", "v_proj", "k_norm", "v_norm") if kind.kv_of is not None else ()
    return [f"{_BLOCK}.self_attn.{name}.weight" for name in names]


def _mixture() -> Entries:
    gate_up = f"{_BLOCK}.experts.gate_up_proj"
    table = {
        "mixture.router.kernel": Entry(f"{_BLOCK}.router.proj.weight", transposed),
        "mixture.router.scale": Entry(f"{_BLOCK}.router.scale"),
        "mixture.router.expert_scale": Entry(f"{_BLOCK}.router.per_expert_scale"),
        "mixture.experts.gate.kernel": Entry(gate_up, partial(_half, 0)),
        "mixture.experts.up.kernel": Entry(gate_up, partial(_half, 1)),
        "mixture.experts.down.kernel": Entry(f"{_BLOCK}.experts.down_proj", _each_transposed),
    }
    names = {"norm_dense_out": "post_feedforward_layernorm_1", "norm_mixture": "pre_feedforward_layernorm_2"}
    return table | norms(names | {"norm_mixture_out": "post_feedforward_layernorm_2"})


def _by_layer(shape: tuple[int, int], tensor: "jax.Array") -> "jax.Array":
    """Return [L, V, d], the first L layers of [V, L'*d]."""
    layers, width = shape
    return tensor.reshape(len(tensor), -1, width)[:, :layers].swapaxes(0, 1)


def _by_layer_transposed(shape: tuple[int, int], tensor: "jax.Array") -> "jax.Array":
    """Return [L, D, d], the first L layers of [L'*d, D]."""
    return _by_layer(shape, tensor.T)


def _each_transposed(tensor: "jax.Array") -> "jax.Array":
    """Return [E, I, O], made of [E, O, I]."""
    return tensor.swapaxes(1, 2)


def _half(half: int, tensor: "jax.Array") -> "jax.Array":
    """Return one of the kernels [E, D, F] that are side by side in [E, 2*F, D]."""
    width = tensor.shape[1] // 2
    return _each_transposed(tensor[:, half * width : (half + 1) * width])


GEMMA4 = Family(
    _read,
    _MODULES,
    _weight_table,
    unread=_unread,
    places=_PLACES,
    by_layer=("head_dim", "num_key_value_heads"),
)
GEMMA4_INSIDE = text_model_of(GEMMA4)
