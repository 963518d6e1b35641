"""The description of a model family: `Family`. No jax and no torch.

In: a configuration as transformers read it. Out: our configuration, flax modules, a weight table. Guarantee: no
module is imported, they are named. Cost: none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import Table, llama_table


class ReferencePlace(NamedTuple):
    """The place of a hook point in transformers' model: the module, `{l}` being the layer, and one of its values.

    Attributes:
        module: the name of the module; where layers differ, several names with `|` between them, one for each layer.
        value: `in` or `out` for its input or output, `out.1` for the second part of an output, `outs` for all parts,
            `normalized` for the output of a norm before its gain.
        pick: selects the hook point's part of the value, given the text model's configuration; the result has the
            elements of [t, width] in their order. None for the whole value.
    """

    module: str
    value: str
    pick: Callable[[Any, Any], np.ndarray] | None = None


Places = dict[str, ReferencePlace]
LLAMA_PLACES: Places = {
    "hook_embed": ReferencePlace("model.layers.0", "in"),
    "hook_resid_pre": ReferencePlace("model.layers.{l}", "in"),
    "ln1.hook_normalized": ReferencePlace("model.layers.{l}.input_layernorm", "normalized"),
    "hook_attn_in": ReferencePlace("model.layers.{l}.self_attn", "in"),
    "attn.hook_q": ReferencePlace("model.layers.{l}.self_attn.q_proj", "out"),
    "attn.hook_k": ReferencePlace("model.layers.{l}.self_attn.k_proj", "out"),
    "attn.hook_v": ReferencePlace("model.layers.{l}.self_attn.v_proj", "out"),
    "attn.hook_z": ReferencePlace("model.layers.{l}.self_attn.o_proj", "in"),
    "hook_attn_out": ReferencePlace("model.layers.{l}.self_attn.o_proj", "out"),
    "hook_resid_mid": ReferencePlace("model.layers.{l}.post_attention_layernorm", "in"),
    "ln2.hook_normalized": ReferencePlace("model.layers.{l}.post_attention_layernorm", "normalized"),
    "hook_mlp_in": ReferencePlace("model.layers.{l}.mlp", "in"),
    "mlp.hook_pre": ReferencePlace("model.layers.{l}.mlp.gate_proj", "out"),
    "mlp.hook_post": ReferencePlace("model.layers.{l}.mlp.down_proj", "in"),
    "hook_mlp_out": ReferencePlace("model.layers.{l}.mlp", "out"),
    "hook_resid_post": ReferencePlace("model.layers.{l}", "out"),
    "ln_final.hook_normalized": ReferencePlace("model.norm", "out"),
}
# Of models with a second norm after attention and after the mlp.
GEMMA_PLACES: Places = {
    "hook_attn_out": ReferencePlace("model.layers.{l}.post_attention_layernorm", "out"),
    "hook_resid_mid": ReferencePlace("model.layers.{l}.pre_feedforward_layernorm", "in"),
    "ln2.hook_normalized": ReferencePlace("model.layers.{l}.pre_feedforward_layernorm", "normalized"),
    "hook_mlp_out": ReferencePlace("model.layers.{l}.post_feedforward_layernorm", "out"),
}
# Of models whose gate and up are side by side in the output of one module.
FUSED_MLP_PLACES: Places = {
    "mlp.hook_pre": ReferencePlace("model.layers.{l}.mlp.gate_up_proj", "out", lambda _, y: y[..., : y.shape[-1] // 2]),
}
# Of models that normalize the heads of q and k, [1, t, H, Dh].
QK_NORM_PLACES: Places = {
    "attn.hook_q": ReferencePlace("model.layers.{l}.self_attn.q_norm", "out"),
    "attn.hook_k": ReferencePlace("model.layers.{l}.self_attn.k_norm", "out"),
}


def inside_of(prefix: str, places: Places) -> Places:
    """Return the places of a text model that is a part of another model, whose modules begin with `prefix`."""
    return {hook: place._replace(module=prefix + place.module.removeprefix("model.")) for hook, place in places.items()}


def router_places(router: str) -> Places:
    """Return the places of the router's hook points, all in the output of a module of this name."""
    hooks = ("mlp.hook_router_logits", "mlp.hook_expert_weights", "mlp.hook_expert_indices")
    return {hook: ReferencePlace(router, f"out.{part}") for part, hook in enumerate(hooks)}


def sorted_router_places(router: str) -> Places:
    """Return the places of `router_places` for a router that gives the chosen experts in any order."""

    def weights(_: Any, outputs: tuple[np.ndarray, ...]) -> np.ndarray:
        return -np.sort(-outputs[1], axis=-1)

    def indices(_: Any, outputs: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.take_along_axis(outputs[2], np.argsort(-outputs[1], axis=-1, kind="stable"), axis=-1)

    picks = {"mlp.hook_expert_weights": weights, "mlp.hook_expert_indices": indices}
    return router_places(router) | {hook: ReferencePlace(router, "outs", pick) for hook, pick in picks.items()}


def renamed(names: Mapping[str, str], absent: Iterable[str] = ()) -> Places:
    """Return Llama's places with parts of the modules' names replaced in turn, without `absent` hook points."""
    places = {hook: place for hook, place in LLAMA_PLACES.items() if hook not in set(absent)}
    for old, new in names.items():
        places = {hook: place._replace(module=place.module.replace(old, new)) for hook, place in places.items()}
    return places


# Of mixtures that are named as Qwen3-MoE's.
ROUTER_PLACES = router_places("model.layers.{l}.mlp.gate")
# Rotary frequencies in the layers of older checkpoints.
_BUFFERS = r"rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Modules:
    """The flax modules of a family, by their names in `modules.py`.

    `block` is the function that makes a block, called with the configuration, the kind of layer, the dtype and this
    object: a family with layers of its own names its own.
    """

    norm: str = "RMSNorm"
    mlp: str = "GatedMLP"
    embedding: str = "Embedding"
    block: str = "extraction.models.block:make_block"


@dataclass(frozen=True)
class Family:
    """The reading, modules, weights and reference of the models of one model type. The defaults are Llama's.

    Attributes:
        read: makes our configuration of transformers'. An attribute that it reads counts as handled; another one that
            transformers' model reads must have its default.
        modules: the flax modules of the model.
        weight_table: the tensors that each part of the model is filled from, by names that begin with `prefix`.
        prefix: the beginning of the names of `weight_table`; files may have another one.
        buffers: a pattern of the tensors of a layer that are not parameters and are not read.
        unread: the names of further tensors of a kind of layer that files may have, and no layer reads.
        places: hook point -> its place in transformers' model.
        expert_stacks: the last part of the name of a tensor of all experts -> that of the kernels of one; see
            `expert_stacks.py`.
        inside: the part of the configuration to read, with a model type of its own; None for all of it.
        by_layer: the attributes that `per_layer_config` may set.
        flat: whether older files have the attributes of `inside` beside all others.
        quantisations: the methods of quantisation whose weights `weight_table` can read.
    """

    read: Callable[[ModelView, Path], ModelConfig]
    modules: Modules = Modules()
    weight_table: Callable[[ModelConfig], Table] = llama_table
    prefix: str = "model."
    buffers: str = _BUFFERS
    unread: Callable[[LayerKind], Sequence[str]] = lambda kind: ()
    places: Places = field(default_factory=lambda: LLAMA_PLACES)
    expert_stacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inside: str | None = None
    by_layer: tuple[str, ...] = ()
    flat: bool = False
    quantisations: tuple[str, ...] = ()


def text_model_of(family: Family) -> Family:
    """Return the family of models that contain a text model of this family."""
    return replace(family, places=inside_of("model.language_model.", family.places), inside="text_config")
