"""ARC-AGI prompts: examples and a test input as text that ends where the answer begins, or with the answer.

In: pairs of grids, a test grid and its answer, already augmented. Out: the text, the spans of its test input and
answer, and the number of first examples that were dropped so that it fits a number of tokens. Guarantee: the test
input, and a requested answer, are always whole; a prompt that cannot fit is None, never cut; a text with an answer is
the prompt without it, followed by the answer in the model's turn. Cost: the tokenizer's, once for each prompt and each
dropped example.

Templates: `plain` shows the grids under `Input:` and `Output:`; `instructed` begins with an instruction; `turns` is a
conversation in which the model has answered the examples. With a tokenizer that has a chat template, `plain` and
`instructed` are the user's turn; `turns` needs one.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import InvalidRequest
from .grids import Encoder, Grid, parse_encoder
from .options import PromptOptions

if TYPE_CHECKING:
    from ...batching.tokenizer import RecordTokenizer

Pair = tuple[Grid, Grid]
Messages = list[dict[str, str]]
Encode = Callable[[Grid], str]
_MARK = "\ue000"  # a character for private use, which no template and no grid has
TASK = (
    "Each example turns an input grid into an output grid by the same rule. "
    "Find the rule and give the output grid of the last input.\n\n"
)


def plain(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """Return a conversation of one text, with the grids alone."""
    shown = "".join(f"Input:\n{encode(given)}\nOutput:\n{encode(answer)}\n\n" for given, answer in pairs)
    return [_says("user", f"{shown}Input:\n{encode(test)}\nOutput:\n")]


def instructed(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """Return a conversation of one text, which begins with the instruction."""
    (message,) = plain(encode, pairs, test)
    return [_says("user", TASK + message["content"])]


def turns(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """Return a conversation: the user gives inputs, the model has answered those of the examples."""
    said = [
        _says(*turn) for given, answer in pairs for turn in (("user", encode(given)), ("assistant", encode(answer)))
    ]
    said.append(_says("user", encode(test)))
    return [_says("user", TASK + said[0]["content"]), *said[1:]]


TEMPLATES = {"plain": plain, "instructed": instructed, "turns": turns}


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Prompt(NamedTuple):
    """`spans`: {name: [first, last)} in characters; `dropped`: how many examples are not there."""

    text: str
    spans: dict[str, list[int]]
    dropped: int


class Prompter:
    """Writes prompts. Raises InvalidRequest for options that do not go together."""

    def __init__(self, options: PromptOptions):
        self._options = options
        self.encoder: Encoder = parse_encoder(options.grid_encoding)
        self._template = TEMPLATES[options.template]
        if options.model is None and options.seq_len is not None:
            raise InvalidRequest("--seq-len needs --model: tokens are counted with its tokenizer")
        self._tokenizer = _tokenizer(options.model, options.bos) if options.model else None
        self.chat = options.chat != "never" and self._tokenizer is not None and self._tokenizer.has_chat_template
        if options.chat == "always" and not self.chat:
            raise InvalidRequest("--chat always needs --model, a folder whose tokenizer has a chat template")
        if options.template == "turns" and not self.chat:
            raise InvalidRequest("--template turns needs --model, a folder whose tokenizer has a chat template")

    def to_json(self) -> dict[str, Any]:
        """Return the options of a manifest: everything that decides the text."""
        used: dict[str, Any] = {"grid_encoding": self._options.grid_encoding, "template": self._options.template}
        if self._tokenizer is not None:
            used |= {"chat": self.chat, "tokenizer_digest": self._tokenizer.digest}
            used |= {"chat_template_digest": self._tokenizer.chat_digest} if self.chat else {}
        return used | ({"seq_len": self._options.seq_len} if self._options.seq_len is not None else {})

    def text(self, pairs: Sequence[Pair], test: Grid) -> str:
        """Return a prompt with all of the pairs."""
        return self._written(self.encoder, pairs, test)

    def fitted(self, pairs: Sequence[Pair], test: Grid, answer: Grid | None = None) -> Prompt | None:
        """Return the prompt, followed by the answer if there is one, with as many of the last pairs as fit.

        Returns None when the test input and the answer alone do not fit.
        """
        said = "" if answer is None else self.encoder(answer)
        for dropped in range(len(pairs) + 1):
            text = self.text(pairs[dropped:], test)
            if self._options.seq_len is None or self.num_tokens(text + said) <= self._options.seq_len:
                spans = self._test_span(pairs[dropped:], test, text)
                spans |= {"answer": [len(text), len(text) + len(said)]} if said else {}
                return Prompt(text + said, spans, dropped)
        return None

    def _written(self, encode: Encode, pairs: Sequence[Pair], test: Grid) -> str:
        messages = self._template(encode, pairs, test)
        return self._tokenizer.chat(messages) if self._tokenizer and self.chat else messages[0]["content"]

    def _test_span(self, pairs: Sequence[Pair], test: Grid, text: str) -> dict[str, list[int]]:
        """Return the span of the test input, found by a mark in its place; none if a chat template changes it."""
        shown = self.encoder(test)
        marked = self._written(lambda grid: _MARK if grid is test else self.encoder(grid), pairs, test)
        before, _, after = marked.partition(_MARK)
        found = before + shown + after == text
        return {"test-input": [len(before), len(before) + len(shown)]} if found else {}

    def num_tokens(self, text: str) -> int:
        """Return how many token ids a record with this text has; 0 without a tokenizer."""
        from ...format.records import Record

        if self._tokenizer is None:
            return 0
        (record,) = self._tokenizer.tokenize([Record(0, "", text)])
        return len(record.tokens)


def _tokenizer(model: str, bos: str) -> "RecordTokenizer":
    from ...batching.tokenizer import RecordTokenizer

    return RecordTokenizer(Path(os.path.expanduser(model)), bos)
