"""OLMo 2 and 3: no norm before attention and mlp but one after each, and q/k norms over all heads at once.

In OLMo 3 some layers have a window, with a rotation of their own. `hook_attn_out` and `hook_mlp_out` are the values
added to the residual stream, after the norm. The weight names are those of `Olmo2ForCausalLM` and `Olmo3ForCausalLM`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import llama_table
from .base import LLAMA_PLACES, QK_NORM_PLACES, Family, Modules, ReferencePlace
from .reading import alike, decoder, layer_kind, windowed_with_own_rope

_NORMS = {"norm_attention_out": "post_attention_layernorm", "norm_mlp_out": "post_feedforward_layernorm"}
_BLOCK = "model.layers.{l}"
_PLACES = {
    hook: place for hook, place in (LLAMA_PLACES | QK_NORM_PLACES).items() if not hook.endswith("hook_normalized")
} | {
    "hook_attn_out": ReferencePlace(f"{_BLOCK}.post_attention_layernorm", "out"),
    "hook_resid_mid": ReferencePlace(f"{_BLOCK}.mlp", "in"),
    "hook_mlp_out": ReferencePlace(f"{_BLOCK}.post_feedforward_layernorm", "out"),
    "ln_final.hook_normalized": LLAMA_PLACES["ln_final.hook_normalized"],
}


def _olmo2(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path)), qk_norm="width", norms=("after",))


def _olmo3(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, windowed_with_own_rope(config, path), qk_norm="width", norms=("after",))


OLMO2 = Family(_olmo2, Modules("WideRMSNorm"), partial(llama_table, norm_names=_NORMS), places=_PLACES)
OLMO3 = replace(OLMO2, read=_olmo3)
