"""Configurations of Llama (SmolLM2), Mistral, Qwen2, Qwen2.5 and Qwen3."""

from pathlib import Path
from typing import Any

from .base import ModelConfig
from .common import DECODER, decoder, window_by_layer, window_everywhere

LLAMA = DECODER | {"mlp_bias"}
MISTRAL = DECODER - {"attention_bias"} | {"sliding_window"}
QWEN = DECODER | {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"}


def llama(config: Any, path: Path) -> ModelConfig:
    return decoder(config, path, mlp_bias=bool(config.mlp_bias))


def mistral(config: Any, path: Path) -> ModelConfig:
    return decoder(config, path, **window_everywhere(config))


def qwen2(config: Any, path: Path) -> ModelConfig:
    """Biases on q, k and v, whatever the configuration says, and none elsewhere."""
    return decoder(config, path, qkv_bias=True, output_bias=False, **window_by_layer(config, path))


def qwen3(config: Any, path: Path) -> ModelConfig:
    return decoder(config, path, qk_norm="head", **window_by_layer(config, path))
