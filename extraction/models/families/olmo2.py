"""OLMo 2: no norm before attention and mlp but one after each, and q/k norms over all heads at once.

`hook_attn_out` and `hook_mlp_out` are the values added to the residual stream, after the norm. The weight names are
those of `Olmo2ForCausalLM`.
"""

from functools import partial
from pathlib import Path

from ..config import ModelConfig
from ..config_reads import ModelView
from ..tables import llama_table
from .base import LLAMA_PLACES, Family, Modules
from .reading import decoder

_NORMS = {"norm_attention_out": "post_attention_layernorm", "norm_mlp_out": "post_feedforward_layernorm"}
_PLACES = LLAMA_PLACES | {
    "hook_attn_out": ("model.layers.{l}.post_attention_layernorm", "out"),
    "hook_resid_mid": ("model.layers.{l}.mlp", "in"),
    "hook_mlp_out": ("model.layers.{l}.post_feedforward_layernorm", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, qk_norm="width")


OLMO2 = Family(
    _read,
    Modules(norm="WideRMSNorm", norms=("after",)),
    partial(llama_table, norm_names=_NORMS),
    places=_PLACES,
)
