"""Llama (SmolLM2), Mistral, Qwen2, Qwen2.5 and Qwen3: RMS norms before attention and a gated mlp.

Biases, q/k norms and windows follow the configuration. The weight names are those of `LlamaForCausalLM`.
"""

from pathlib import Path

from ..config import ModelConfig
from ..config_reads import ModelView
from .base import Family
from .reading import decoder, window_by_layer, window_everywhere


def _llama(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, mlp_bias=bool(config.mlp_bias))


def _mistral(config: ModelView, path: Path) -> ModelConfig:
    """Read a file with `layer_types` as Ministral's, independent of its model type."""
    by_layer = hasattr(config, "layer_types")
    return decoder(config, path, **(window_by_layer(config, path) if by_layer else window_everywhere(config)))


def _qwen2(config: ModelView, path: Path) -> ModelConfig:
    """Read a model with biases on q, k and v, and no others, independent of the configuration."""
    return decoder(config, path, qkv_bias=True, output_bias=False, **window_by_layer(config, path))


def _qwen3(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, qk_norm="head", **window_by_layer(config, path))


LLAMA, MISTRAL, QWEN2, QWEN3 = Family(_llama), Family(_mistral), Family(_qwen2), Family(_qwen3)
