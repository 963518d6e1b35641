"""Llama (SmolLM2), Mistral, Qwen2, Qwen2.5 and Qwen3: RMS norms before attention and a gated mlp.

Biases, q/k norms and windows are where the configuration says so. The weight names are those of `LlamaForCausalLM`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..config_reads import ModelView
from .base import Family
from .reading import decoder, window_by_layer, window_everywhere

if TYPE_CHECKING:
    from ..weights import Table


def _llama(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, mlp_bias=bool(config.mlp_bias))


def _mistral(config: ModelView, path: Path) -> ModelConfig:
    """A file with `layer_types` is read as Ministral's, whatever it calls itself."""
    by_layer = hasattr(config, "layer_types")
    return decoder(config, path, **(window_by_layer(config, path) if by_layer else window_everywhere(config)))


def _qwen2(config: ModelView, path: Path) -> ModelConfig:
    """Biases on q, k and v, whatever the configuration says, and none elsewhere."""
    return decoder(config, path, qkv_bias=True, output_bias=False, **window_by_layer(config, path))


def _qwen3(config: ModelView, path: Path) -> ModelConfig:
    return decoder(config, path, qk_norm="head", **window_by_layer(config, path))


def _parts(config: ModelConfig, dtype: Any) -> dict[str, Callable]:
    from ..block import parts
    from ..modules import GatedMLP, RMSNorm

    return parts(config, dtype, RMSNorm, GatedMLP)


def _weight_table(config: ModelConfig) -> "Table":
    from .. import tables

    norms = tables.norms({"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"})
    return tables.model(tables.attention(config) | tables.gated_mlp(config) | norms)


LLAMA = Family(_llama, _parts, _weight_table)
MISTRAL = replace(LLAMA, read=_mistral)
QWEN2 = replace(LLAMA, read=_qwen2)
QWEN3 = replace(LLAMA, read=_qwen3)
