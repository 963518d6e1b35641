"""GPT-NeoX and Pythia: layer norms, a plain mlp, a part of each head rotated, attention and mlp in parallel or in turn.

In parallel there is no `hook_resid_mid`, as in TransformerLens. The weight names are those of `GPTNeoXForCausalLM`,
which keeps q, k and v of each head side by side in one matrix.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..config_reads import ModelView
from ..tables import Entry, Table, affine, linear, output
from .base import Family, Modules
from .reading import decoder, rope

if TYPE_CHECKING:
    import jax

# Masks, which are named `bias` but are none, and the frequencies of older checkpoints.
_BUFFERS = r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"
_PLACES = {
    "hook_resid_pre": ("gpt_neox.layers.{l}", "in"),
    "attn.hook_z": ("gpt_neox.layers.{l}.attention.dense", "in"),
    "hook_attn_out": ("gpt_neox.layers.{l}.attention.dense", "out"),
    "hook_resid_mid": ("gpt_neox.layers.{l}.post_attention_layernorm", "in"),
    "mlp.hook_post": ("gpt_neox.layers.{l}.mlp.dense_4h_to_h", "in"),
    "hook_mlp_out": ("gpt_neox.layers.{l}.mlp", "out"),
    "hook_resid_post": ("gpt_neox.layers.{l}", "out"),
    "ln_final.hook_normalized": ("gpt_neox.final_layer_norm", "out"),
}


def _read(config: ModelView, path: Path) -> ModelConfig:
    """Read a model that rotates a part of each head's width."""
    parameters = config.rope_parameters
    fraction = float(parameters.get("partial_rotary_factor", 1.0))
    return decoder(
        config,
        path,
        head_width=config.hidden_size // config.num_attention_heads,
        norm_epsilon=config.layer_norm_eps,
        mlp_bias=True,
        parallel=bool(config.use_parallel_residual),
        rope=rope(parameters, config, path, fraction),
    )


def _weight_table(config: ModelConfig) -> Table:
    block = "gpt_neox.layers.{l}"
    table = output(config, f"{block}.attention.dense")
    table |= linear("mlp.up", f"{block}.mlp.dense_h_to_4h", True)
    table |= linear("mlp.down", f"{block}.mlp.dense_4h_to_h", True)
    for third, ours in enumerate("qkv"):
        theirs, part = f"{block}.attention.query_key_value", partial(_third, third, config.num_heads)
        table[f"attention.{ours}.kernel"] = Entry(f"{theirs}.weight", part)
        if config.qkv_bias:
            table[f"attention.{ours}.bias"] = Entry(f"{theirs}.bias", part)
    table |= affine("norm_attention.", f"{block}.input_layernorm")
    table |= affine("norm_mlp.", f"{block}.post_attention_layernorm")
    return {
        "embedding": {"table": Entry("gpt_neox.embed_in.weight")},
        "blocks": table,
        "final_norm": affine("", "gpt_neox.final_layer_norm"),
    }


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
