"""Nemotron-H and Nemotron 3: layers that are each one of Mamba-2, attention without rotation, a plain mlp, a mixture.

A layer has the hook points of its part and no `hook_resid_mid`. In Mamba-2 layers `hook_z` is after gate and norm, as
it is what the output projection reads. The weight names are those of `NemotronHForCausalLM`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Experts, Groups, LayerKind, Mamba, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import (
    LM_HEAD,
    Entries,
    Entry,
    Table,
    attention,
    from_heads,
    linear,
    mixture_entries,
    norms,
    part_of,
    to_heads,
    unchanged,
)
from .base import Family, Modules, ReferencePlace, renamed, sorted_router_places
from .reading import activation, by_layer_types, checked_experts, decoder, layer_kind

if TYPE_CHECKING:
    import jax

_BLOCK = "model.layers.{l}"
_MIXER = f"{_BLOCK}.mixer"
_OF_MIXTURES = ("n_routed_experts", "num_experts_per_tok", "norm_topk_prob", "n_group", "topk_group")
_OF_MIXTURES += ("routed_scaling_factor", "moe_intermediate_size", "moe_shared_expert_intermediate_size")
_OF_MIXTURES += ("moe_latent_size",)
_OUTPUT = f"{_MIXER}.o_proj|{_MIXER}.out_proj"


def _read(config: ModelView, path: Path) -> ModelConfig:
    kind = layer_kind(config, path, rope=None, parts=("attention",))
    of_state = activation(config.mamba_hidden_act, path)
    mamba = replace(
        kind,
        num_heads=config.mamba_num_heads,
        num_kv_heads=config.n_groups,
        head_width=config.mamba_head_dim,
        recurrent=Mamba(config.ssm_state_size, config.conv_kernel, float(config.time_step_min), of_state),
    )
    dense = replace(kind, parts=("mlp",))
    kinds = {"full_attention": kind, "linear_attention": mamba, "mlp": dense}
    if "moe" in config.layer_types:
        kinds["moe"] = replace(dense, mlp_width=config.moe_intermediate_size, experts=_experts(config, path))
    else:
        config.pass_over(*_OF_MIXTURES)
    return decoder(
        config,
        path,
        by_layer_types(config, path, kinds),
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.mlp_hidden_act, path),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=bool(config.mlp_bias),
    )


def _experts(config: ModelView, path: Path) -> Experts:
    """Read the mixture of experts without a gate. An expert that reads a narrower vector is refused."""
    experts = Experts(
        config.n_routed_experts,
        config.num_experts_per_tok,
        normalized=bool(config.norm_topk_prob),
        gated=False,
        sigmoid=True,
        corrected=True,
        groups=Groups(config.n_group, config.topk_group, best=2),
        scale=float(config.routed_scaling_factor),
        shared_width=config.moe_shared_expert_intermediate_size,
    )
    return checked_experts(experts, path)


def _weight_table(config: ModelConfig) -> Table:
    embedding, final = {"table": Entry("model.embeddings.weight")}, {"scale": Entry("model.norm_f.weight")}
    return Table(embedding, partial(_block, config), final, LM_HEAD)


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    if kind.experts:
        return _mixture(kind, config.mlp_bias) | norms({"norm_mlp": "norm"})
    if "mlp" in kind.parts:
        table = linear("mlp.up", f"{_MIXER}.up_proj", config.mlp_bias) | norms({"norm_mlp": "norm"})
        return table | linear("mlp.down", f"{_MIXER}.down_proj", config.mlp_bias)
    return (_mamba(kind) if kind.recurrent else attention(config, kind, _MIXER)) | norms({"norm_attention": "norm"})


def _mixture(kind: LayerKind, bias: bool) -> Entries:
    table = mixture_entries("mixer", {"up": "up_proj", "down": "down_proj"}, kind)
    table["mlp.correction"] = Entry(f"{_MIXER}.gate.e_score_correction_bias")
    for name in ("up", "down"):
        table |= linear(f"mlp.shared.{name}", f"{_MIXER}.shared_experts.{name}_proj", bias)
    return table


def _mamba(kind: LayerKind) -> Entries:
    """Return the entries of Mamba-2, whose projections are below each other in one tensor."""
    values, state = kind.heads_width, kind.required_recurrence.key_width
    keys = kind.num_kv_heads * state
    widths = (values, values, keys, keys, kind.num_heads)
    heads, of_keys = partial(to_heads, kind.head_width), partial(to_heads, state)
    table: Entries = {}
    for at, (ours, transform) in enumerate(
        {"gate": heads, "values": heads, "keys": of_keys, "queries": of_keys, "decay": unchanged}.items()
    ):
        part = partial(part_of, widths, at, transform)
        table[f"attention.{ours}.kernel"] = Entry(f"{_MIXER}.in_proj.weight", part)
        if 0 < at < 4:
            convolved = partial(part_of, widths[1:4], at - 1)
            filters = partial(convolved, partial(_filter, transform))
            table[f"attention.{ours}.filter"] = Entry(f"{_MIXER}.conv1d.weight", filters)
            table[f"attention.{ours}.filter_bias"] = Entry(f"{_MIXER}.conv1d.bias", partial(convolved, transform))
    return table | {
        "attention.decay.log_rate": Entry(f"{_MIXER}.A_log"),
        "attention.decay.bias": Entry(f"{_MIXER}.dt_bias"),
        "attention.skip": Entry(f"{_MIXER}.D"),
        "attention.norm.scale": Entry(f"{_MIXER}.norm.weight", heads),
        "attention.o.kernel": Entry(f"{_MIXER}.out_proj.weight", partial(from_heads, kind.head_width)),
    }


def _filter(transform: "Callable[[jax.Array], jax.Array]", tensor: "jax.Array") -> "jax.Array":
    """Return [H, Dh, n] of [H*Dh, 1, n]."""
    return transform(tensor[:, 0])


NEMOTRON_H = Family(
    _read,
    Modules("WideRMSNorm", mlp="MLP"),
    _weight_table,
    places=renamed(
        {
            "self_attn": "mixer",
            "mlp.gate_proj": "mixer.up_proj",
            ".mlp": ".mixer",
            "input_layernorm": "norm",
            "post_attention_layernorm": "norm",
            "model.norm": "model.norm_f",
        }
    )
    | sorted_router_places(f"{_MIXER}.gate")
    | {"attn.hook_z": ReferencePlace(_OUTPUT, "in"), "hook_attn_out": ReferencePlace(_OUTPUT, "out")},
)
