"""Cohere (Command R, Aya 23) and Cohere 2 (Command R7B): attention and mlp of one x, after one norm without bias.

Even columns of a head are rotated against odd ones. In Cohere each head of q and k may have a norm of its own; in
Cohere 2 layers with a window are rotated, full layers are not. `hook_resid_mid` and `ln2.hook_normalized` do not
exist. The weight names are those of `CohereForCausalLM` and `Cohere2ForCausalLM`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import LayerKind, ModelConfig
from ..used_config_keys import ModelView
from ..weight_tables import llama_table
from .base import LLAMA_PLACES, Family, Modules, ReferencePlace
from .reading import alike, decoder, layer_kind, rope, windowed

_ATTENTION = "model.layers.{l}.self_attn"


def _read(config: ModelView, path: Path, layers: list[LayerKind], qk_norm: str | None = None) -> ModelConfig:
    return decoder(
        config, path, layers, norm_epsilon=config.layer_norm_eps, qk_norm=qk_norm, parallel=True, shared_norm=True
    )


def _rotated(config: ModelView, path: Path) -> LayerKind:
    return layer_kind(config, path, rope=replace(rope(config.rope_parameters, config, path), interleaved=True))


def _cohere(config: ModelView, path: Path) -> ModelConfig:
    layers = alike(config, _rotated(config, path))
    return _read(config, path, layers, qk_norm="each_head" if config.use_qk_norm else None)


def _cohere2(config: ModelView, path: Path) -> ModelConfig:
    kind = _rotated(config, path)
    return _read(config, path, windowed(config, path, full=replace(kind, rope=None), sliding=kind))


COHERE = Family(
    _cohere,
    Modules("UnbiasedLayerNorm"),
    partial(llama_table, norm_names={"norm_attention": "input_layernorm"}),
    places=LLAMA_PLACES
    | {
        f"attn.hook_{name}": ReferencePlace(f"{_ATTENTION}.{name}_norm|{_ATTENTION}.{name}_proj", "out")
        for name in "qk"
    },
)
COHERE2 = replace(COHERE, read=_cohere2)
