"""What is known of a family: `Family`, and what most have in common. No jax and no torch.

A family's file is imported to read a configuration, where jax is not loaded: its `parts` and `weight_table` import what
they are made of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..config_reads import ModelView

if TYPE_CHECKING:
    from flax import nnx

    from ..weights import Table

# Where each hook point is in Llama of transformers: the module's name, and whether its input or its output.
LLAMA_PLACES = {
    "hook_resid_pre": ("model.layers.{l}", "in"),
    "attn.hook_z": ("model.layers.{l}.self_attn.o_proj", "in"),
    "hook_attn_out": ("model.layers.{l}.self_attn.o_proj", "out"),
    "hook_resid_mid": ("model.layers.{l}.post_attention_layernorm", "in"),
    "mlp.hook_post": ("model.layers.{l}.mlp.down_proj", "in"),
    "hook_mlp_out": ("model.layers.{l}.mlp", "out"),
    "hook_resid_post": ("model.layers.{l}", "out"),
    "ln_final.hook_normalized": ("model.norm", "out"),
}
# Rotary frequencies, which the layers of older checkpoints carry along.
_BUFFERS = r"rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Family:
    """How the models of one model type are read, made, filled and compared.

    `read(config, path)` makes our configuration of transformers'. What it asks of `config` counts as handled; another
    attribute that transformers' model reads must be at its default. `inside` names the part of the configuration that
    is read, which has a model type of its own. `parts(config, dtype)`
    gives what makes `embedding`, one block of `blocks`, and `final_norm`; `weight_table(config)` says for each of them
    which tensors it is filled from, by names that begin with `prefix`; files may have another one. `buffers` is a
    pattern of what a layer may have beside them and that is not read. `places` says for each hook point which module of transformers' model has it as its input (`in`) or
    output (`out`), `{l}` being the layer.
    """

    read: Callable[[ModelView, Path], ModelConfig]
    parts: Callable[[ModelConfig, Any], "dict[str, Callable[[], nnx.Module]]"]
    weight_table: Callable[[ModelConfig], "Table"]
    prefix: str = "model."
    buffers: str = _BUFFERS
    places: Mapping[str, tuple[str, str]] = field(default_factory=lambda: LLAMA_PLACES)
    inside: str | None = None
