"""GPT-2: learned positions, layer norms, a plain mlp.

The weight names are those of `GPT2LMHeadModel`, whose matrices are [I, O], with q, k and v side by side in one.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import LM_HEAD, Entries, Entry, Table, affine, to_heads
from .base import Family, Modules, ReferencePlace, renamed
from .reading import activation, alike, decoder, layer_kind

if TYPE_CHECKING:
    import jax

_BLOCK = "transformer.h.{l}"


def _part(index: int) -> ReferencePlace:
    """Return the place of q, k or v, side by side in the output of one module."""
    return ReferencePlace(f"{_BLOCK}.attn.c_attn", "out", lambda _, y: np.split(y, 3, axis=-1)[index])


_PLACES = renamed(
    {
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn": "attn",
        "o_proj": "c_proj",
        "gate_proj": "c_fc",
        "down_proj": "c_proj",
    }
) | {f"attn.hook_{name}": _part(index) for index, name in enumerate("qkv")}


def _read(config: ModelView, path: Path) -> ModelConfig:
    kind = layer_kind(
        config,
        path,
        head_width=config.hidden_size // config.num_attention_heads,
        mlp_width=config.n_inner or 4 * config.hidden_size,
        rope=None,
    )
    return decoder(
        config,
        path,
        alike(config, kind),
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.activation_function, path),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        max_positions=config.max_position_embeddings,
        attention_scale=None if config.scale_attn_weights else 1.0,
        scaled_by_layer=bool(config.scale_attn_by_inverse_layer_idx),
    )


def _weight_table(config: ModelConfig) -> Table:
    return Table(
        embedding={"table": Entry("transformer.wte.weight"), "positions": Entry("transformer.wpe.weight")},
        block=_block,
        final_norm=affine("", "transformer.ln_f"),
        head=LM_HEAD,
    )


def _block(kind: LayerKind) -> Entries:
    table = {
        "attention.o.kernel": Entry(f"{_BLOCK}.attn.c_proj.weight", partial(to_heads, kind.head_width)),
        "attention.o.bias": Entry(f"{_BLOCK}.attn.c_proj.bias"),
    }
    for ours, theirs in (("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
        table[f"{ours}.kernel"] = Entry(f"{_BLOCK}.{theirs}.weight")
        table[f"{ours}.bias"] = Entry(f"{_BLOCK}.{theirs}.bias")
    for third, ours in enumerate("qkv"):
        part = partial(_third, third, kind.head_width)
        table[f"attention.{ours}.kernel"] = Entry(f"{_BLOCK}.attn.c_attn.weight", part)
        table[f"attention.{ours}.bias"] = Entry(f"{_BLOCK}.attn.c_attn.bias", part)
    return table | affine("norm_attention.", f"{_BLOCK}.ln_1") | affine("norm_mlp.", f"{_BLOCK}.ln_2")


def _third(index: int, head_width: int, tensor: "jax.Array") -> "jax.Array":
    """Return q, k or v, [H, Dh, D] or [H, Dh], made of [D, 3*D] or [3*D]."""
    return to_heads(head_width, tensor.reshape(*tensor.shape[:-1], 3, -1)[..., index, :].T)


GPT2 = Family(
    _read,
    Modules("LayerNorm", "MLP", "PositionEmbedding"),
    _weight_table,
    prefix="transformer.",
    buffers=r"\.attn\.(bias|masked_bias)$",
    places=_PLACES,
)
