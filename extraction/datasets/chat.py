"""Conversations, written by the chat template of a model: one record for each.

In: rows with a list of messages: `role` and `content`, or `from` and `value` (ShareGPT). Out: the published manifest
and stream files. A record's meta has `spans`, the characters of what each role says (`system`, `user`, `assistant`), of
the model's thoughts (`think`) and of the tokens that end turns (`turn-end`), which `--positions` names.

Guarantee: the text is that of transformers' `apply_chat_template`, on a fixed date. Tool calls, images, roles that do
not alternate and a conversation that the template refuses are damaged records.
Cost: the template, twice for each conversation.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ..core.errors import DamagedData, InvalidRequest
from ..core.flags import flag
from ..core.logs import say
from ..storage import Storage
from ..streams.build.publish import Published
from ..streams.build.row_files import Located, checked_text
from .command import PLACES, Dataset
from .rows_to_records import ANY_FILES, Content, Form, RowOptions, publish_form

COLUMNS = ("messages", "conversations", "conversation")
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "developer": "developer",
         "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
         "model": "assistant"}  # fmt: skip
LEADING = ("system", "developer")
TOOLS = ("tool_calls", "function_call", "tool_call_id")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(RowOptions):
    """The column of the messages, and the model whose template writes them."""

    model: str = flag(help="Folder of the model whose tokenizer has the chat template.")
    messages_column: str | None = flag(None, help=f"The column of messages, by default {', '.join(COLUMNS)}.")
    next_turn: bool = flag(False, is_flag=True, help="End each record with the beginning of the model's next turn.")
    date: datetime | None = flag(
        None, type=click.DateTime(["%Y-%m-%d"]), help="What a template writes as today's date, by default 2024-07-26."
    )


def create(storage: Storage, source: str, num_streams: int, options: ChatOptions) -> Published:
    """Publish `num_streams` streams of the conversations of a source.

    Raises InvalidRequest when there are none, or if the model has no chat template.
    """
    from ..batching.tokenizer import RecordTokenizer
    from ..batching.tokenizer.chat import TEMPLATE_DATE, TURN_END, RefusedByTemplate

    tokenizer = RecordTokenizer(Path(os.path.expanduser(options.model)))
    if not tokenizer.has_chat_template:
        raise InvalidRequest(f"--model {options.model}: this tokenizer has no chat template")
    columns = (options.messages_column,) if options.messages_column else COLUMNS
    date, is_first = options.date or TEMPLATE_DATE, [True]

    def make(located: Located) -> list[Content]:
        messages = messages_of(located, columns)
        try:
            text, spans = tokenizer.converse(messages, options.next_turn, date)
        except (RefusedByTemplate, DamagedData) as error:
            raise DamagedData(f"{located.where}: {error}") from error
        if is_first and tokenizer.adds_prefix(text):
            say("the chat template writes no beginning-of-text token, which a worker adds: for the ids of "
                "apply_chat_template give `run --bos never`", "WARNING")  # fmt: skip
        is_first.clear()
        return [Content(text, {"spans": spans})]

    said = {"spans": sorted({*LEADING, "user", "assistant", TURN_END}), "next_turn": options.next_turn,
            "tokenizer_digest": tokenizer.digest, "chat_template_digest": tokenizer.chat_digest}  # fmt: skip
    said |= {"messages_column": options.messages_column} if options.messages_column else {}
    said |= {"date": date.date().isoformat()}
    return publish_form(storage, source, num_streams, options, Form("chat", columns, make, said))


def messages_of(located: Located, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the messages of a row, `role` and `content` each, as templates take them. Raises DamagedData."""
    where = located.where
    name = located.first_of(columns)
    value = located.row[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DamagedData(f"{where}: {name} is not JSON: {error}") from error
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        raise DamagedData(f"{where}: {name} is not a list of messages")
    messages = [_message(one, f"{where}: message {number}") for number, one in enumerate(value)]
    turns = [message["role"] for message in messages if message["role"] not in LEADING]
    late = any(message["role"] in LEADING for message in messages[len(messages) - len(turns) :])
    if late or any(one == other for one, other in zip(turns, turns[1:], strict=False)):
        said = ", ".join(message["role"] for message in messages[:10])
        raise DamagedData(f"{where}: roles do not alternate: {said}")
    return messages


def _message(value: Mapping[str, Any], where: str) -> dict[str, str]:
    for key in TOOLS:
        if value.get(key):
            raise DamagedData(f"{where} has {key}: tool calls are not supported")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise DamagedData(f"{where} has the role {role!r}, which is not one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_text_of(part, where) for part in content)
    said = checked_text(content, f"{where}: its content")
    thoughts = {
        key: checked_text(value[key], f"{where}: its {key}") for key in THOUGHTS if isinstance(value.get(key), str)
    }
    return {"role": ROLES[role.lower()], "content": said} | thoughts


def _text_of(part: Any, where: str) -> str:
    """Return the text of a part of a message. Raises DamagedData for an image or anything else."""
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DamagedData(f"{where} has a part of type {kind!r}: only text is supported")


DATASET = Dataset(
    help="Streams of conversations, written by a model's chat template, with the spans of each role.",
    source="Rows with messages of `role` and `content`, or `from` and `value`. " + ANY_FILES + PLACES,
    create=create,
    have="chats: messages with roles",
    options=ChatOptions,
)
