"""Batch files that are missing or damaged, computed again and put back.

In: the commits of a run, and a function that computes the batch file of one. Out: a `Repair` for each batch file that
was not as committed. Guarantee: an object is created only with the size and the checksum that its commit names, and
only where there is none: nothing is overwritten or deleted. A commit or `run.json` that is lost cannot be computed.
Cost: a look at each batch file (a local one is read), and the batch's own cost for each that is computed.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from ..core.errors import DamagedData
from ..core.versions import version_differences
from ..format.chain import check_data, commit_objects
from ..format.commit import Commit, data_name, read_commit, worker_number
from ..format.run_config import RunDescription, read_existing_run
from ..storage import Storage, crc32c_base64, open_storage
from .compare_recomputed import Computer


class Repair(NamedTuple):
    """A sentence on one object, and whether the object is whole now."""

    text: str
    whole: bool


def repair_run(output: str, load: Callable[[RunDescription], Computer]) -> Iterator[Repair]:
    """Yield what became of each object of a run that is not as committed; `load` is called if one must be computed.

    Raises as `read_existing_run`.
    """
    storage = open_storage(output)
    run = read_existing_run(storage)
    loaded = cache(lambda: load(run))
    for folder in storage.folders():
        stream = worker_number(folder)
        if stream is not None:
            yield from _repair_stream(storage, stream, loaded)


def _repair_stream(storage: Storage, stream: int, load: Callable[[], Computer]) -> Iterator[Repair]:
    try:
        names = [info.name for info in commit_objects(storage, stream)]
    except DamagedData as error:
        yield Repair(f"{error}; a commit cannot be computed again: restore it from a copy", False)
        return
    for name in names:
        try:
            commit = read_commit(storage, name).commit
        except DamagedData as error:
            yield Repair(f"{error}; a commit cannot be computed again: restore it from a copy", False)
            continue
        if commit.data is None:
            continue
        try:
            check_data(storage, commit)
        except DamagedData as error:
            yield _repair(storage, commit, load(), str(error))


def _repair(storage: Storage, commit: Commit, computer: Computer, problem: str) -> Repair:
    assert commit.data is not None
    name, data = data_name(commit), computer.compute(commit)
    if (len(data), crc32c_base64(data)) != (commit.data.size, commit.data.crc32c):
        others = "; ".join(version_differences(commit.versions, computer.versions)) or "nothing that is recorded"
        return Repair(
            f"{name}: computed here, it has other bytes than were committed, and is not put back. What differs here: "
            f"{others}. Repair it on a machine like the run's, or extract stream {commit.stream} to a new --output",
            False,
        )
    if _is_there(storage, name):
        return Repair(f"{problem}. Its bytes can be computed here: move it aside, {_how_to_move(storage, name)}, and "
                      "repair again", False)  # fmt: skip
    storage.create(name, data)
    return Repair(f"{name}: put back, {commit.data.size:,} bytes with crc32c {commit.data.crc32c} as committed", True)


def _is_there(storage: Storage, name: str) -> bool:
    return any(info.name == name for info in storage.list(name))


def _how_to_move(storage: Storage, name: str) -> str:
    place = f"{storage.location}/{name}"
    tool = "mv" if "://" not in storage.location else "gcloud storage mv"
    return f"`{tool} '{place}' '{place}.damaged'`"
