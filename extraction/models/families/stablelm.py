"""StableLM 2 and StableLM-3B: layer norms, a gated mlp, a part of each head is rotated.

Attention and mlp run in turn, or in parallel after one norm; in parallel there is no `hook_resid_mid`. Each head of q
and k may have a norm of its own. The weight names are those of `StableLmForCausalLM`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import Entries, Entry, Table, affine, attention, gated_mlp, llama_table
from .base import LLAMA_PLACES, Family, Modules, ReferencePlace
from .reading import alike, decoder, layer_kind, partial_rope

_BLOCK = "model.layers.{l}"


def _read(config: ModelView, path: Path) -> ModelConfig:
    parallel = bool(config.use_parallel_residual)
    return decoder(
        config,
        path,
        alike(config, layer_kind(config, path, rope=partial_rope(config, path))),
        norm_epsilon=config.layer_norm_eps,
        qkv_bias=bool(config.use_qkv_bias),
        qk_norm="each_head" if config.qk_layernorm else None,
        parallel=parallel,
        shared_norm=parallel,
    )


def _weight_table(config: ModelConfig) -> Table:
    return llama_table(config)._replace(block=partial(_block, config), final_norm=affine("", "model.norm"))


def _block(config: ModelConfig, kind: LayerKind) -> Entries:
    table = attention(config, kind) | gated_mlp(config) | affine("norm_attention.", f"{_BLOCK}.input_layernorm")
    if not config.shared_norm:
        table |= affine("norm_mlp.", f"{_BLOCK}.post_attention_layernorm")
    for name, heads in (("q", kind.num_heads), ("k", kind.num_kv_heads)) if config.qk_norm else ():
        norm = Entry(f"{_BLOCK}.self_attn.{name}_layernorm.norms.{{e}}.weight", num_experts=heads)
        table[f"attention.{name}_norm.scale"] = norm
    return table


def _by_token(_: Any, y: np.ndarray) -> np.ndarray:
    """Return heads by token, of the output of a norm [1, H, t, Dh] or of a projection [1, t, H*Dh]."""
    return y.swapaxes(1, 2) if y.ndim == 4 else y


def _heads(name: str) -> ReferencePlace:
    return ReferencePlace(f"{_BLOCK}.self_attn.{name}_layernorm|{_BLOCK}.self_attn.{name}_proj", "out", _by_token)


STABLELM = Family(
    _read,
    Modules("LayerNorm"),
    _weight_table,
    places=LLAMA_PLACES | {"attn.hook_q": _heads("q"), "attn.hook_k": _heads("k")},
)
