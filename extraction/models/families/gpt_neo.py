"""GPT-Neo (TinyStories): learned positions, a window in every other layer, attention scores without a scale.

The weight names are those of `GPTNeoForCausalLM`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import LM_HEAD, Entries, Entry, Table, affine, attention, linear
from .base import Family, Modules, renamed
from .reading import activation, decoder, layer_kind

_BLOCK = "transformer.h.{l}"
_PLACES = renamed(
    {
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn": "attn.attention",
        "o_proj": "out_proj",
        "gate_proj": "c_fc",
        "down_proj": "c_proj",
    }
)


def _read(config: ModelView, path: Path) -> ModelConfig:
    full = layer_kind(
        config,
        path,
        head_width=config.hidden_size // config.num_attention_heads,
        mlp_width=config.intermediate_size or 4 * config.hidden_size,
        rope=None,
    )
    kinds = {"global": full, "local": replace(full, window=config.window_size)}
    return decoder(
        config,
        path,
        [kinds[name] for name in config.attention_layers[: config.num_hidden_layers]],
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.activation_function, path),
        output_bias=True,
        mlp_bias=True,
        max_positions=config.max_position_embeddings,
        attention_scale=1.0,
    )


def _weight_table(config: ModelConfig) -> Table:
    embedding = {"table": Entry("transformer.wte.weight"), "positions": Entry("transformer.wpe.weight")}
    return Table(embedding, partial(_block, config), affine("", "transformer.ln_f"), LM_HEAD)


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    mlp = linear("mlp.up", f"{_BLOCK}.mlp.c_fc", True) | linear("mlp.down", f"{_BLOCK}.mlp.c_proj", True)
    norms = affine("norm_attention.", f"{_BLOCK}.ln_1") | affine("norm_mlp.", f"{_BLOCK}.ln_2")
    return attention(config, kind, f"{_BLOCK}.attn.attention", "out_proj") | mlp | norms


GPT_NEO = Family(
    _read,
    Modules("LayerNorm", "MLP", "PositionEmbedding"),
    _weight_table,
    prefix="transformer.",
    buffers=r"\.attn\.attention\.(bias|masked_bias)$",
    places=_PLACES,
)
