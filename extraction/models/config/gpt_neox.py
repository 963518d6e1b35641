"""Configurations of GPT-NeoX and Pythia."""

from pathlib import Path
from typing import Any

from ...errors import InvalidRequest
from .base import ModelConfig
from .common import activation, rope

GPT_NEOX = {
    "attention_bias", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "partial_rotary_factor", "rope_parameters", "rope_scaling",
    "rope_theta", "rotary_emb_base", "rotary_pct", "use_parallel_residual", "vocab_size",
}


def gpt_neox(config: Any, path: Path) -> ModelConfig:
    """A part of each head's width is rotated. Files of transformers 4 say so twice; the reference reads one of them."""
    parameters = dict(config.rope_parameters)
    for name in ("partial_rotary_factor", "rope_theta"):
        if (said := getattr(config, name, None)) not in (None, parameters[name]):
            raise InvalidRequest(f"{path}: {name} = {said} is not handled for gpt_neox beside {parameters[name]}")
    fraction = float(parameters.pop("partial_rotary_factor", 1.0))
    return ModelConfig(
        family="gpt_neox",
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        mlp_width=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_epsilon=config.layer_norm_eps,
        activation=activation(config.hidden_act, path),
        qkv_bias=bool(config.attention_bias),
        output_bias=bool(config.attention_bias),
        mlp_bias=True,
        rope=rope(parameters, config, path, fraction),
        parallel=bool(config.use_parallel_residual),
    )
