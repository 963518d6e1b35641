"""Gemma 2 and 3: norms before and after attention and mlp, and a scaled embedding; of Gemma 3, the text model alone.

Gemma 2 caps its attention scores; Gemma 3 has q/k norms, and its windowed layers have their own rotation. Norms scale
by 1 + weight. `hook_attn_out` and `hook_mlp_out` are the values added to the residual stream, after the second norm, as
in TransformerLens. The weight names are those of `Gemma2ForCausalLM`, `Gemma3ForCausalLM` and, for the models that
also see (4B and larger), `Gemma3ForConditionalGeneration`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..config_reads import ModelView
from ..tables import Table, llama_table
from .base import LLAMA_PLACES, Family, Modules
from .reading import activation, decoder, rope, window_by_layer

_NORMS = {
    "norm_attention": "input_layernorm",
    "norm_attention_out": "post_attention_layernorm",
    "norm_mlp": "pre_feedforward_layernorm",
    "norm_mlp_out": "post_feedforward_layernorm",
}
_PLACES = LLAMA_PLACES | {
    "hook_attn_out": ("model.layers.{l}.post_attention_layernorm", "out"),
    "hook_resid_mid": ("model.layers.{l}.pre_feedforward_layernorm", "in"),
    "hook_mlp_out": ("model.layers.{l}.post_feedforward_layernorm", "out"),
}


def _gemma2(config: ModelView, path: Path) -> ModelConfig:
    return _gemma(config, path, softcap=config.attn_logit_softcapping)


def _gemma3(config: ModelView, path: Path) -> ModelConfig:
    """Read a model whose windowed layers have their own rotation."""
    kinds = config.rope_parameters
    return _gemma(
        config,
        path,
        qk_norm="head",
        rope=rope(kinds["full_attention"], config, path),
        window_rope=rope(kinds["sliding_attention"], config, path),
    )


def _gemma(config: ModelView, path: Path, **more: Any) -> ModelConfig:
    return decoder(
        config,
        path,
        activation=activation(config.hidden_activation, path),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        **window_by_layer(config, path),
        **more,
    )


_table = partial(llama_table, norm_names=_NORMS)


def _inner_table(config: ModelConfig) -> Table:
    return {
        part: {ours: replace(entry, name=f"language_model.{entry.name}") for ours, entry in table.items()}
        for part, table in _table(config).items()
    }


GEMMA2 = Family(
    _gemma2,
    Modules("OffsetRMSNorm", "GatedMLP", "ScaledEmbedding", norms=("before", "after")),
    _table,
    places=_PLACES,
)
GEMMA3 = replace(GEMMA2, read=_gemma3)
GEMMA3_VISION = replace(
    GEMMA3,
    inside="text_config",
    weight_table=_inner_table,
    prefix="language_model.model.",
    places={hook: (path.replace("model.", "model.language_model.", 1), side) for hook, (path, side) in _PLACES.items()},
)
