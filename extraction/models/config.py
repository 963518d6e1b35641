"""What the forward pass needs to know of a model, read from its Hugging Face configuration. No jax.

In: a folder with `config.json`. Out: a frozen `ModelConfig`. Guarantee: an attribute that would change the forward pass
and is not handled raises, so that a model that is not quite supported cannot run quietly wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FINAL_HOOK, HOOK_SUFFIXES
from ..errors import DamagedData, InvalidRequest

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `kind` is one of ROPE_TYPES; the factors and lengths belong to `linear` and `llama3`."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A decoder. Widths in elements; `max_positions` only where positions are learned; `rope` only where they rotate."""

    family: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    vocab_size: int
    norm_epsilon: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Rope | None
    max_positions: int | None

    def hook_width(self, hook_point: str) -> int:
        """The last axis of this hook point's tensor."""
        if hook_point.endswith("attn.hook_z"):
            return self.num_heads * self.head_width
        return self.mlp_width if hook_point.endswith("mlp.hook_post") else self.width


def all_hook_points(num_layers: int) -> list[str]:
    """The name of every hook point, in depth order."""
    names = [f"blocks.{layer}.{suffix}" for layer in range(num_layers) for suffix in HOOK_SUFFIXES.values()]
    return [*names, FINAL_HOOK]


# Attributes that do not reach the hidden states: generation, training, the head, and how others run the model.
_IRRELEVANT = {
    "architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype", "embd_pdrop", "eos_token_id",
    "initializer_range", "max_window_layers", "model_type", "pad_token_id", "pretraining_tp", "reorder_and_upcast_attn",
    "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache", "gradient_checkpointing", "n_ctx", "is_llama_config", "max_sequence_length",
    "_attn_implementation_autoset", "_name_or_path", "_num_labels", "id2label", "label2id", "num_labels",
    "output_attentions", "output_hidden_states", "transformers.js_config",
}
_ONLY = {"rope_interleaved": False, "use_mrope": False}  # attributes with one value that changes nothing
_ROTARY = {
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "vocab_size", "layer_types", "sliding_window", "use_sliding_window",
}
_GPT2 = {"activation_function", "layer_norm_epsilon", "n_embd", "n_head", "n_inner", "n_layer", "n_positions", "vocab_size"}
_HANDLED = {"llama": _ROTARY, "qwen2": _ROTARY, "qwen3": _ROTARY, "gpt2": _GPT2}


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration of the model in `folder`.

    Raises InvalidRequest (no `config.json`, an architecture or attribute that is not supported) and DamagedData.
    """
    path = folder / "config.json"
    written = _read(path)
    family = written["model_type"]
    if family not in _HANDLED:
        raise InvalidRequest(f"{path}: model type {family!r} is not supported; supported are {', '.join(_HANDLED)}")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, OSError) as error:
        raise DamagedData(f"{path}: {' '.join(str(error).split())}") from error
    _refuse_unhandled(path, family, written, type(config)())
    return _checked(_gpt2(config, path) if family == "gpt2" else _rotary(config, path), path)


def _read(path: Path) -> dict[str, Any]:
    """The configuration as it is written, with a `model_type`."""
    try:
        written = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidRequest(f"{path.parent}: no config.json here; --model needs a Hugging Face model folder") from None
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedData(f"{path}: not JSON ({error})") from error
    if not isinstance(written, dict) or not isinstance(written.get("model_type"), str):
        raise DamagedData(f"{path}: not a model configuration, it has no model_type")
    return written


def _refuse_unhandled(path: Path, family: str, written: dict[str, Any], default: Any) -> None:
    for alias, value in written.items():
        name = default.attribute_map.get(alias, alias)
        if name in _HANDLED[family] | _IRRELEVANT or (name in _ONLY and value == _ONLY[name]):
            continue
        if not hasattr(default, name) or getattr(default, name) != value:
            raise InvalidRequest(f"{path}: {alias} = {json.dumps(value)} is not handled for {family}")


def _checked(config: ModelConfig, path: Path) -> ModelConfig:
    """The configuration, if its numbers describe a model at all."""
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width", "vocab_size"):
        if getattr(config, name) < 1:
            raise DamagedData(f"{path}: {name} is {getattr(config, name)}")
    if config.num_heads % config.num_kv_heads:
        raise DamagedData(f"{path}: {config.num_heads} heads do not share {config.num_kv_heads} key-value heads evenly")
    return config


def _checked_activation(name: str, path: Path) -> str:
    if name not in ACTIVATIONS:
        raise InvalidRequest(f"{path}: activation {name!r} is not handled; handled are {', '.join(ACTIVATIONS)}")
    return name


def _rotary(config: Any, path: Path) -> ModelConfig:
    if getattr(config, "use_sliding_window", False) or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise InvalidRequest(f"{path}: sliding window attention is not handled for {config.model_type}")
    bias = bool(getattr(config, "attention_bias", False))
    return ModelConfig(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp_width=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_epsilon=config.rms_norm_eps,
        activation=_checked_activation(config.hidden_act, path),
        qkv_bias=bias or config.model_type == "qwen2",
        output_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=config.model_type == "qwen3",
        rope=_rope(dict(config.rope_parameters), config, path),
        max_positions=None,
    )


def _rope(parameters: dict[str, Any], config: Any, path: Path) -> Rope:
    parameters.pop("type", None)
    kind = parameters.pop("rope_type", "default")
    theta = float(parameters.pop("rope_theta"))
    if kind not in ROPE_TYPES:
        raise InvalidRequest(f"{path}: RoPE type {kind!r} is not handled; handled are {', '.join(ROPE_TYPES)}")
    names = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ())
    factors = {name: float(parameters.pop(name)) for name in names}
    if kind == "llama3":
        factors["original_max_positions"] = int(
            parameters.pop("original_max_position_embeddings", config.max_position_embeddings)
        )
    if parameters:
        raise InvalidRequest(f"{path}: RoPE parameters {', '.join(sorted(parameters))} are not handled")
    return Rope(theta, kind, **factors)


def _gpt2(config: Any, path: Path) -> ModelConfig:
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
        activation=_checked_activation(config.activation_function, path),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        qk_norm=False,
        rope=None,
        max_positions=config.n_positions,
    )
