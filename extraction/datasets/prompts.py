"""ARC-AGI prompts: examples and a test input as text that ends where the answer begins.

In: pairs of grids and a test grid, as they are to be shown. Out: the text, and how many examples were dropped from the
front so that it fits a number of tokens. Guarantee: the test input is always there, whole; a prompt that cannot fit is
None, never cut. Cost: the tokenizer's, once for each prompt and each example that is dropped.

Templates: `plain` shows the grids under `Input:` and `Output:`; `instructed` says before them what is asked; `turns` is
a conversation in which the model has answered the examples. With a tokenizer that has a chat template, `plain` and
`instructed` are what the user says in it; `turns` needs one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from .grids import DEFAULT_ENCODING, Encoder, Grid, parse_encoder

if TYPE_CHECKING:
    from ..tokenization import RecordTokenizer

Pair = tuple[Grid, Grid]
Messages = list[dict[str, str]]
TASK = (
    "Each example turns an input grid into an output grid by the same rule. "
    "Find the rule and give the output grid of the last input.\n\n"
)


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are written. `model` is a folder with a tokenizer, `seq_len` the most tokens of a prompt."""

    encoding: str = DEFAULT_ENCODING
    template: str = "plain"
    chat: str = "auto"
    model: str | None = None
    seq_len: int | None = None
    bos: str = "auto"


def plain(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """Everything in one text."""
    shown = "".join(f"Input:\n{encode(given)}\nOutput:\n{encode(answer)}\n\n" for given, answer in pairs)
    return [_says("user", f"{shown}Input:\n{encode(test)}\nOutput:\n")]


def instructed(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """One text that begins with what is asked."""
    (message,) = plain(encode, pairs, test)
    return [_says("user", TASK + message["content"])]


def turns(encode: Callable[[Grid], str], pairs: Sequence[Pair], test: Grid) -> Messages:
    """A conversation: the user gives inputs, the model has answered those of the examples."""
    said = [
        _says(*turn) for given, answer in pairs for turn in (("user", encode(given)), ("assistant", encode(answer)))
    ]
    said.append(_says("user", encode(test)))
    return [_says("user", TASK + said[0]["content"]), *said[1:]]


TEMPLATES = {"plain": plain, "instructed": instructed, "turns": turns}


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Prompter:
    """Writes prompts. Raises InvalidRequest for options that do not go together."""

    def __init__(self, options: PromptOptions):
        self._options = options
        self.encoder: Encoder = parse_encoder(options.encoding)
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
        """What decides the text, as it stands in the manifest."""
        used = {"grid_encoding": self._options.encoding, "template": self._options.template}
        if self._tokenizer is not None:
            used |= {"chat": self.chat, "tokenizer_digest": self._tokenizer.digest}
        return used | ({"seq_len": self._options.seq_len} if self._options.seq_len is not None else {})

    def text(self, pairs: Sequence[Pair], test: Grid) -> str:
        """A prompt with all of the pairs."""
        messages = self._template(self.encoder.encode, pairs, test)
        return self._tokenizer.chat(messages) if self.chat else messages[0]["content"]

    def fitted(self, pairs: Sequence[Pair], test: Grid) -> tuple[str, int] | None:
        """The prompt with as many of the last pairs as fit, and how many were dropped; None if it cannot fit."""
        for dropped in range(len(pairs) + 1):
            text = self.text(pairs[dropped:], test)
            if self._options.seq_len is None or self._num_tokens(text) <= self._options.seq_len:
                return text, dropped
        return None

    def _num_tokens(self, text: str) -> int:
        from ..records import Record

        (record,) = self._tokenizer.tokenize([Record(0, "", text)])
        return len(record.tokens)


def _tokenizer(model: str, bos: str) -> "RecordTokenizer":
    from ..tokenization import RecordTokenizer

    return RecordTokenizer(Path(model).expanduser(), bos)
