"""A model's configuration, read from its Hugging Face folder. No jax.

In: a folder with `config.json`. Out: a frozen `ModelConfig`. Guarantee: transformers is the reference. A key that its
model reads is implemented, or refuses the model by its name; a key that its model does not read has no effect. Cost:
the import of transformers.
"""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.errors import DamagedData, InvalidRequest
from ..core.logs import say
from .config import ModelConfig, Rope
from .families import FAMILIES, Family, family_of
from .used_config_keys import ModelView

OLDEST_TRANSFORMERS = (5, 23)  # before it, the code of some models reads other attributes
_MOST_BYTES = 16 << 20
_MOST_LAYERS, _LAYERS = 10_000, ("num_hidden_layers", "n_layer", "num_layers")


def read_model_config(folder: Path) -> ModelConfig:
    """Return the configuration of the model in `folder`, which may be its file; log the keys that are not read.

    Raises InvalidRequest (no `config.json`, an architecture or attribute that is not handled) and DamagedData.
    """
    path = folder if folder.is_file() else folder / "config.json"
    written = _read(path)
    if written["model_type"] not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InvalidRequest(f"{path}: model type {written['model_type']!r} is not supported; supported are {known}")
    _check_transformers()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    family = family_of(written["model_type"])
    try:
        _refuse_by_hand(path, written, family)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        part = getattr(config, family.inside) if family.inside else config
        if getattr(part, "rope_parameters", None):
            part.standardize_rope_params()  # again, as the reference does when it has all attributes
        view = ModelView(part)
        found = replace(
            family.read(view, path),
            family=written["model_type"],
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            **_head(view),
            quantised=(written.get("quantization_config") or {}).get("quant_method"),
        )
        _refuse_left(path, view)
        if ignored := view.ignored(_part_read(written, family)):
            say(f"{path}: ignored, since {view.model} of transformers does not read it: {', '.join(ignored)}")
        return _checked(found, path)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        OSError,
    ) as error:
        raise DamagedData(f"{path}: {' '.join(str(error).split())}") from error


def _check_transformers() -> None:
    """Raise InvalidRequest if transformers is older than this project needs."""
    found = metadata.version("transformers")
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TRANSFORMERS:
        needed = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise InvalidRequest(f"transformers {found} is too old: pip install 'transformers>={needed}'")


def _read(path: Path) -> dict[str, Any]:
    """Return the object in config.json, which has a `model_type`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES:,} bytes")
        written = json.loads(data)
    except FileNotFoundError:
        raise InvalidRequest(f"{path.parent}: no config.json here; --model needs a Hugging Face model folder") from None
    except OSError as error:
        raise InvalidRequest(f"{path}: not readable ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{path}: not JSON ({error})") from error
    if not isinstance(written, dict) or not isinstance(written.get("model_type"), str):
        raise DamagedData(f"{path}: not a model configuration, it has no model_type")
    for part in [written, *(inner for inner in written.values() if isinstance(inner, dict))]:
        for name in _LAYERS:
            if isinstance(part.get(name), int) and part[name] > _MOST_LAYERS:
                raise DamagedData(f"{path}: {name} is {part[name]:,}, and no model has over {_MOST_LAYERS:,} layers")
    return written


def _part_read(written: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the part of the file that is read. Raises KeyError if it is missing."""
    if family.inside is None or (family.flat and family.inside not in written):
        return written
    return written[family.inside]


def _refuse_by_hand(path: Path, written: dict[str, Any], family: Family) -> None:
    """Raise InvalidRequest for keys that are read outside the model's code: quantization, layers that differ."""
    inner = written.get(family.inside) if family.inside else None
    if family.inside is None and written.get("text_config"):
        raise InvalidRequest(f"{path}: text_config is not handled for model type {written['model_type']!r}")
    for part in (written, inner or {}):
        if quantisation := part.get("quantization_config"):
            kind = quantisation.get("quant_method") or "of a kind that it does not name"
            if kind in family.quantisations:
                continue
            raise InvalidRequest(
                f"{path}: quantization_config: the weights are quantised ({kind}), which is not handled; give the "
                "model that is not quantised, or load it in transformers, call dequantize(), and save it elsewhere"
            )
        changed = {name for layer in (part.get("per_layer_config") or {}).values() for name in layer}
        if unknown := changed - set(family.by_layer):
            raise InvalidRequest(f"{path}: per_layer_config is not handled for {min(unknown)}")


def _head(view: ModelView) -> dict[str, Any]:
    """Return the fields of the head; an attribute that it reads and that is not handled leaves no loss."""
    read = view.of_head()
    fields: dict[str, Any] = {"logit_softcap": read.pop("final_logit_softcapping", None)}
    fields["logit_scale"] = float(read.pop("logit_scale", 1.0)) / float(read.pop("logits_scaling", 1.0))
    if read:
        name, value = next(iter(read.items()))
        shown = json.dumps(value, default=str)
        fields["no_loss"] = f"{name} = {shown} is not handled for {view.model_type}, and its head reads it"
    return fields


def _refuse_left(path: Path, view: ModelView) -> None:
    for name, value in view.left().items():
        shown = json.dumps(value, default=str)
        raise InvalidRequest(
            f"{path}: {name} = {shown} is not handled for {view.model_type}; {view.model} of transformers reads it"
        )


def _checked(config: ModelConfig, path: Path) -> ModelConfig:
    """Return the configuration. Raises DamagedData for numbers that describe no model."""
    sizes = [("layers", config.num_layers), ("width", config.width), ("vocab_size", config.vocab_size)]
    for kind in dict.fromkeys(config.layers):
        names = ("num_heads", "num_kv_heads", "head_width", "mlp_width", "window")
        sizes += [(name, getattr(kind, name)) for name in names]
        sizes += [("shared_width", kind.experts.shared_width)] if kind.experts else []
        sizes += [(name, getattr(kind.recurrent, name)) for name in ("key_width", "taps")] if kind.recurrent else []
    for name, size in sizes:
        if size is not None and size < 1:
            raise DamagedData(f"{path}: {name} is {size}")
    for kind in dict.fromkeys(config.layers):
        if kind.rope is not None:
            _check_rope(kind.rope, kind.rotated_width, path)
        if kind.num_heads % kind.num_kv_heads:
            shared = f"{kind.num_heads} heads do not share {kind.num_kv_heads} key-value heads evenly"
            raise DamagedData(f"{path}: {shared}")
    return config


def _check_rope(rope: Rope, head_width: int, path: Path) -> None:
    """Raise DamagedData for a rotation that does not fit a head of this width."""
    width = int(head_width * rope.fraction)
    if width % 2:
        raise DamagedData(
            f"{path}: {rope.fraction:g} of the {head_width} columns of a head are rotated, which is not a whole "
            "number of pairs"
        )
    for factors in (rope.short_factors, rope.long_factors) if rope.kind == "longrope" else ():
        if len(factors) != width // 2:
            raise DamagedData(f"{path}: LongRoPE has {len(factors)} factors for {width // 2} pairs of columns")
