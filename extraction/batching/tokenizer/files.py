"""Read the tokenizer files of a folder.

In: a folder of a model, or a tokenizer.json. Out: `TokenizerFiles`: the pipeline that decides the ids, as the bytes of
a tokenizer.json, and the settings around it. Guarantee: the pipeline is that of `tokenizer.json`, byte for byte,
for any class in the settings; only if that file is missing, `tokenizer.model` is converted. Cost: reading
some megabytes; a conversion takes some seconds.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import DamagedData, InvalidRequest
from ...storage.local import os_errors
from .sentencepiece_model import convert

PIPELINE, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
_OTHER_FORMS = {"vocab.json": "vocab.json and merges.txt", "vocab.txt": "vocab.txt", "spiece.model": "spiece.model",
                "tekken.json": "tekken.json", "tiktoken.model": "tiktoken.model"}  # fmt: skip


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of the files of a tokenizer.

    Attributes:
        pipeline: the bytes of a tokenizer.json.
        source: the file that the pipeline comes from.
        settings: tokenizer_config.json, with the keys that only special_tokens_map.json has.
        model: config.json.
    """

    folder: Path
    pipeline: bytes
    source: str
    settings: dict[str, Any]
    model: dict[str, Any]

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that the settings name, by name: `bos_token`, `eos_token` and others."""
        found = {name: _content(value) for name, value in self.settings.items() if name.endswith("_token")}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def extra(self) -> list[str]:
        """Further tokens that the settings call special."""
        keys = ("additional_special_tokens", "extra_special_tokens")
        groups = [self.settings.get(key) or [] for key in keys]
        groups = [group.values() if isinstance(group, dict) else group for group in groups]
        found = [_content(value) for group in groups for value in group]
        return [token for token in found if token is not None]

    @property
    def added(self) -> Iterator[tuple[str, int]]:
        """Tokens with their ids, from the files beside tokenizer.json."""
        for number, value in (self.settings.get("added_tokens_decoder") or {}).items():
            if (token := _content(value)) is not None:
                yield token, int(number)
        yield from read_json(self.folder / "added_tokens.json").items()


def read_files(folder: Path) -> TokenizerFiles:
    """Read the files of `folder`. Raises InvalidRequest (no usable tokenizer), PermissionDenied and DamagedData."""
    with os_errors(str(folder)):
        return _read_files(folder)


def _read_files(folder: Path) -> TokenizerFiles:
    settings, pipeline = read_json(folder / "tokenizer_config.json"), folder / PIPELINE
    settings = read_json(folder / "special_tokens_map.json") | settings
    source = PIPELINE if pipeline.exists() else SENTENCEPIECE
    if not (folder / source).exists():
        raise InvalidRequest(_advice(folder))
    data = pipeline.read_bytes() if source == PIPELINE else convert(folder / source)
    return TokenizerFiles(folder, data, source, settings, read_json(folder / "config.json"))


def _content(value: Any) -> str | None:
    """Return the text of a token, which is a string or an object in the files."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _advice(folder: Path) -> str:
    """Return an error message for a folder without tokenizer.json."""
    if not folder.exists():
        return f"--model {folder}: no such folder; `hf download NAME --local-dir FOLDER` downloads a model"
    for name, found in _OTHER_FORMS.items():
        if (folder / name).exists():
            return (
                f"{folder}: no tokenizer.json here, and {found} alone cannot tell how text is split; take the "
                "tokenizer.json that belongs to the model, or let the class that it was trained with write one: "
                'python -c "from transformers import AutoTokenizer as A; '
                f"A.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
    return f"{folder}: no tokenizer.json here; --model needs the tokenizer beside the weights"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one if there is no file. Raises DamagedData."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no UTF-8
        raise DamagedData(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DamagedData(f"{path}: holds {type(found).__name__}, expected an object")
    return found
