"""Qwen3-Next and Qwen3.5: Gated DeltaNets, and after every third of them an attention layer with an output gate.

In Qwen3-Next and Qwen3.5-MoE the mlp is a mixture with a shared expert. Norms scale by 1 + weight. In a DeltaNet layer
`hook_attn_in`, `hook_z` and `hook_attn_out` belong to the DeltaNet; `hook_z` is after the output gate in both kinds of
layers, as it is what the output projection reads. The weight names are those of `Qwen3NextForCausalLM`,
`Qwen3_5ForCausalLM` and `Qwen3_5MoeForCausalLM`; of models that also see, only the text model runs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config import DeltaNet, Experts, LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import (
    EXPERT_STACKS,
    LLAMA_NORMS,
    Entries,
    Entry,
    Table,
    attention,
    from_heads,
    gated_mlp,
    linear,
    llama_table,
    named_experts,
    norms,
    shared_entries,
    to_heads,
)
from .base import LLAMA_PLACES, QK_NORM_PLACES, ROUTER_PLACES, Family, Modules, ReferencePlace
from .reading import by_layer_types, checked_experts, decoder, has_mixture, layer_kind, rope

if TYPE_CHECKING:
    import jax

_BLOCK = "model.layers.{l}"
_MIXER, _OUTPUT = f"{_BLOCK}.self_attn|{_BLOCK}.linear_attn", f"{_BLOCK}.self_attn.o_proj|{_BLOCK}.linear_attn.out_proj"
_PLACES = (
    LLAMA_PLACES
    | QK_NORM_PLACES
    | {
        "hook_attn_in": ReferencePlace(_MIXER, "in"),
        "attn.hook_z": ReferencePlace(_OUTPUT, "in"),
        "hook_attn_out": ReferencePlace(_OUTPUT, "out"),
    }
)


def _hybrid(config: ModelView, path: Path, kind: LayerKind) -> ModelConfig:
    """Read a model of DeltaNets and attention layers, whose mlp is that of `kind`."""
    delta_net = replace(
        kind,
        num_heads=config.linear_num_value_heads,
        num_kv_heads=config.linear_num_key_heads,
        head_width=config.linear_value_head_dim,
        rope=None,
        recurrent=DeltaNet(config.linear_key_head_dim, config.linear_conv_kernel_dim),
    )
    layers = by_layer_types(config, path, {"full_attention": kind, "linear_attention": delta_net})
    return decoder(config, path, layers, qk_norm="head", output_gate=True)


def _attention(config: ModelView, path: Path, mlp_width: int) -> LayerKind:
    """Read an attention layer, a part of whose heads is rotated."""
    parameters = config.rope_parameters
    fraction = parameters.get("partial_rotary_factor", 1.0)
    return layer_kind(config, path, mlp_width=mlp_width, rope=rope(parameters, config, path, fraction))


def _qwen3_5(config: ModelView, path: Path) -> ModelConfig:
    return _hybrid(config, path, _attention(config, path, config.intermediate_size))


def _mixture(config: ModelView, path: Path, normalized: bool) -> ModelConfig:
    """Read a model with a mixture in each layer."""
    count, shared_width = config.num_experts, config.shared_expert_intermediate_size
    experts = Experts(count, config.num_experts_per_tok, normalized, shared_width=shared_width, shared_gate=True)
    experts = checked_experts(experts, path)
    return _hybrid(config, path, replace(_attention(config, path, config.moe_intermediate_size), experts=experts))


def _qwen3_5_moe(config: ModelView, path: Path) -> ModelConfig:
    return _mixture(config, path, normalized=True)


def _qwen3_next(config: ModelView, path: Path) -> ModelConfig:
    """Read a model in which some layers have a dense mlp in place of the mixture."""
    found = _mixture(config, path, bool(config.norm_topk_prob))
    layers, dense_width = list(found.layers), config.intermediate_size
    for at, kind in enumerate(layers):
        if not has_mixture(config, at):
            layers[at] = replace(kind, mlp_width=dense_width, experts=None)
    return replace(found, layers=tuple(layers))


class _TensorRows(NamedTuple):
    """The rows of a tensor that a parameter is made of: `first` to `end` in each of `groups` equal parts of it."""

    theirs: str
    groups: int = 1
    first: int = 0
    end: int | None = None

    def entry(self, width: int | None = None) -> Entry:
        """Return the entry of a parameter with these rows, as heads of this width or as they are."""
        return Entry(f"{_BLOCK}.linear_attn.{self.theirs}.weight", partial(self._cut, width))

    def _cut(self, width: int | None, tensor: "jax.Array") -> "jax.Array":
        rows = tensor.reshape(self.groups, tensor.shape[0] // self.groups, -1)[:, self.first : self.end]
        return rows.reshape(*(-1,) if width is None else (-1, width), rows.shape[-1])


def _in_turn(kind: LayerKind) -> dict[str, _TensorRows]:
    """Return the rows of Qwen3.5's projections: q, k and v one after the other, the others apart."""
    apart = {"gate": "in_proj_z", "rate": "in_proj_b", "decay": "in_proj_a"}
    return _q_k_v("in_proj_qkv", kind) | {ours: _TensorRows(theirs) for ours, theirs in apart.items()}


def _by_key_head(kind: LayerKind) -> dict[str, _TensorRows]:
    """Return the rows of Qwen3-Next's projections: for each head of keys all that belongs to it."""
    heads, width, shared = kind.num_kv_heads, kind.required_recurrence.key_width, kind.num_heads // kind.num_kv_heads
    values = 2 * width + shared * kind.head_width
    return {
        "queries": _TensorRows("in_proj_qkvz", heads, 0, width),
        "keys": _TensorRows("in_proj_qkvz", heads, width, 2 * width),
        "values": _TensorRows("in_proj_qkvz", heads, 2 * width, values),
        "gate": _TensorRows("in_proj_qkvz", heads, values),
        "rate": _TensorRows("in_proj_ba", heads, 0, shared),
        "decay": _TensorRows("in_proj_ba", heads, shared),
    }


def _q_k_v(theirs: str, kind: LayerKind) -> dict[str, _TensorRows]:
    keys = kind.num_kv_heads * kind.required_recurrence.key_width
    return {
        "queries": _TensorRows(theirs, 1, 0, keys),
        "keys": _TensorRows(theirs, 1, keys, 2 * keys),
        "values": _TensorRows(theirs, 1, 2 * keys),
    }


def _delta_net(projections: dict[str, _TensorRows], kind: LayerKind) -> Entries:
    keys, values, place = kind.required_recurrence.key_width, kind.head_width, f"{_BLOCK}.linear_attn"
    widths = {"queries": keys, "keys": keys, "values": values, "gate": values}
    table = {f"attention.{ours}.kernel": rows.entry(widths.get(ours)) for ours, rows in projections.items()}
    for ours, rows in _q_k_v("conv1d", kind).items():
        table[f"attention.{ours}.filter"] = rows.entry(widths[ours])
    table |= {"attention.decay.log_rate": Entry(f"{place}.A_log"), "attention.decay.bias": Entry(f"{place}.dt_bias")}
    table["attention.o.kernel"] = Entry(f"{place}.out_proj.weight", partial(from_heads, values))
    return table | norms({"attention.norm": "linear_attn.norm"})


def _gated_attention(config: ModelConfig, kind: LayerKind) -> Entries:
    """Return the entries of attention; q and its gate are side by side for each head."""
    table = attention(config, kind)
    for part in ("kernel", "bias") if config.qkv_bias else ("kernel",):
        name = table[f"attention.q.{part}"].name
        for half, ours in enumerate(("q", "gate")):
            table[f"attention.{ours}.{part}"] = Entry(name, partial(_half, half, kind.head_width))
    return table


def _half(index: int, head_width: int, tensor: "jax.Array") -> "jax.Array":
    heads = to_heads(2 * head_width, tensor)
    return heads[:, index * head_width : (index + 1) * head_width]


def _mlp(config: ModelConfig, kind: LayerKind) -> Entries:
    if not kind.experts:
        return gated_mlp(config)
    gate = linear("mlp.shared_gate", f"{_BLOCK}.mlp.shared_expert_gate", False)
    return named_experts(kind) | gate | shared_entries(config, f"{_BLOCK}.mlp.shared_expert")


def _table(projections: Callable[[LayerKind], dict[str, _TensorRows]], config: ModelConfig) -> Table:
    def block(kind: LayerKind) -> Entries:
        mixer = _delta_net(projections(kind), kind) if kind.recurrent else _gated_attention(config, kind)
        return norms(LLAMA_NORMS) | mixer | _mlp(config, kind)

    return llama_table(config)._replace(block=block)


QWEN3_NEXT = Family(
    _qwen3_next,
    Modules("OffsetRMSNorm"),
    partial(_table, _by_key_head),
    places=_PLACES | ROUTER_PLACES,
    expert_stacks=EXPERT_STACKS,
)
QWEN3_5_MOE = replace(QWEN3_NEXT, read=_qwen3_5_moe, weight_table=partial(_table, _in_turn))
QWEN3_5 = replace(QWEN3_5_MOE, read=_qwen3_5, places=_PLACES, expert_stacks={})
QWEN3_5_VISION, QWEN3_5_MOE_VISION = (replace(family, inside="text_config") for family in (QWEN3_5, QWEN3_5_MOE))
