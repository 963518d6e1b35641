"""Llama (SmolLM2), SmolLM3, Mistral, Qwen2, Qwen2.5 and Qwen3: RMS norms before attention and a gated mlp.

Biases, q/k norms and windows follow the configuration. The weight names are those of `LlamaForCausalLM`.
"""

from dataclasses import replace
from pathlib import Path

from ..config import ModelConfig
from ..config_reads import ModelView
from .base import LLAMA_PLACES, QK_NORM_PLACES, Family
from .reading import alike, decoder, layer_kind, windowed


def _llama(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, alike(config, layer_kind(config, path)), mlp_bias=bool(config.mlp_bias))


def _smollm3(config: ModelView, path: Path) -> ModelConfig:
    """Read a model of which some layers have no rotation: those with a 0 in `no_rope_layers`."""
    layers = windowed(config, path, layer_kind(config, path))
    layers = [kind if config.no_rope_layers[at] else replace(kind, rope=None) for at, kind in enumerate(layers)]
    return decoder(config, path, layers, mlp_bias=bool(config.mlp_bias))


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


LLAMA, SMOLLM3 = Family(_llama), Family(_smollm3)
MISTRAL, QWEN2 = Family(_mistral), Family(_qwen2)
QWEN3 = Family(_qwen3, places=LLAMA_PLACES | QK_NORM_PLACES)
