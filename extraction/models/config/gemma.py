"""Configurations of Gemma 2 and of the text models of Gemma 3, alone or in a model that also sees."""

from pathlib import Path
from typing import Any

from ...errors import InvalidRequest
from .base import ModelConfig
from .common import DECODER, activation, decoder, rope, window_by_layer

# The reference reads `hidden_activation` and `sliding_window`; files may also have `hidden_act`, `sliding_window_size`.
_GEMMA = DECODER | {
    "attn_logit_softcapping", "cache_implementation", "final_logit_softcapping", "hidden_activation", "layer_types",
    "query_pre_attn_scalar", "sliding_window", "sliding_window_size",
}
GEMMA2 = _GEMMA
GEMMA3_VISION = {
    "boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image", "text_config", "vision_config",
}
GEMMA3 = _GEMMA | {"_sliding_window_pattern", "rope_local_base_freq", "sliding_window_pattern"}


def gemma2(config: Any, path: Path) -> ModelConfig:
    return _gemma(config, path, softcap=config.attn_logit_softcapping)


def gemma3(config: Any, path: Path) -> ModelConfig:
    """Layers with the window have their own rotation."""
    if config.attn_logit_softcapping is not None:
        raise InvalidRequest(f"{path}: attn_logit_softcapping is not handled for {config.model_type}")
    kinds = config.rope_parameters
    return _gemma(
        config, path, qk_norm="head", rope=rope(kinds["full_attention"], config, path),
        window_rope=rope(kinds["sliding_attention"], config, path),
    )


def _gemma(config: Any, path: Path, **more: Any) -> ModelConfig:
    return decoder(
        config, path, activation=activation(config.hidden_activation, path),
        attention_scale=config.query_pre_attn_scalar**-0.5, **window_by_layer(config, path), **more,
    )
