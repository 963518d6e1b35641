"""The flags of `arc-agi`: which tasks are read, how a prompt is written, and how many there are of each task.

In: the command line, or keyword arguments. Out: `PromptOptions` for the prompts alone, `ArcOptions` for everything.
Guarantee: none; `Prompter` refuses options that do not go together. Cost: none.
"""

from dataclasses import dataclass
from typing import Any

import click

from ...core.flags import flag
from ..command import SourceOptions
from .grids import DEFAULT_ENCODING

BOS = CHAT = ["auto", "always", "never"]


def _one_of(choices: list[str], help: str) -> Any:
    """Return a flag that takes one of these words, by default the first."""
    return flag(choices[0], type=click.Choice(choices), help=help)


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The form of prompts. `model` is a folder with a tokenizer, `seq_len` the most tokens of a prompt."""

    grid_encoding: str = flag(
        DEFAULT_ENCODING,
        help="minimal, separated('|'), repeated(2), in rows(...), shape(...), fenced(...), fenced_shape(...).",
    )
    template: str = _one_of(["plain", "instructed", "turns"], "The words around the grids.")
    chat: str = _one_of(CHAT, "Write prompts with the chat template of --model; auto: if it has one.")
    model: str | None = flag(None, help="Folder whose tokenizer counts tokens and writes conversations.")
    seq_len: int | None = flag(
        None, type=click.IntRange(1), help="Most tokens of a prompt; the first examples are dropped until it fits."
    )
    bos: str = _one_of(BOS, "As for extract_activations.py.")


@dataclass(frozen=True, kw_only=True)
class ArcOptions(PromptOptions, SourceOptions):
    """The tasks to read, and the records of each test input."""

    solutions: str | None = flag(
        None, help="JSON file with the outputs of the tests; by default the one next to a Kaggle challenges file."
    )
    pairs_per_task: int = flag(
        4, type=click.IntRange(2), help="Pairs of a task made from a list of pairs (re-arc); the last pair is the test."
    )
    with_answer: bool = flag(False, is_flag=True, help="End each record with the answer, as --grid-encoding writes it.")
    predictions_per_task: int = flag(
        1,
        type=click.IntRange(1, 1000),
        help="Records of each test input; above 1 each has its own symmetry of the square, colours and order.",
    )
    seed: int = flag(0, type=int, help="Seed of the colours and orders.")
    permute_background: bool = flag(
        False, name="--permute-background/--keep-background", help="Whether colour 0 is permuted too."
    )
