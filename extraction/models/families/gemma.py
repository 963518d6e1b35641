"""Gemma 1, 2 and 3: a scaled embedding, and norms that scale by 1 + weight; of Gemma 3, the text model alone.

Gemma 2 and 3 have norms before and after attention and mlp. Gemma 2 caps its attention scores; Gemma 3 has q/k norms,
and its windowed layers have their own rotation. `hook_attn_out` and `hook_mlp_out` are the values added to the residual
stream, after the second norm, as in TransformerLens. The weight names are those of `GemmaForCausalLM`,
`Gemma2ForCausalLM` and `Gemma3ForCausalLM`; the models that also see (4B and larger) have another prefix.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import GEMMA_NORMS, llama_table
from .base import GEMMA_PLACES, LLAMA_PLACES, QK_NORM_PLACES, Family, Modules, text_model_of
from .reading import activation, alike, decoder, layer_kind, windowed, windowed_with_own_rope

_QK_NORM_PLACES = {  # of heads before their positions
    hook: place._replace(pick=lambda _, heads: heads.swapaxes(1, 2)) for hook, place in QK_NORM_PLACES.items()
}


def _gemma1(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path)))


def _gemma2(config: ModelView, path: Path) -> ModelConfig:
    layers = windowed(config, path, layer_kind(config, path))
    return _gemma(config, path, layers, softcap=config.attn_logit_softcapping)


def _gemma3(config: ModelView, path: Path) -> ModelConfig:
    return _gemma(config, path, windowed_with_own_rope(config, path), qk_norm="head")


def _gemma(config: ModelView, path: Path, layers: list[LayerKind], **more: Any) -> ModelConfig:
    return decoder(
        config,
        path,
        layers,
        activation=activation(config.hidden_activation, path),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        norms=("before", "after"),
        **more,
    )


_table = partial(llama_table, norm_names=GEMMA_NORMS)


_MODULES = Modules("OffsetRMSNorm", embedding="ScaledEmbedding")
GEMMA1 = Family(_gemma1, _MODULES)
GEMMA2 = Family(_gemma2, _MODULES, _table, places=LLAMA_PLACES | GEMMA_PLACES)
GEMMA3 = replace(GEMMA2, read=_gemma3, places=GEMMA2.places | _QK_NORM_PLACES)
GEMMA3_VISION = text_model_of(GEMMA3)
