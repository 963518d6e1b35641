"""AI2 ARC (Easy and Challenge): science questions with lettered choices, one record for each question.

In: Parquet or JSONL files with `id`, `question`, `choices` and `answerKey`, local, in a bucket or on the hub
(`hf://datasets/allenai/ai2_arc`), as the hub has them or as AI2 publishes them (`stem` and `choices` in `question`).
Out: the published manifest and stream files. The meta keeps the answer as its letter here and as the key of the
source, and where the text ends with it, which of its characters it is (`spans`).

Guarantee: a row that is not such a question raises `DamagedData` naming it. Cost: a few rows in memory.

    Question: Which of these is a mineral?
    A. wood
    B. quartz
    Answer:
"""

import json
import string
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DamagedData, InvalidRequest
from ..storage import Storage
from .command import PLACES, Dataset, flag
from .publish import Origin, Published
from .row_files import SUFFIXES, Located, read_rows
from .rows import Row, publish_rows
from .sources import find_source

COLUMNS = ("id", "question", "answerKey")


def create(storage: Storage, source: str, num_streams: int, with_answer: bool = False) -> Published:
    """Publish `num_streams` streams of questions, with the letter of the answer behind `Answer:` if so asked."""
    found = find_source(source, SUFFIXES)
    options = {"with_answer": with_answer} | ({"spans": ["answer"]} if with_answer else {})
    origin = Origin("ai2-arc", found.place, found.revision, options)
    return publish_rows(storage, origin, question_rows(read_rows(found), with_answer), num_streams)


def question_rows(rows: Iterable[Located], with_answer: bool) -> Iterator[Row]:
    """The record of each question. Raises InvalidRequest for a missing column, DamagedData for a wrong value."""
    for where, row in rows:
        if missing := [column for column in COLUMNS if column not in row]:
            raise InvalidRequest(f"{where} has no column {missing[0]!r}; it has {', '.join(row) or 'none'}")
        question, labels, texts = _question(row, where)
        if not all(isinstance(value, str) for value in (row["id"], question, row["answerKey"], *labels, *texts)):
            raise DamagedData(f"{where}: an id, question, choice or answer key that is not text")
        if not 1 <= len(labels) <= len(string.ascii_uppercase) or len(labels) != len(texts):
            raise DamagedData(f"{where}: {len(labels)} labels and {len(texts)} texts of choices")
        if labels.count(row["answerKey"]) != 1:
            raise DamagedData(
                f"{where}: the answer key {row['answerKey']!r} is not one of the choices {', '.join(labels)}"
            )
        answer = string.ascii_uppercase[labels.index(row["answerKey"])]
        meta = {"answer": answer, "answer_key": row["answerKey"], "num_choices": len(labels)}
        text = prompt(question, texts, answer if with_answer else None)
        meta |= {"spans": {"answer": [len(text) - len(answer), len(text)]}} if with_answer else {}
        yield Row(row["id"], text, json.dumps(meta))


def prompt(question: str, choices: list[str], answer: str | None = None) -> str:
    """A question and its choices as text, which ends with `Answer:`, or with the letter of the answer behind that."""
    lettered = "".join(f"{letter}. {text}\n" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
    return f"Question: {question}\n{lettered}Answer:" + (f" {answer}" if answer else "")


def _question(row: dict[str, Any], where: str) -> tuple[Any, list[Any], list[Any]]:
    """The question, and the labels and texts of its choices."""
    question, choices = row["question"], row.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, dict) and isinstance(choices.get("label"), list) and isinstance(choices.get("text"), list):
        return question, choices["label"], choices["text"]
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        return question, [choice.get("label") for choice in choices], [choice.get("text") for choice in choices]
    raise DamagedData(f"{where}: choices are neither a 'text' and a 'label' list nor a list of both")


DATASET = Dataset(
    help="Streams of AI2 ARC's questions with lettered choices; the answer is in each record's meta.",
    source=f"Parquet or JSONL rows with `id`, `question`, `choices`, `answerKey`: {PLACES}",
    create=create,
    flags=[flag("--with-answer", is_flag=True, help="End each record with the letter of its answer.")],
)
