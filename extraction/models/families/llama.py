"""Llama (SmolLM2), SmolLM3, Mistral 1 to 3, Qwen2, Qwen2.5 and Qwen3: RMS norms before attention and a gated mlp.

Biases, q/k norms and windows follow the configuration. The weight names are those of `LlamaForCausalLM`.
"""

from dataclasses import replace
from pathlib import Path

from ..config import ModelConfig, QueryGrowth
from ..used_config_keys import ModelView
from .base import LLAMA_PLACES, QK_NORM_PLACES, Family, text_model_of
from .reading import alike, decoder, layer_kind, windowed


def _llama(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path)), mlp_bias=bool(config.mlp_bias))


def _smollm3(config: ModelView, path: Path) -> ModelConfig:
    """Read a model of which some layers have no rotation: those with a 0 in `no_rope_layers`."""
    layers = windowed(config, path, layer_kind(config, path))
    layers = [kind if config.no_rope_layers[at] else replace(kind, rope=None) for at, kind in enumerate(layers)]
    return decoder(config, path, layers, mlp_bias=bool(config.mlp_bias))


def _ministral3(config: ModelView, path: Path) -> ModelConfig:
    """Read a model whose queries grow with their position."""
    parameters, growth = config.rope_parameters, None
    if rate := parameters.get("llama_4_scaling_beta"):
        growth = QueryGrowth(float(rate), int(parameters["original_max_position_embeddings"]))
    return decoder(config, path, alike(config, layer_kind(config, path, growth=growth)))


def _mistral3(config: ModelView, path: Path) -> ModelConfig:
    """Read the text model of Mistral 3, of either type."""
    return (_ministral3 if config.model_type == "ministral3" else _mistral)(config, path)


def _mistral(config: ModelView, path: Path) -> ModelConfig:
    """Read a file with `layer_types` as Ministral's, independent of its model type."""
    kind, by_layer = layer_kind(config, path), hasattr(config, "layer_types")
    return decoder(config, path, windowed(config, path, kind) if by_layer else alike(config, kind))


def _qwen2(config: ModelView, path: Path) -> ModelConfig:
    """Read a model with biases on q, k and v, and no others, independent of the configuration."""
    layers = windowed(config, path, layer_kind(config, path))
    return decoder(config, path, layers, qkv_bias=True, output_bias=False)


def _qwen3(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, windowed(config, path, layer_kind(config, path)), qk_norm="head")


def _qwen3_vl(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path)), qk_norm="head")


LLAMA, SMOLLM3 = Family(_llama), Family(_smollm3)
MISTRAL, QWEN2 = Family(_mistral), Family(_qwen2)
MINISTRAL3 = Family(_ministral3)
QWEN3 = Family(_qwen3, places=LLAMA_PLACES | QK_NORM_PLACES)
# The text models of models that also see.
MISTRAL3 = text_model_of(Family(_mistral3))
QWEN2_VL = replace(text_model_of(QWEN2), flat=True)
QWEN3_VL = text_model_of(replace(QWEN3, read=_qwen3_vl))
