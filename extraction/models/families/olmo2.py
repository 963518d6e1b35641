"""OLMo 2: no norm before attention and mlp but one after each, and q/k norms over all heads at once.

`hook_attn_out` and `hook_mlp_out` are what is added to the residual stream, after the norm. The weight names are those
of `Olmo2ForCausalLM`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..config_reads import ModelView
from .base import LLAMA_PLACES, Family
from .reading import decoder

if TYPE_CHECKING:
    from ..weights import Table

_PLACES = LLAMA_PLACES | {
    "hook_attn_out": ("model.layers.{l}.post_attention_layernorm", "out"),
    "hook_resid_mid": ("model.layers.{l}.mlp", "in"),
    "hook_mlp_out": ("model.layers.{l}.post_feedforward_layernorm", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, qk_norm="width")


def _parts(config: ModelConfig, dtype: Any) -> dict[str, Callable]:
    from ..block import parts
    from ..modules import GatedMLP, WideRMSNorm

    return parts(config, dtype, WideRMSNorm, GatedMLP, norms=("after",))


def _weight_table(config: ModelConfig) -> "Table":
    from .. import tables

    norms = tables.norms(
        {
            "norm_attention_out": "post_attention_layernorm",
            "norm_mlp_out": "post_feedforward_layernorm",
        }
    )
    return tables.model(tables.attention(config) | tables.gated_mlp(config) | norms)


OLMO2 = Family(_read, _parts, _weight_table, places=_PLACES)
