"""Configurations of GPT-2."""

from pathlib import Path
from typing import Any

from .base import ModelConfig
from .common import activation

GPT2 = {
    "activation_function", "layer_norm_epsilon", "n_embd", "n_head", "n_inner", "n_layer", "n_positions", "vocab_size",
}


def gpt2(config: Any, path: Path) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        num_layers=config.n_layer,
        width=config.n_embd,
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_width=config.n_embd // config.n_head,
        mlp_width=config.n_inner or 4 * config.n_embd,
        vocab_size=config.vocab_size,
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.activation_function, path),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        rope=None,
        max_positions=config.n_positions,
    )
