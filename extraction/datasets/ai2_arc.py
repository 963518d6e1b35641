"""AI2 ARC (Easy and Challenge): science questions with lettered choices, one record for each question.

In: Parquet or JSONL files with `id`, `question`, `choices` and `answerKey`, local, in a bucket or on the hub
(`hf://datasets/allenai/ai2_arc`), in the hub's layout or in AI2's own (`stem` and `choices` in `question`). Out: the
published manifest and stream files. The meta keeps the answer as its letter in the text and as the key of the source
and, if the text ends with the answer, its characters (`spans`).

Guarantee: a row that is not such a question raises `DamagedData` naming it, or is left out with `--on-bad-record skip`.
Cost: a few rows in memory.

    Question: Which of these is a mineral?
    A. wood
    B. quartz
    Answer:
"""

import string
from dataclasses import dataclass
from typing import Any

from ..core.count_of import count_of
from ..core.errors import DamagedData
from ..core.flags import flag
from ..storage import Storage
from ..streams.build.publish import Published
from ..streams.build.row_files import Located, checked_text
from .command import PLACES, Dataset
from .rows_to_records import Content, Form, RowOptions, publish_form

COLUMNS = ("question", "choices", "answerKey")


@dataclass(frozen=True, kw_only=True)
class Ai2ArcOptions(RowOptions):
    """The files to read, and whether the answer ends the text."""

    id_column: str | None = flag("id", help="The column that is the record's id.")
    with_answer: bool = flag(False, is_flag=True, help="End each record with the letter of its answer.")


def create(storage: Storage, source: str, num_streams: int, options: Ai2ArcOptions = Ai2ArcOptions()) -> Published:
    """Publish `num_streams` streams of questions. Raises InvalidRequest when there are none."""
    spans = {"spans": ["answer"]} if options.with_answer else {}
    said = {"with_answer": options.with_answer} | spans

    def make(located: Located) -> list[Content]:
        return [question(located, options.with_answer)]

    return publish_form(storage, source, num_streams, options, Form("ai2-arc", COLUMNS, make, said))


def question(located: Located, with_answer: bool) -> Content:
    """Return the content of a question. Raises DamagedData for a missing column or a wrong value."""
    where = located.where
    asked, labels, texts = _question(located)
    for what, value in (("question", asked), ("answer key", located.value("answerKey")),
                        *(("choice", value) for value in (*labels, *texts))):  # fmt: skip
        checked_text(value, f"{where}: its {what}")
    key = located.text("answerKey")
    if not 1 <= len(labels) <= len(string.ascii_uppercase) or len(labels) != len(texts):
        raise DamagedData(f"{where}: {count_of(len(labels), 'label')} and {count_of(len(texts), 'text')} of choices")
    if labels.count(key) != 1:
        raise DamagedData(f"{where}: the answer key {key!r} is not one of the choices {', '.join(labels)}")
    answer = string.ascii_uppercase[labels.index(key)]
    text = prompt(asked, texts, answer if with_answer else None)
    meta: dict[str, Any] = {"answer": answer, "answer_key": key, "num_choices": len(labels)}
    return Content(text, meta | ({"spans": {"answer": [len(text) - len(answer), len(text)]}} if with_answer else {}))


def prompt(question: str, choices: list[str], answer: str | None = None) -> str:
    """Return a question and its choices as text that ends with `Answer:` and, if given, the letter of the answer."""
    lettered = "".join(f"{letter}. {text}\n" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
    return f"Question: {question}\n{lettered}Answer:" + (f" {answer}" if answer else "")


def _question(located: Located) -> tuple[Any, list[Any], list[Any]]:
    """Return the question, and the labels and texts of its choices."""
    question, choices = located.value("question"), located.row.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, dict) and isinstance(choices.get("label"), list) and isinstance(choices.get("text"), list):
        return question, choices["label"], choices["text"]
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        return question, [choice.get("label") for choice in choices], [choice.get("text") for choice in choices]
    raise DamagedData(f"{located.where}: choices must be lists `text` and `label`, or a list of {{text, label}}")


DATASET = Dataset(
    help="Streams of AI2 ARC's questions with lettered choices; the answer is in each record's meta.",
    source=f"Parquet or JSONL rows with `id`, `question`, `choices`, `answerKey`: {PLACES}",
    create=create,
    have="questions of AI2 ARC",
    options=Ai2ArcOptions,
)
