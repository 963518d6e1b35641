"""Granite: Llama's block with factors for the embedding, for the scores, and for what a block adds to its input.

`hook_embed` is the scaled embedding. `hook_attn_out` and `hook_mlp_out` are the values added to the residual stream,
with their factor. The weight names are those of `GraniteForCausalLM`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..used_config_keys import ModelView
from .base import LLAMA_PLACES, Family, Modules
from .reading import alike, decoder, layer_kind


def _read(config: ModelView, path: Path) -> ModelConfig:
    return decoder(
        config,
        path,
        alike(config, layer_kind(config, path)),
        mlp_bias=bool(config.mlp_bias),
        attention_scale=float(config.attention_multiplier),
        embedding_scale=float(config.embedding_multiplier),
        residual_scale=float(config.residual_multiplier),
    )


def _added(config: Any, y: np.ndarray) -> np.ndarray:
    return y * np.float32(config.residual_multiplier)


_ADDED = {hook: LLAMA_PLACES[hook]._replace(pick=_added) for hook in ("hook_attn_out", "hook_mlp_out")}
GRANITE = Family(_read, Modules(embedding="MultipliedEmbedding"), places=LLAMA_PLACES | _ADDED)
