"""GPT-NeoX and Pythia: layer norms, a plain mlp, a part of each head rotated, attention and mlp in parallel or in turn.

In parallel there is no `hook_resid_mid`, as in TransformerLens. The weight names are those of `GPTNeoXForCausalLM`,
which keeps q, k and v of each head side by side in one matrix.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import LayerKind, ModelConfig
from ..config_reads import ModelView
from ..tables import Entries, Entry, Table, affine, linear, output
from .base import Family, Modules, ReferencePlace
from .reading import alike, decoder, layer_kind, partial_rope

if TYPE_CHECKING:
    import jax

# Masks, which are named `bias` but are none, and the frequencies of older checkpoints.
_BUFFERS = r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"
_BLOCK = "gpt_neox.layers.{l}"


def _part(index: int) -> ReferencePlace:
    """Return the place of q, k or v, side by side for each head in the output of one module."""

    def pick(config: Any, y: np.ndarray) -> np.ndarray:
        return y.reshape(*y.shape[:2], config.num_attention_heads, 3, -1)[:, :, :, index]

    return ReferencePlace(f"{_BLOCK}.attention.query_key_value", "out", pick)


_PLACES = {
    "hook_embed": ReferencePlace("gpt_neox.layers.0", "in"),
    "hook_resid_pre": ReferencePlace(_BLOCK, "in"),
    "ln1.hook_normalized": ReferencePlace(f"{_BLOCK}.input_layernorm", "normalized"),
    "hook_attn_in": ReferencePlace(f"{_BLOCK}.attention", "in"),
    "attn.hook_q": _part(0),
    "attn.hook_k": _part(1),
    "attn.hook_v": _part(2),
    "attn.hook_z": ReferencePlace(f"{_BLOCK}.attention.dense", "in"),
    "hook_attn_out": ReferencePlace(f"{_BLOCK}.attention.dense", "out"),
    "hook_resid_mid": ReferencePlace(f"{_BLOCK}.post_attention_layernorm", "in"),
    "ln2.hook_normalized": ReferencePlace(f"{_BLOCK}.post_attention_layernorm", "normalized"),
    "hook_mlp_in": ReferencePlace(f"{_BLOCK}.mlp", "in"),
    "mlp.hook_pre": ReferencePlace(f"{_BLOCK}.mlp.dense_h_to_4h", "out"),
    "mlp.hook_post": ReferencePlace(f"{_BLOCK}.mlp.dense_4h_to_h", "in"),
    "hook_mlp_out": ReferencePlace(f"{_BLOCK}.mlp", "out"),
    "hook_resid_post": ReferencePlace(_BLOCK, "out"),
    "ln_final.hook_normalized": ReferencePlace("gpt_neox.final_layer_norm", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
    """Read a model that rotates a part of each head's width."""
    kind = layer_kind(
        config,
        path,
        head_width=config.hidden_size // config.num_attention_heads,
        rope=partial_rope(config, path),
    )
    return decoder(
        config,
        path,
        alike(config, kind),
        norm_epsilon=config.layer_norm_eps,
        mlp_bias=True,
        parallel=bool(config.use_parallel_residual),
    )


def _weight_table(config: ModelConfig) -> Table:
    return Table(
        embedding={"table": Entry("gpt_neox.embed_in.weight")},
        block=partial(_block, config),
        final_norm=affine("", "gpt_neox.final_layer_norm"),
        head={"table": Entry("embed_out.weight")},
    )


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    table = output(config, kind, f"{_BLOCK}.attention.dense")
    table |= linear("mlp.up", f"{_BLOCK}.mlp.dense_h_to_4h", True)
    table |= linear("mlp.down", f"{_BLOCK}.mlp.dense_4h_to_h", True)
    for third, ours in enumerate("qkv"):
        theirs, part = f"{_BLOCK}.attention.query_key_value", partial(_third, third, kind.num_heads)
        table[f"attention.{ours}.kernel"] = Entry(f"{theirs}.weight", part)
        if config.qkv_bias:
            table[f"attention.{ours}.bias"] = Entry(f"{theirs}.bias", part)
    table |= affine("norm_attention.", f"{_BLOCK}.input_layernorm")
    return table | affine("norm_mlp.", f"{_BLOCK}.post_attention_layernorm")


def _third(index: int, num_heads: int, tensor: "jax.Array") -> "jax.Array":
    """Return q, k or v, [H, Dh, D] or [H, Dh], made of [H*3*Dh, D] or [H*3*Dh]."""
    return tensor.reshape(num_heads, 3, -1, *tensor.shape[1:])[:, index]


GPT_NEOX = Family(
    _read,
    Modules("LayerNorm", "MLP"),
    _weight_table,
    prefix="gpt_neox.",
    buffers=_BUFFERS,
    places=_PLACES,
)
