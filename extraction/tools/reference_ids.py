"""Token ids on two other paths: from the file that the model was trained with alone, and from AutoTokenizer.

In: a model's folder, records and our ids of them. Out: an `IdComparison`. Guarantee: nothing of `batching.tokenizer` is
used, so that an error there shows. Cost: the tokenizer is built twice more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import DamagedData
from ..format.records import Record


@dataclass(frozen=True)
class OurIds:
    """`prefix` begins every record, `texts` are the ids that follow, for each record."""

    prefix: list[int]
    texts: list[list[int]]


@dataclass(frozen=True)
class IdComparison:
    """`trained_with` is the file whose ids are right and used; `autotokenizer` says what transformers makes of it."""

    records: int
    trained_with: str
    prefix: list[int]
    autotokenizer: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return {
            "records": self.records,
            "trained_with": self.trained_with,
            "record_prefix": self.prefix,
            "autotokenizer": self.autotokenizer,
        }

    def to_text(self) -> str:
        """Return a line; further ones with an example, and where records begin otherwise."""
        other = self.autotokenizer
        if not self.records:
            return "token ids: those of the streams, which have no texts"
        if "failure" in other:
            return f"token ids: those of {self.trained_with}; AutoTokenizer does not load: {other['failure']}"
        lines = [f"token ids: those of {self.trained_with}, with AutoTokenizer ({other['class']}) the same"]
        if other["differing"]:
            shown = other["example"]
            lines = [
                f"token ids: {other['differing']} of {self.records} records have other ids with AutoTokenizer "
                f"({other['class']}); the model was trained with those of {self.trained_with}, which are used here",
                f"  {shown['record']}, token {shown['position']}: {shown['trained_with']} in {self.trained_with}, "
                f"{shown['autotokenizer']} with AutoTokenizer",
            ]
        if other["record_prefix"] != self.prefix:
            lines.append(f"records begin with the ids {self.prefix} here, with {other['record_prefix']} there")
        return "\n".join(lines)


def compare_ids(folder: Path, records: Sequence[Record], ours: OurIds, num_rows: int) -> IdComparison:
    """Compare our ids with both paths. Raises DamagedData if they differ from those of the model's own file."""
    texts, path = [record.text for record in records], folder / "tokenizer.json"
    if not records:
        return IdComparison(0, path.name, ours.prefix)
    if path.exists():
        right = _of_pipeline(path, texts, num_rows)
    else:
        path = folder / "tokenizer.model"
        right = _of_sentencepiece(path, texts, ours.texts)
    for record, wanted, found in zip(records, right, ours.texts, strict=True):
        if wanted != found:
            raise DamagedData(
                f"record {record.id}: our token ids are not those that {path.name} alone gives; this is an error of "
                "this program, please report it with that record"
            )
    try:
        other = _of_transformers(folder, records, right)
    except Exception as error:  # classes and the packages beside transformers raise anything; the user is to see it
        other = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    return IdComparison(len(records), path.name, ours.prefix, other)


def _of_pipeline(path: Path, texts: list[str], num_rows: int) -> list[list[int]]:
    """Return the ids of tokenizer.json; an added token without a row in the embedding is text."""
    from tokenizers import Tokenizer

    state = json.loads(path.read_text("utf-8")) | {"truncation": None, "padding": None}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < num_rows]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def _of_sentencepiece(path: Path, texts: list[str], ours: list[list[int]]) -> list[list[int]]:
    """Return the ids of tokenizer.model; it knows no added tokens: texts with one are compared with nothing."""
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(path))
    plain = {number for number in range(len(original)) if not original.is_control(number)}
    return [original.encode(text) if plain.issuperset(ids) else ids for text, ids in zip(texts, ours, strict=True)]


def _of_transformers(folder: Path, records: Sequence[Record], right: list[list[int]]) -> dict[str, Any]:
    """Return the class, how many records have other ids, one of them, and what it begins records with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    theirs = [list(tokenizer(record.text, add_special_tokens=False)["input_ids"]) for record in records]
    whole, text = list(tokenizer(records[0].text)["input_ids"]), theirs[0]
    before = next(at for at in range(len(whole) + 1) if whole[at : at + len(text)] == text)
    found = {"class": type(tokenizer).__name__, "record_prefix": whole[:before], "differing": 0}
    for record, one, other in zip(records, right, theirs, strict=True):
        if one != other:
            found["differing"] += 1
            found.setdefault("example", {"record": record.id} | _difference(one, other, tokenizer))
    return found


def _difference(right: list[int], theirs: list[int], tokenizer: Any) -> dict[str, Any]:
    """Return a few tokens of each, from where they differ."""
    pairs = enumerate(zip(right, theirs, strict=False))
    at = next((place for place, (one, other) in pairs if one != other), min(len(right), len(theirs)))
    words = [tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (right, theirs)]
    return {"position": at, "trained_with": words[0], "autotokenizer": words[1]}
