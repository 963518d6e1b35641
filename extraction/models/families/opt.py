"""OPT: learned positions, layer norms before attention and a plain mlp.

OPT-350M, with norms after attention and mlp and a narrower embedding, is refused. The weight names are those of
`OPTForCausalLM`, whose first two positions are never used.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import InvalidRequest
from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import LM_HEAD, Entries, Entry, Table, affine, attention, linear
from .base import Family, Modules, ReferencePlace, renamed
from .reading import activation, alike, decoder, layer_kind

if TYPE_CHECKING:
    import jax

_BLOCK = "model.decoder.layers.{l}"
_UNUSED_POSITIONS = 2
_PLACES = renamed(
    {
        "model.layers": "model.decoder.layers",
        "model.norm": "model.decoder.final_layer_norm",
        "input_layernorm": "self_attn_layer_norm",
        "post_attention_layernorm": "final_layer_norm",
        "o_proj": "out_proj",
        "mlp.gate_proj": "fc1",
        "mlp.down_proj": "fc2",
    }
) | {"hook_mlp_in": ReferencePlace(f"{_BLOCK}.fc1", "in"), "hook_mlp_out": ReferencePlace(f"{_BLOCK}.fc2", "out")}


def _read(config: ModelView, path: Path) -> ModelConfig:
    if config.word_embed_proj_dim != config.hidden_size:
        raise InvalidRequest(
            f"{path}: word_embed_proj_dim = {config.word_embed_proj_dim} is not handled for opt: an embedding of "
            f"another width than hidden_size = {config.hidden_size}"
        )
    head_width = config.hidden_size // config.num_attention_heads
    bias = bool(config.enable_bias)
    return decoder(
        config,
        path,
        alike(config, layer_kind(config, path, head_width=head_width, mlp_width=config.ffn_dim, rope=None)),
        norm_epsilon=1e-5,  # torch's default
        activation=activation(config.activation_function, path),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        max_positions=config.max_position_embeddings,
    )


def _used(tensor: "jax.Array") -> "jax.Array":
    return tensor[_UNUSED_POSITIONS:]


def _weight_table(config: ModelConfig) -> Table:
    return Table(
        embedding={
            "table": Entry("model.decoder.embed_tokens.weight"),
            "positions": Entry("model.decoder.embed_positions.weight", _used),
        },
        block=partial(_block, config),
        final_norm=affine("", "model.decoder.final_layer_norm"),
        head=LM_HEAD,
    )


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    table = attention(config, kind, f"{_BLOCK}.self_attn", "out_proj")
    table |= linear("mlp.up", f"{_BLOCK}.fc1", config.mlp_bias) | linear("mlp.down", f"{_BLOCK}.fc2", config.mlp_bias)
    table |= affine("norm_attention.", f"{_BLOCK}.self_attn_layer_norm")
    return table | affine("norm_mlp.", f"{_BLOCK}.final_layer_norm")


OPT = Family(
    _read,
    Modules("LayerNorm", "MLP", "PositionEmbedding"),
    _weight_table,
    prefix="model.decoder.",
    places=_PLACES,
)
