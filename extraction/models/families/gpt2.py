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
from .base import Family, Modules, ReferencePlace
from .reading import activation

if TYPE_CHECKING:
    import jax

_BLOCK = "transformer.h.{l}"


def _part(index: int) -> ReferencePlace:
    """Return the place of q, k or v, side by side in the output of one module."""
    return ReferencePlace(f"{_BLOCK}.attn.c_attn", "out", lambda _, y: np.split(y, 3, axis=-1)[index])


_PLACES = {
    "hook_embed": ReferencePlace("transformer.h.0", "in"),
    "hook_resid_pre": ReferencePlace(_BLOCK, "in"),
    "ln1.hook_normalized": ReferencePlace(f"{_BLOCK}.ln_1", "normalized"),
    "hook_attn_in": ReferencePlace(f"{_BLOCK}.attn", "in"),
    "attn.hook_q": _part(0),
    "attn.hook_k": _part(1),
    "attn.hook_v": _part(2),
    "attn.hook_z": ReferencePlace(f"{_BLOCK}.attn.c_proj", "in"),
    "hook_attn_out": ReferencePlace(f"{_BLOCK}.attn.c_proj", "out"),
    "hook_resid_mid": ReferencePlace(f"{_BLOCK}.ln_2", "in"),
    "ln2.hook_normalized": ReferencePlace(f"{_BLOCK}.ln_2", "normalized"),
    "hook_mlp_in": ReferencePlace(f"{_BLOCK}.mlp", "in"),
    "mlp.hook_pre": ReferencePlace(f"{_BLOCK}.mlp.c_fc", "out"),
    "mlp.hook_post": ReferencePlace(f"{_BLOCK}.mlp.c_proj", "in"),
    "hook_mlp_out": ReferencePlace(f"{_BLOCK}.mlp", "out"),
    "hook_resid_post": ReferencePlace(_BLOCK, "out"),
    "ln_final.hook_normalized": ReferencePlace("transformer.ln_f", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
    kind = LayerKind(
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_width=config.n_embd // config.n_head,
        mlp_width=config.n_inner or 4 * config.n_embd,
    )
    return ModelConfig(
        family="gpt2",
        layers=(kind,) * config.n_layer,
        width=config.n_embd,
        vocab_size=config.vocab_size,
        norm_epsilon=config.layer_norm_epsilon,
        activation=activation(config.activation_function, path),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        max_positions=config.n_positions,
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
