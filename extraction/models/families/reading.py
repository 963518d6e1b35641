"""Shared readers of configurations: rotary embedding, windows, activations, and the fields of most models.

In: a configuration as transformers read it, and its path for messages. Out: fields of `ModelConfig`. Guarantee: a value
that is not implemented raises InvalidRequest, an invalid one DamagedData. Cost: none.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import DamagedData, InvalidRequest
from ..config import Experts, LayerKind, ModelConfig, Rope
from ..used_config_keys import ModelView

# The names of an activation in configurations -> its name here.
_NAMES = ("silu", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")
ACTIVATIONS = {name: name for name in _NAMES} | {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional")
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def layer_kind(config: ModelView, path: Path, **more: Any) -> LayerKind:
    """Return a layer of a decoder with rotary embedding; `more` replaces or adds fields."""
    fields = {
        "num_heads": lambda: config.num_attention_heads,
        "num_kv_heads": lambda: getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "head_width": lambda: getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "mlp_width": lambda: config.intermediate_size,
        "rope": lambda: rope(config.rope_parameters, config, path),
    }
    return LayerKind(**{name: read() for name, read in fields.items() if name not in more}, **more)


def decoder(config: ModelView, path: Path, layers: Iterable[LayerKind], **more: Any) -> ModelConfig:
    """Return the configuration of a decoder with these layers and RMS norms; `more` replaces or adds fields."""
    fields = {
        "family": lambda: config.model_type,
        "width": lambda: config.hidden_size,
        "vocab_size": lambda: config.vocab_size,
        "norm_epsilon": lambda: config.rms_norm_eps,
        "activation": lambda: activation(config.hidden_act, path),
        "qkv_bias": lambda: bool(getattr(config, "attention_bias", False)),
        "output_bias": lambda: bool(getattr(config, "attention_bias", False)),
        "mlp_bias": lambda: False,
    }
    read = {name: read() for name, read in fields.items() if name not in more}
    return ModelConfig(layers=tuple(layers), **read, **more)


def activation(name: str, path: Path) -> str:
    """Return our name of an activation. Raises InvalidRequest if it is not handled."""
    if name not in ACTIVATIONS:
        raise InvalidRequest(f"{path}: activation {name!r} is not handled; handled are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def checked_experts(experts: Experts, path: Path) -> Experts:
    """Return the experts. Raises DamagedData if a token has none or more than there are, or such groups of them."""
    groups = experts.groups
    if groups and not (experts.count % groups.count == 0 and 1 <= groups.chosen <= groups.count):
        raise DamagedData(
            f"{path}: {experts.count} experts in {groups.count} groups, of which a token uses {groups.chosen}: these "
            "numbers do not fit"
        )
    if not 1 <= experts.per_token <= experts.count:
        raise DamagedData(f"{path}: a token uses {experts.per_token} experts, and there are {experts.count}")
    return experts


def has_mixture(config: ModelView, layer: int) -> bool:
    """Return whether a layer of Qwen has a mixture: each `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


def alike(config: ModelView, kind: LayerKind) -> list[LayerKind]:
    """Return the layers of a model that are all of this kind, with its window if it has one."""
    window = getattr(config, "sliding_window", None)
    return [replace(kind, window=window)] * config.num_hidden_layers


def by_layer_types(config: ModelView, path: Path, kinds: Mapping[str, LayerKind]) -> list[LayerKind]:
    """Return the layers of a model whose `layer_types` name the kind of each."""
    if unknown := set(config.layer_types) - set(kinds):
        raise InvalidRequest(f"{path}: layer type {min(unknown)!r} is not handled for {config.model_type}")
    if len(config.layer_types) != config.num_hidden_layers:
        raise DamagedData(f"{path}: {len(config.layer_types)} layer_types for {config.num_hidden_layers} layers")
    return [kinds[name] for name in config.layer_types]


def windowed(config: ModelView, path: Path, full: LayerKind, sliding: LayerKind | None = None) -> list[LayerKind]:
    """Return the layers of a model whose `layer_types` name those with the window; `sliding` is `full` by default."""
    window = config.sliding_window
    if not getattr(config, "use_sliding_window", True):
        window = None
    if window is None and "sliding_attention" in config.layer_types:
        raise DamagedData(f"{path}: layer_types has sliding_attention, but sliding_window is off")
    kinds = {"full_attention": full, "sliding_attention": replace(sliding or full, window=window)}
    return by_layer_types(config, path, kinds)


def windowed_with_own_rope(config: ModelView, path: Path) -> list[LayerKind]:
    """Return the layers of a model with one rotation for full attention and one for windows."""
    full, sliding = (
        layer_kind(config, path, rope=rope(config.rope_parameters[kind], config, path))
        for kind in ("full_attention", "sliding_attention")
    )
    return windowed(config, path, full, sliding)


def rope(parameters: dict[str, Any], config: ModelView, path: Path, fraction: float = 1.0) -> Rope:
    """Return the rotary embedding of `rope_parameters`. Raises for a parameter that only the reference reads."""
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise InvalidRequest(f"{path}: RoPE type {kind!r} is not handled; handled are {', '.join(ROPE_TYPES)}")
    read = config.rope_keys(kind)
    left = {name: value for name, value in parameters.items() if value is not None and name in read}
    theta = float(left.pop("rope_theta"))
    found: dict[str, Any] = {"fraction": fraction}
    if left.get("partial_rotary_factor") == fraction:
        del left["partial_rotary_factor"]
    if kind in ("llama3", "yarn", "dynamic", "longrope"):
        longest = config.max_position_embeddings
        original = found["original_max_positions"] = int(left.pop("original_max_position_embeddings", longest))
        found |= {"yarn": _yarn, "longrope": _longrope}.get(kind, lambda *_: {})(left, longest, original)
    if kind == "proportional":
        found |= {"fraction": float(left.pop("partial_rotary_factor", 1)), "factor": float(left.pop("factor", 1))}
    if kind == "yarn":
        found["truncate"] = bool(config.rope_parameters.get("truncate", True))  # one for all kinds of layers
    for name in _NEEDED.get(kind, ()):
        if name not in left:
            raise DamagedData(f"{path}: RoPE type {kind!r} without {name}")
        found[name] = float(left.pop(name))
    if left:
        raise InvalidRequest(f"{path}: RoPE parameters {', '.join(sorted(left))} are not handled")
    return Rope(theta, kind, **found)


def yarn_scale(parameters: Mapping[str, Any]) -> float:
    """Return the factor of q and of k that DeepSeek's models have beside that of the rotation."""
    scale = parameters.get("mscale_all_dim")
    if not scale or parameters.get("rope_type", "default") == "default":
        return 1.0
    return _suggested(float(parameters["factor"]), scale)


def _suggested(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def partial_rope(config: ModelView, path: Path, interleaved: bool = False) -> Rope:
    """Return the rotary embedding of a model that rotates `partial_rotary_factor` of each head's width."""
    parameters = config.rope_parameters
    found = rope(parameters, config, path, float(parameters.get("partial_rotary_factor", 1.0)))
    return replace(found, interleaved=interleaved)


def _longrope(left: dict[str, Any], longest: int, original: int) -> dict[str, Any]:
    """Move LongRoPE's parameters out of `left`; the default attention factor is that of arXiv 2402.13753."""
    factor = float(left.pop("factor", longest / original))
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "attention_factor": float(left.pop("attention_factor", inferred)),
        "short_factors": tuple(map(float, left.pop("short_factor"))),
        "long_factors": tuple(map(float, left.pop("long_factor"))),
    }


def _yarn(left: dict[str, Any], longest: int, original: int) -> dict[str, Any]:
    """Move YaRN's parameters out of `left`; the default attention factor is that of arXiv 2309.00071."""
    factor = float(left.pop("factor", longest / original))
    left.pop("truncate", None)
    scales = [left.pop(name, None) for name in ("mscale", "mscale_all_dim")]

    inferred = _suggested(factor, scales[0]) / _suggested(factor, scales[1]) if all(scales) else _suggested(factor)
    return {
        "factor": factor,
        "attention_factor": float(left.pop("attention_factor", inferred)),
        "beta_fast": float(left.pop("beta_fast", 0) or 32),
        "beta_slow": float(left.pop("beta_slow", 0) or 1),
    }
