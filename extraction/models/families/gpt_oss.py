"""gpt-oss: attention sinks, windows in every other layer, and a mixture with biases and a clamped gate.

`mlp.hook_pre` and `mlp.hook_post` do not exist, as in any mixture. The weight names are those of `GptOssForCausalLM`:
all experts are in one tensor, gate and up interleaved, in bfloat16 or packed as MXFP4.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ClampedGate, Experts, LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import Entries, Entry, Table, linear, llama_table, unchanged
from .base import LLAMA_PLACES, Family, Modules, ReferencePlace, router_places
from .reading import checked_experts, decoder, layer_kind, windowed

if TYPE_CHECKING:
    import jax

_MLP = "model.layers.{l}.mlp"
_PLACES = LLAMA_PLACES | router_places(f"{_MLP}.router") | {"hook_mlp_out": ReferencePlace(_MLP, "out.0")}


def _read(config: ModelView, path: Path) -> ModelConfig:
    gate = ClampedGate(float(config.swiglu_alpha), float(config.swiglu_limit))
    experts = Experts(config.num_local_experts, config.num_experts_per_tok, True, biases=True, gate=gate)
    kind = layer_kind(config, path, experts=checked_experts(experts, path))
    # The activation is the gate's own: transformers' model reads no `hidden_act`.
    return decoder(config, path, windowed(config, path, kind), activation="silu", sinks=True)


def _weight_table(config: ModelConfig) -> Table:
    table = llama_table(config, mixture=partial(_mixture, config.quantised is not None))
    sinks = {"attention.sinks": Entry("model.layers.{l}.self_attn.sinks")}
    return table._replace(block=lambda kind: table.block(kind) | sinks)


def _mixture(packed: bool, kind: LayerKind) -> Entries:
    entries = linear("mlp.router", f"{_MLP}.router", True)
    for ours, theirs, part in (("gate", "gate_up", _gate), ("up", "gate_up", _up), ("down", "down", unchanged)):
        name = f"{_MLP}.experts.{theirs}_proj"
        kernel = Entry(f"{name}_blocks", partial(_expanded, part), packed=True) if packed else Entry(name, part)
        entries |= {f"mlp.experts.{ours}.kernel": kernel, f"mlp.experts.{ours}.bias": Entry(f"{name}_bias", part)}
    return entries


def _gate(tensor: "jax.Array") -> "jax.Array":
    return tensor[..., ::2]


def _up(tensor: "jax.Array") -> "jax.Array":
    return tensor[..., 1::2]


def _expanded(part: Callable[["jax.Array"], "jax.Array"], blocks: "jax.Array", scales: "jax.Array") -> "jax.Array":
    """Return kernels [E, I, O] of packed ones: blocks [E, O, I/32, 16] and scales [E, O, I/32]."""
    from ..mxfp4 import expand_mxfp4  # needs jax

    return part(expand_mxfp4(blocks, scales).swapaxes(1, 2))


GPT_OSS = Family(_read, Modules("WideRMSNorm"), _weight_table, places=_PLACES, quantisations=("mxfp4",))
