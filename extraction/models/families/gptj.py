"""GPT-J: attention and mlp in parallel with one norm, a plain mlp, neighbours of a part of each head rotated.

The weight names are those of `GPTJForCausalLM`.
"""

from functools import partial
from pathlib import Path

from ..config import LayerKind, ModelConfig, Rope
from ..used_config_keys import ModelView
from ..weight_tables import LM_HEAD, Entries, Entry, Table, affine, attention, linear
from .base import Family, Modules, renamed
from .reading import activation, alike, decoder, layer_kind

_BLOCK = "transformer.h.{l}"
_THETA = 10000.0  # fixed in transformers' model
_HEAD = LM_HEAD | {"bias": Entry("lm_head.bias")}
_PLACES = renamed(
    {
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "self_attn": "attn",
        "o_proj": "out_proj",
        "gate_proj": "fc_in",
        "down_proj": "fc_out",
    },
    absent=("hook_resid_mid", "ln2.hook_normalized"),
)


def _read(config: ModelView, path: Path) -> ModelConfig:
    head_width = config.hidden_size // config.num_attention_heads
    kind = layer_kind(
        config,
        path,
        head_width=head_width,
        mlp_width=config.n_inner or 4 * config.n_embd,
        rope=Rope(_THETA, fraction=config.rotary_dim / head_width, interleaved=True),
    )
    return decoder(
        config,
        path,
        alike(config, kind),
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.activation_function, path),
        mlp_bias=True,
        parallel=True,
        shared_norm=True,
        head_bias=True,
    )


def _weight_table(config: ModelConfig) -> Table:
    return Table(
        {"table": Entry("transformer.wte.weight")}, partial(_block, config), affine("", "transformer.ln_f"), _HEAD
    )


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    mlp = linear("mlp.up", f"{_BLOCK}.mlp.fc_in", True) | linear("mlp.down", f"{_BLOCK}.mlp.fc_out", True)
    return attention(config, kind, f"{_BLOCK}.attn", "out_proj") | mlp | affine("norm_attention.", f"{_BLOCK}.ln_1")


GPTJ = Family(
    _read,
    Modules("LayerNorm", "MLP"),
    _weight_table,
    prefix="transformer.",
    buffers=r"\.attn\.(bias|masked_bias)$",
    places=_PLACES,
)
