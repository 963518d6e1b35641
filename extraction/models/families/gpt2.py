"""GPT-2: learned positions, layer norms, a plain mlp.

The weight names are those of `GPT2LMHeadModel`, whose matrices are [I, O], with q, k and v side by side in one.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..config_reads import ModelView
from ..tables import Entry, Table, affine, to_heads
from .base import Family, Modules
from .reading import activation

if TYPE_CHECKING:
    import jax

_PLACES = {
    "hook_resid_pre": ("transformer.h.{l}", "in"),
    "attn.hook_z": ("transformer.h.{l}.attn.c_proj", "in"),
    "hook_attn_out": ("transformer.h.{l}.attn.c_proj", "out"),
    "hook_resid_mid": ("transformer.h.{l}.ln_2", "in"),
    "mlp.hook_post": ("transformer.h.{l}.mlp.c_proj", "in"),
    "hook_mlp_out": ("transformer.h.{l}.mlp", "out"),
    "hook_resid_post": ("transformer.h.{l}", "out"),
    "ln_final.hook_normalized": ("transformer.ln_f", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
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


def _weight_table(config: ModelConfig) -> Table:
    block = "transformer.h.{l}"
    table = {
        "attention.o.kernel": Entry(f"{block}.attn.c_proj.weight", partial(to_heads, config.head_width)),
        "attention.o.bias": Entry(f"{block}.attn.c_proj.bias"),
    }
    for ours, theirs in (("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
        table[f"{ours}.kernel"] = Entry(f"{block}.{theirs}.weight")
        table[f"{ours}.bias"] = Entry(f"{block}.{theirs}.bias")
    for third, ours in enumerate("qkv"):
        part = partial(_third, third, config.head_width)
        table[f"attention.{ours}.kernel"] = Entry(f"{block}.attn.c_attn.weight", part)
        table[f"attention.{ours}.bias"] = Entry(f"{block}.attn.c_attn.bias", part)
    table |= affine("norm_attention.", f"{block}.ln_1") | affine("norm_mlp.", f"{block}.ln_2")
    return {
        "embedding": {"table": Entry("transformer.wte.weight"), "positions": Entry("transformer.wpe.weight")},
        "blocks": table,
        "final_norm": affine("", "transformer.ln_f"),
    }


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
