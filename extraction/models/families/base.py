"""The description of a model family: `Family`. No jax and no torch.

In: a configuration as transformers read it. Out: our configuration, flax modules, a weight table. Guarantee: reading a
configuration loads neither jax nor flax; `Family.parts` imports them. Cost: none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..config_reads import ModelView
from ..tables import Table, llama_table

if TYPE_CHECKING:
    import jax.numpy as jnp
    from flax import nnx

# The place of each hook point in transformers' Llama: a module's name, and its input or output.
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
# Rotary frequencies in the layers of older checkpoints.
_BUFFERS = r"rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class Modules:
    """The flax modules of a family, by their names in `modules.py` or `mixture.py`.

    `norms` says where a block has norms: `before` attention and mlp, `after` them, or both.
    """

    norm: str = "RMSNorm"
    mlp: str = "GatedMLP"
    embedding: str = "Embedding"
    norms: tuple[str, ...] = ("before",)


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
        places: hook point -> the module of transformers' model (`{l}` is the layer) whose input (`in`) or output
            (`out`) it is.
        inside: the part of the configuration to read, with a model type of its own; None for all of it.
    """

    read: Callable[[ModelView, Path], ModelConfig]
    modules: Modules = Modules()
    weight_table: Callable[[ModelConfig], Table] = llama_table
    prefix: str = "model."
    buffers: str = _BUFFERS
    places: Mapping[str, tuple[str, str]] = field(default_factory=lambda: LLAMA_PLACES)
    inside: str | None = None

    def parts(self, config: ModelConfig, dtype: "jnp.dtype") -> "dict[str, Callable[[], nnx.Module]]":
        """Return the functions that make `embedding`, one block of `blocks`, and `final_norm`."""
        from ..block import parts

        return parts(config, dtype, self.modules)
