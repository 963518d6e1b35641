"""GLM-4: a part of each head is rotated, even columns against odd ones; gate and up are one tensor.

`glm` (GLM-4-9B) has norms before attention and mlp, `glm4` (GLM-4-0414 and later) also after them, where
`hook_attn_out` and `hook_mlp_out` are the values after the second norm. The weight names are those of `GlmForCausalLM`
and `Glm4ForCausalLM`.
"""

from functools import partial
from pathlib import Path

from ..config import ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import LLAMA_NORMS, llama_table
from .base import FUSED_MLP_PLACES, LLAMA_PLACES, Family, ReferencePlace
from .reading import alike, decoder, layer_kind, partial_rope

_BLOCK = "model.layers.{l}"
_PLACES = LLAMA_PLACES | FUSED_MLP_PLACES
_NORMS_AFTER = {"norm_attention_out": "post_self_attn_layernorm", "norm_mlp_out": "post_mlp_layernorm"}


def _read(config: ModelView, path: Path, norms: tuple[str, ...]) -> ModelConfig:
    """Read a model whose output projection has no bias, independent of the configuration."""
    kind = layer_kind(config, path, rope=partial_rope(config, path, interleaved=True))
    return decoder(config, path, alike(config, kind), output_bias=False, norms=norms)


_table = partial(llama_table, fused=("mlp",))
GLM = Family(partial(_read, norms=("before",)), weight_table=_table, places=_PLACES)
GLM4 = Family(
    partial(_read, norms=("before", "after")),
    weight_table=partial(_table, norm_names=LLAMA_NORMS | _NORMS_AFTER),
    places=_PLACES
    | {
        "hook_attn_out": ReferencePlace(f"{_BLOCK}.post_self_attn_layernorm", "out"),
        "hook_mlp_out": ReferencePlace(f"{_BLOCK}.post_mlp_layernorm", "out"),
    },
)
