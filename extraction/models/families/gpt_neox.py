"""GPT-NeoX (Pythia) and BLOOM: layer norms, a plain mlp, q, k and v of each head side by side in one matrix.

GPT-NeoX rotates a part of each head, and its attention and mlp run in parallel or in turn; in parallel there is no
`hook_resid_mid`, as in TransformerLens. BLOOM has ALiBi in place of rotations, and a norm after the embedding. The
weight names are those of `GPTNeoXForCausalLM` and `BloomForCausalLM`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import LM_HEAD, Entries, Entry, Table, affine, linear, output
from .base import Family, Modules, Places, ReferencePlace, renamed
from .reading import alike, decoder, layer_kind, partial_rope

if TYPE_CHECKING:
    import jax

# Masks, which are named `bias` but are none, and the frequencies of older checkpoints.
_BUFFERS = r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"
_NEOX_BLOCK, _BLOOM_BLOCK = "gpt_neox.layers.{l}", "transformer.h.{l}"


def _places(names: Mapping[str, str], block: str, attention: str) -> Places:
    """Return the places of a model whose q, k and v are side by side for each head in the output of one module."""

    def part(index: int) -> ReferencePlace:
        def pick(config: Any, y: np.ndarray) -> np.ndarray:
            return y.reshape(*y.shape[:2], config.num_attention_heads, 3, -1)[:, :, :, index]

        return ReferencePlace(f"{block}.{attention}.query_key_value", "out", pick)

    linears = {"o_proj": "dense", "gate_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
    parts = {f"attn.hook_{name}": part(index) for index, name in enumerate("qkv")}
    return renamed({"model.layers": block.removesuffix(".{l}"), "self_attn": attention} | linears | dict(names)) | parts


def _neox(config: ModelView, path: Path) -> ModelConfig:
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


def _bloom(config: ModelView, path: Path) -> ModelConfig:
    width = config.hidden_size
    kind = layer_kind(config, path, head_width=width // config.num_attention_heads, mlp_width=4 * width, rope=None)
    return decoder(
        config,
        path,
        alike(config, kind),
        norm_epsilon=config.layer_norm_epsilon,
        activation="gelu_new",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        alibi=True,
    )


def _neox_table(config: ModelConfig) -> Table:
    return Table(
        embedding={"table": Entry("gpt_neox.embed_in.weight")},
        block=partial(_block, _NEOX_BLOCK, "attention", config),
        final_norm=affine("", "gpt_neox.final_layer_norm"),
        head={"table": Entry("embed_out.weight")},
    )


def _bloom_table(config: ModelConfig) -> Table:
    norm = affine("norm.", "transformer.word_embeddings_layernorm")
    return Table(
        embedding={"table": Entry("transformer.word_embeddings.weight")} | norm,
        block=partial(_block, _BLOOM_BLOCK, "self_attention", config),
        final_norm=affine("", "transformer.ln_f"),
        head=LM_HEAD,
    )


def _block(block: str, attention: str, config: ModelConfig, kind: LayerKind) -> Entries:
    table = output(config, kind, f"{block}.{attention}.dense")
    table |= linear("mlp.up", f"{block}.mlp.dense_h_to_4h", True)
    table |= linear("mlp.down", f"{block}.mlp.dense_4h_to_h", True)
    for third, ours in enumerate("qkv"):
        theirs, part = f"{block}.{attention}.query_key_value", partial(_third, third, kind.num_heads)
        table[f"attention.{ours}.kernel"] = Entry(f"{theirs}.weight", part)
        if config.qkv_bias:
            table[f"attention.{ours}.bias"] = Entry(f"{theirs}.bias", part)
    table |= affine("norm_attention.", f"{block}.input_layernorm")
    return table | affine("norm_mlp.", f"{block}.post_attention_layernorm")


def _third(index: int, num_heads: int, tensor: "jax.Array") -> "jax.Array":
    """Return q, k or v, [H, Dh, D] or [H, Dh], made of [H*3*Dh, D] or [H*3*Dh]."""
    return tensor.reshape(num_heads, 3, -1, *tensor.shape[1:])[:, index]


GPT_NEOX = Family(
    _neox,
    Modules("LayerNorm", "MLP"),
    _neox_table,
    prefix="gpt_neox.",
    buffers=_BUFFERS,
    places=_places({"model.norm": "gpt_neox.final_layer_norm"}, _NEOX_BLOCK, "attention"),
)
BLOOM = Family(
    _bloom,
    Modules("LayerNorm", "MLP", "NormalizedEmbedding"),
    _bloom_table,
    prefix="transformer.",
    places=_places({"model.norm": "transformer.ln_f"}, _BLOOM_BLOCK, "self_attention")
    # The output of transformers' mlp has the residual stream added.
    | {"hook_mlp_out": ReferencePlace(f"{_BLOOM_BLOCK}.mlp.dense_4h_to_h", "out")},
)
