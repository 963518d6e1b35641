"""Write conversations as text with the chat template of a model, and find the messages in that text.

In: a folder's files, messages. Out: text, and its spans. Guarantee: the text equals that of transformers' tokenizers,
but for the date of today, which would make each day's text another one.
Each span is exact: the template also writes the messages with marks in place of what they say, and with these replaced
the result must equal the text. Cost: jinja's, twice for spans.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ...core.errors import DamagedData, InvalidRequest
from .files import TokenizerFiles, read_json

Messages = list[dict[str, str]]
Spans = dict[str, list[list[int]]]
THINK, TURN_END = "think", "turn-end"
TEMPLATE_DATE = datetime(2024, 7, 26)  # which Llama 3's template writes where it is not told the date
_DIRECTIVES = [
    f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYZ"
]  # of strftime
_NEEDS_JINJA = "chat templates need the jinja2 package: pip install 'jinja2>=3.1.6'"
_MARK = re.compile("\ue000([0-9]+)\ue001")  # characters for private use, around a number
_THINKING = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)", re.DOTALL)


class RefusedByTemplate(InvalidRequest):
    """The chat template cannot write a conversation."""


class Conversation(NamedTuple):
    """`spans`: {role, think or turn-end: [first, last) of each}, in characters of the text."""

    text: str
    spans: Spans


class _MarkedText(NamedTuple):
    """The text that one mark replaces: `text` of message number `message`, which belongs to these spans."""

    text: str
    message: int
    names: tuple[str, ...]


def find_template(files: TokenizerFiles) -> str | None:
    """Return the chat template of `chat_template.jinja`, tokenizer_config.json or `chat_template.json`, in this order.

    Raises InvalidRequest if there are several and none is the default.
    """
    if (files.folder / "chat_template.jinja").exists():
        return (files.folder / "chat_template.jinja").read_text("utf-8")
    found = files.settings.get("chat_template") or read_json(files.folder / "chat_template.json").get("chat_template")
    if not isinstance(found, list):
        return found or None
    by_name = {one["name"]: one["template"] for one in found}
    if "default" not in by_name:
        raise InvalidRequest(f"{files.folder}: chat templates {sorted(by_name)}, none of which is called default")
    return by_name["default"]


def render(
    template: str, messages: Messages, names: dict[str, Any], next_turn: bool, date: datetime = TEMPLATE_DATE
) -> str:
    """Return the text of a conversation, with `next_turn` up to the model's next turn.

    `names` are the special tokens by name, `date` is what a template writes as today's. Raises RefusedByTemplate, and
    InvalidRequest if jinja2 is missing.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise InvalidRequest(_NEEDS_JINJA) from error
    try:
        (text,), _ = render_jinja_template(
            [messages], chat_template=_on(date, template), add_generation_prompt=next_turn, **names
        )
    except ImportError as error:  # jinja2 is older than transformers wants it
        raise InvalidRequest(_NEEDS_JINJA) from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # the template's own code
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedByTemplate(f"the chat template of --model cannot write this conversation: {said}") from error
    return text


def _on(date: datetime, template: str) -> str:
    """Return a template that writes `date` where it would write the date of today."""
    if "strftime_now" not in template:
        return template
    written = "".join(f" | replace({directive!r}, {date.strftime(directive)!r})" for directive in _DIRECTIVES)
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}"
    return f"{macro}\n{template}"  # the line break goes, and the template still begins a line


def write_conversation(write: Callable[[Messages], str], messages: Messages, ends: Sequence[str]) -> Conversation:
    """Return a conversation with its spans.

    A span covers what a message says, without blanks around it; a message of an assistant includes its thoughts. The
    span `turn-end` is the first special token behind a message, one of `ends`.

    Raises DamagedData if the template changes what a message says, and as `write`.
    """
    text, parts = write(messages), list[_MarkedText]()
    marked = write([_marked(message, number, parts) for number, message in enumerate(messages)])
    fixed, numbers = _MARK.split(marked)[::2], [int(number) for number in _MARK.split(marked)[1::2]]
    found: list[tuple[int, int]] = []
    at = len(fixed[0])
    for number, behind in zip(numbers, fixed[1:], strict=True):
        found.append((at, at + len(parts[number].text)))
        at = found[-1][1] + len(behind)
    if _MARK.sub(lambda match: parts[int(match[1])].text, marked) != text:
        raise DamagedData(
            "the chat template of --model changes what a message says: its place in the text is not known"
        )
    return Conversation(
        text, _spans(list(zip((parts[number] for number in numbers), found, fixed[1:], strict=True)), ends)
    )


def _marked(message: dict[str, str], number: int, parts: list[_MarkedText]) -> dict[str, str]:
    """Return a message with marks in place of what it says, and add these to the parts."""
    role = message["role"]

    def mark(text: str, *names: str) -> str:
        core = text.strip()
        if not core:
            return text
        if "\ue000" in core:
            raise DamagedData("a message has the character U+E000, which marks places here")
        parts.append(_MarkedText(core, number, names))
        return text.replace(core, f"\ue000{len(parts) - 1}\ue001")

    content, before = message["content"], ""
    thoughts = {key: mark(text, role, THINK) for key, text in message.items() if key not in ("role", "content")}
    if role == "assistant" and (match := _THINKING.match(content)):
        before, content = match[1] + mark(match[2], role, THINK) + match[3], content[match.end() :]
    return message | thoughts | {"content": before + mark(content, role)}


def _spans(placed: Sequence[tuple[_MarkedText, tuple[int, int], str]], ends: Sequence[str]) -> Spans:
    """Return the spans of parts, each with its place and the text up to the next one."""
    spans: Spans = {}
    end = re.compile("|".join(re.escape(token) for token in sorted(ends, key=len, reverse=True)) or "(?!)")
    for number, (part, (first, last), behind) in enumerate(placed):
        role, *inner = part.names
        goes_on = number and placed[number - 1][0].message == part.message
        if goes_on:
            spans[role][-1][1] = last
        else:
            spans.setdefault(role, []).append([first, last])
        for name in inner:
            spans.setdefault(name, []).append([first, last])
        is_last = number + 1 == len(placed) or placed[number + 1][0].message != part.message
        if is_last and (match := end.search(behind)):
            spans.setdefault(TURN_END, []).append([last + match.start(), last + match.end()])
    return spans
