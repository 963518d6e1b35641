"""Tokenisation: records in, records as int32 token ids out, in the same order.

In: the folder of a model with its `tokenizer.json`, and records. Out: `TokenizedRecord`s. Guarantee: the ids depend on
the record and the configuration alone; nothing is cut, padded or reordered. Cost: the fast tokenizer's, on
`group_size` records at a time, so at most that many texts are held.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from .errors import DamagedData, ExtractionError, InvalidRequest
from .records import Record, TokenizedRecord

GROUP_SIZE = 256  # records tokenised at once: enough for all cores to have work
BOS_MODES = ("auto", "always", "never")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
                    "tokenizer.model", "added_tokens.json")


class RecordTokenizer:
    """The tokenizer of the model in `folder`.

    `bos` is `auto` (begin a record with what the tokenizer itself begins a text with, if anything), `always` (begin
    with its beginning-of-text token) or `never` (no special tokens). An end-of-text token that a tokenizer would
    append is never added. Where the embedding has `num_rows`, an added token beyond them is read as the text that it
    is: the tokenizer of Gemma 3 1B has one for images, which that model does not see. Raises InvalidRequest (no
    tokenizer, no such token, a vocabulary beyond the embedding) and DamagedData (unreadable files).
    """

    def __init__(self, folder: Path, bos: str = "auto", num_rows: int | None = None):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._tokenizer, self._num_rows = _load(folder), num_rows
        self.digest = _digest(folder)
        self._prefix = self._find_prefix(bos)
        vocabulary = self._tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        largest = max([*vocabulary.values(), *self._prefix])
        if not self._has_row(largest):
            raise InvalidRequest(
                f"{folder}: the tokenizer has ids up to {largest}, the embedding has {num_rows} rows; "
                "they do not belong together"
            )

    def _has_row(self, token_id: int) -> bool:
        return self._num_rows is None or token_id < self._num_rows

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was trained on conversations that its tokenizer can write."""
        return bool(self._tokenizer.chat_template)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """A conversation as text, ended where the model speaks next; without the beginning that `tokenize` adds."""
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(self._tokenizer.bos_token or "") if self._prefix else text

    def _find_prefix(self, bos: str) -> list[int]:
        if bos == "never":
            return []
        first = self._tokenizer.bos_token_id
        if bos == "always":
            if first is None:
                raise InvalidRequest("--bos always: this tokenizer has no beginning-of-text token; use --bos auto")
            return [first]
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        return full[: full.index(bare[0])] if full != bare else []

    def special_tokens(self) -> dict[str, object]:
        """What of the stored tokens is no text: ids of the special tokens, and the ids that begin each record."""
        ids = {token: self._tokenizer.convert_tokens_to_ids(token) for token in self._tokenizer.all_special_tokens}
        added = self._tokenizer.added_tokens_decoder.items()
        ids |= {token.content: number for number, token in added if token.special}
        ids = {token: number for token, number in sorted(ids.items()) if self._has_row(number)}
        return {"ids": ids, "record_prefix": self._prefix}

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of the special tokens, rising."""
        return tuple(sorted(set(self.special_tokens()["ids"].values())))

    def tokenize(
        self, records: Iterable[Record], group_size: int = GROUP_SIZE, offsets: bool = False
    ) -> Iterator[TokenizedRecord]:
        """Token ids of each record, in order; with `offsets` also the characters that each token is of."""
        encode, prefix = self._encoder(offsets), [(0, 0)] * len(self._prefix)
        for group in filter(None, _groups(records, group_size)):
            for record, found in zip(group, encode([record.text for record in group]), strict=True):
                ids = np.array(self._prefix + found.ids, np.int32)
                places = np.array(prefix + found.offsets, np.int64).reshape(-1, 2) if offsets else None
                yield TokenizedRecord(record.index, record.id, ids, record.meta, places)

    def _encoder(self, offsets: bool) -> Callable[[list[str]], list]:
        """Texts to encodings, on all cores; finding offsets takes longer."""
        fast = self._tokenizer.backend_tokenizer
        if not all(map(self._has_row, fast.get_added_tokens_decoder())):
            state = json.loads(fast.to_str())
            state["added_tokens"] = [token for token in state["added_tokens"] if self._has_row(token["id"])]
            fast = type(fast).from_str(json.dumps(state))
        fast.no_truncation()
        fast.no_padding()
        encode = fast.encode_batch if offsets else fast.encode_batch_fast
        return lambda texts: encode(texts, add_special_tokens=False)


def _groups(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Lists of `size` records, the last one shorter; records before a damaged one are still handed on."""
    group: list[Record] = []
    try:
        for record in records:
            group.append(record)
            if len(group) == size:
                yield group
                group = []
    except ExtractionError:
        yield group
        raise
    yield group


def _load(folder: Path):
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InvalidRequest(f"{folder}: no tokenizer.json here; --model needs the tokenizer beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a file it cannot parse
        raise DamagedData(f"{folder}: the tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise InvalidRequest(f"{folder}: {type(tokenizer).__name__} has no fast form; --model needs a tokenizer.json")
    return tokenizer


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            data = (folder / name).read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return f"sha256:{digest.hexdigest()}"
