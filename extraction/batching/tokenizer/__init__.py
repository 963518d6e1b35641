"""Tokenization: records in, records as int32 token ids out, in the same order.

In: the folder of a model with its `tokenizer.json`, and records. Out: `TokenizedRecord`s. Guarantee: the ids are those
of `tokenizers.Tokenizer.from_file("tokenizer.json")` and depend on the record and the configuration alone; ids are not
cut, padded or reordered. A record of token ids keeps its own; a text that begins with the prefix gets no second one.
Cost: the pipeline's, on `group_size` records at a time, so at most that many texts are held; memory and time as
`limits` says.

The tokenizer classes of transformers are not used: some build another pipeline from the vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DamagedData, ExtractionError, InvalidRequest
from ...core.git_lfs import refuse_pointer
from ...core.logs import say
from ...format.records import Record, TokenizedRecord
from ...format.run_config import SpecialTokenIds
from .chat import TEMPLATE_DATE, Conversation, find_template, render, write_conversation
from .files import TokenizerFiles, read_files
from .limits import MOST_CHARACTERS, groups, shortened, within_time
from .special import SpecialTokens, find_special_tokens

GROUP_SIZE = 256  # records tokenized at once: enough for all cores to have work
_RULE = 4  # of how ids and offsets come from files
_TRIED = 256  # first records, one of which must give a token


class RecordTokenizer:
    """The tokenizer of the model in `folder`.

    `bos` is `auto` (begin a record as the model was trained, see `special`), `always` (begin with the
    beginning-of-text token) or `never` (no special tokens). An end-of-text token is never appended. An added token
    whose id is not below `num_rows`, the rows of the embedding, is read as plain text: the tokenizer of Gemma 3 1B has
    such a token for images. Raises InvalidRequest (no tokenizer, no such token, a vocabulary larger than the embedding)
    and DamagedData (unreadable files).
    """

    def __init__(self, folder: Path, bos: str = "auto", num_rows: int | None = None):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._files, self._num_rows = read_files(folder), num_rows
        whole = parse_pipeline(self._files.pipeline, folder / self._files.source)
        self._special = find_special_tokens(self._files, whole)
        self._prefix = self._find_prefix(bos)
        largest = max([*whole.get_vocab(with_added_tokens=False).values(), *self._prefix])
        if not self._has_row(largest):
            raise InvalidRequest(
                f"{folder}: the tokenizer has ids up to {largest}, the embedding has {num_rows} rows; "
                "they do not belong together"
            )
        self._tokenizer = self._without_rowless(whole)
        self._tokenizer.post_processor = None  # without special tokens it only trims offsets, of blanks to nothing
        for line in self._special.disagreements:
            say(f"{folder}: {line}", "WARNING")

    @cached_property
    def digest(self) -> str:
        """The digest of everything that decides the ids except `bos`."""
        return _digest(self._files, self._special)

    def _has_row(self, token_id: int) -> bool:
        return self._num_rows is None or token_id < self._num_rows

    def _without_rowless(self, whole: Any) -> Any:
        """Return the pipeline without the added tokens that have no row."""
        added = whole.get_added_tokens_decoder().items()
        rowless = {token.content for number, token in added if not self._has_row(number)}
        if not rowless:
            return whole
        state = json.loads(self._files.pipeline)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in rowless]
        return parse_pipeline(json.dumps(state).encode(), self._files.folder / self._files.source)

    @cached_property
    def _chat_template(self) -> str | None:
        return find_template(self._files)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self._chat_template is not None

    @property
    def chat_digest(self) -> str:
        """The digest of the chat template."""
        return f"sha256:{hashlib.sha256((self._chat_template or '').encode()).hexdigest()}"

    def chat(self, messages: list[dict[str, str]]) -> str:
        """Return a conversation as text, up to the model's next turn.

        Raises InvalidRequest if there is no chat template, or if it refuses these messages.
        """
        return render(self._template(), messages, self._files.named, True)

    def converse(
        self, messages: list[dict[str, str]], next_turn: bool = False, date: datetime = TEMPLATE_DATE
    ) -> Conversation:
        """Return a conversation as text with its spans; with `next_turn` up to the model's next turn.

        A template that writes the date of today writes `date`. Raises as `chat`, and DamagedData if the template
        changes what a message says.
        """
        template = self._template()

        def write(messages: list[dict[str, str]]) -> str:
            return render(template, messages, self._files.named, next_turn, date)

        return write_conversation(write, messages, list(self._special.ids))

    def _template(self) -> str:
        if self._chat_template is None:
            raise InvalidRequest(f"{self._files.folder}: this tokenizer has no chat template")
        return self._chat_template

    def adds_prefix(self, text: str) -> bool:
        """Return whether `tokenize` puts the ids that begin each record before those of this text."""
        return self._encode([Record(0, "", text)], offsets=False)[0].ids[: len(self._prefix)] != self._prefix

    def _find_prefix(self, bos: str) -> list[int]:
        if bos == "always" and self._special.begin is None:
            raise InvalidRequest("--bos always: this tokenizer has no beginning-of-text token; use --bos auto")
        return {"never": [], "always": [self._special.begin], "auto": self._special.prefix}[bos]

    def special_tokens(self) -> SpecialTokenIds:
        """Return the ids of the special tokens, and the ids that begin each record."""
        ids = {token: number for token, number in sorted(self._special.ids.items()) if self._has_row(number)}
        return SpecialTokenIds(ids, tuple(self._prefix))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of the special tokens, rising."""
        return tuple(sorted(set(self.special_tokens().ids.values())))

    def require_tokens(self, records: Iterable[Record]) -> None:
        """Raise InvalidRequest if the first records have text, and no text has a token that the tokenizer knows."""
        tried = 0
        for record in filter(lambda record: record.text.strip(), islice(records, _TRIED)):
            beginning = replace(record, text=record.text[:MOST_CHARACTERS])
            if set(self._encode([beginning], offsets=False)[0].ids) - {self._special.unknown}:
                return
            tried += 1
        if tried:
            raise InvalidRequest(
                f"{self._files.folder}: this tokenizer finds no token that it knows in any of the first "
                f"{tried} records that have text: give the model's own tokenizer.json, or streams that it can read"
            )

    def tokenize(
        self, records: Iterable[Record], group_size: int = GROUP_SIZE, offsets: bool = False, most: int | None = None
    ) -> Iterator[TokenizedRecord]:
        """Yield the token ids of each record, in order; with `offsets` also the characters of each token.

        With `most`, only the first so many ids of a record are wanted: of a long text no more is tokenized than surely
        gives them. Raises DamagedData that names a record for a text that takes too much memory or time.
        """
        lengths: dict[int, int] = {}  # of the texts that are waiting
        if most is not None:
            records = map(lambda record: self._shortened(record, most, lengths), records)
        for group in filter(None, groups(records, group_size)):
            encoded = iter(self._encode([record for record in group if record.tokens is None], offsets))
            for record in group:
                if record.tokens is None:
                    found = self._of_text(record, next(encoded), offsets)
                    yield replace(found, num_chars=lengths.pop(record.index, found.num_chars))
                else:
                    yield TokenizedRecord(record.index, record.id, self._checked(record), record.meta)

    def _of_text(self, record: Record, found: Any, offsets: bool) -> TokenizedRecord:
        ids = found.ids  # a new list at each access
        prefix = [] if ids[: len(self._prefix)] == self._prefix else self._prefix
        tokens = np.fromiter(chain(prefix, ids), np.int32, len(prefix) + len(ids))
        places = np.array([(0, 0)] * len(prefix) + found.offsets, np.int64).reshape(-1, 2) if offsets else None
        return TokenizedRecord(record.index, record.id, tokens, record.meta, places, len(record.text))

    def _checked(self, record: Record) -> np.ndarray:
        """Return the ids of a record without text. Raises DamagedData for one that the model has no embedding of."""
        assert record.tokens is not None
        if len(record.tokens) and not (record.tokens.min() >= 0 and self._has_row(int(record.tokens.max()))):
            odd = next(token for token in record.tokens.tolist() if token < 0 or not self._has_row(token))
            raise DamagedData(
                f"record {record.id}: the token id {odd} is not one of the model, whose ids are below {self._num_rows}"
            )
        return record.tokens

    def text_ids(self, records: Iterable[Record]) -> list[list[int]]:
        """Return the ids of the texts alone, without a prefix."""
        return [found.ids for found in self._encode(list(records), offsets=False)]

    def _shortened(self, record: Record, most: int, lengths: dict[int, int]) -> Record:
        """Return the record with as much of its text as is needed; note down the length of a text that is cut."""

        def encode(text: str) -> list[int]:
            return self._encode([replace(record, text=text)], offsets=False)[0].ids

        text = shortened(record.text, most, encode)
        if len(text) < len(record.text):
            lengths[record.index] = len(record.text)
        return replace(record, text=text)

    def pieces(self, ids: list[int]) -> list[str]:
        """Return the text of each token; a character of several tokens is in the last of them."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._tokenizer, token) or "" for token in ids]

    def _encode(self, records: list[Record], offsets: bool) -> list[Any]:
        """Encode each record, on all cores; finding offsets takes longer. Raises DamagedData."""
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return within_time(lambda: encode([record.text for record in records], add_special_tokens=False), records)
        except (ExtractionError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # nothing narrower is raised, for a text without a token or a panic in a regex
            for record in records[:-1]:
                self._encode([record], offsets)
            said = str(error).splitlines()[0]
            raise DamagedData(f"record {records[-1].id}: the tokenizer cannot read it: {said}") from error


def load_pipeline(location: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder or of a file such as tokenizer.json. Raises as RecordTokenizer."""
    if location.is_dir():
        files = read_files(location)
        return parse_pipeline(files.pipeline, location / files.source)
    try:
        return parse_pipeline(location.read_bytes(), location)
    except OSError as error:
        raise InvalidRequest(f"{location}: {error.strerror}; give a folder with a tokenizer.json") from error


def parse_pipeline(data: bytes, path: Path) -> Any:
    """Return the tokenizer in the bytes of a tokenizer.json, without truncation and padding.

    Raises DamagedData and InvalidRequest that name `path`.
    """
    from tokenizers import Tokenizer

    refuse_pointer(data, path)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the package raises nothing narrower
        raise DamagedData(f"{path}: not a readable tokenizer: {str(error).splitlines()[0]}") from error
    if getattr(tokenizer.model, "dropout", None):
        raise InvalidRequest(f"{path}: its model has a dropout, which makes ids random; set it to null there")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _digest(files: TokenizerFiles, special: SpecialTokens) -> str:
    """Return a digest of the bytes of tokenizer.json and of the settings that were read."""
    facts = {"rule": _RULE, "begin": special.begin, "prefix": special.prefix, "ids": special.ids}
    data = json.dumps(facts, sort_keys=True).encode() + b"\n" + files.pipeline
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
