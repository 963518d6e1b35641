"""A model's configuration, read from its Hugging Face folder. No jax.

In: a folder with `config.json`. Out: a frozen `ModelConfig`. Guarantee: an attribute that would change the forward pass
and is not handled raises, so that a model that is not quite supported cannot run quietly wrong.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DamagedData, InvalidRequest
from .config import ModelConfig
from .families import FAMILIES, family_of

# Attributes that do not reach the hidden states: generation, training, the head, and how others run the model.
_IRRELEVANT = {
    "architectures", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "bos_token_id",
    "classifier_dropout", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout", "hidden_dropout_prob",
    "initializer_range", "is_decoder", "max_window_layers", "model_type", "n_special", "output_past",
    "output_router_logits", "pad_token_id", "predict_special_tokens", "pretraining_tp", "reorder_and_upcast_attn",
    "resid_pdrop", "router_aux_loss_coef", "router_jitter_noise", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "gradient_checkpointing", "n_ctx",
    "is_llama_config", "max_sequence_length", "_attn_implementation", "_attn_implementation_autoset", "_name_or_path",
    "_num_labels", "id2label", "label2id", "num_labels", "output_attentions", "output_hidden_states",
    "transformers.js_config", "unsloth_fixed", "unsloth_version",
}
# Attributes with one value that changes nothing, where they are not handled.
_ONLY = {"attention_bias": False, "mlp_bias": False, "rope_interleaved": False, "use_mrope": False}


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration of the model in `folder`.

    Raises InvalidRequest (no `config.json`, an architecture or attribute that is not supported) and DamagedData.
    """
    path = folder / "config.json"
    written = _read(path)
    model_type = written["model_type"]
    if model_type not in FAMILIES:
        raise InvalidRequest(f"{path}: model type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _refuse_unhandled(path, written, type(config)())
        family = family_of(model_type)
        if family.inside:
            config = getattr(config, family.inside)
            _refuse_unhandled(path, {"model_type": config.model_type} | written[family.inside], type(config)())
        return _checked(replace(family.read(config, path), family=model_type), path)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, OSError) as error:
        raise DamagedData(f"{path}: {' '.join(str(error).split())}") from error


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


def _refuse_unhandled(path: Path, written: dict[str, Any], default: Any) -> None:
    model_type = written["model_type"]
    for alias, value in written.items():
        name = default.attribute_map.get(alias, alias)
        if name in family_of(model_type).handled | _IRRELEVANT or (name in _ONLY and value == _ONLY[name]):
            continue
        if not hasattr(default, name) or getattr(default, name) != value:
            raise InvalidRequest(f"{path}: {alias} = {json.dumps(value)} is not handled for {model_type}")


def _checked(config: ModelConfig, path: Path) -> ModelConfig:
    """The configuration, if its numbers describe a model at all."""
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width", "vocab_size", "window"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise DamagedData(f"{path}: {name} is {getattr(config, name)}")
    if config.rope is not None and int(config.head_width * config.rope.fraction) % 2:
        raise DamagedData(f"{path}: {config.rope.fraction:g} of a head of {config.head_width} is not a number of pairs")
    if config.num_heads % config.num_kv_heads:
        raise DamagedData(f"{path}: {config.num_heads} heads do not share {config.num_kv_heads} key-value heads evenly")
    return config
