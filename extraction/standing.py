"""Where each stream of a run stands, found with three requests however long its chain is.

In: the output of a run. Out: a `Standing` for a worker: its last commit, which sums up the chain, and when, by the
store's clock, it and the ones before it were created. Of a long chain only the end is listed. `progress.json` tells
where that is, and is believed only if the commit it leads to is there; else the marks in the worker's folder do.

Guarantee: none about what lies before the last commit; that is what `verify` is for.
Cost: two reads and a listing of some 25 names; without `progress.json` one listing more, and some 100 names.
"""

import math
from dataclasses import dataclass

import checkpoint
from checkpoint import Commit

from .attempts import ENDED, MARKS, STARTS, Ending, parse_ending
from .errors import DamagedData, ObjectNotFound
from .storage import ObjectInfo, Storage
from .strict_json import loads

_TAIL = 20  # commits that are looked at before the one that is known to be there


@dataclass(frozen=True)
class Standing:
    """`commit_times`: when the last commits were created, in order, in the store's seconds.

    `begun` is an early batch, the first one of a short chain, and when it was committed.
    `started` is when an attempt last said that it took on the stream, `ending` how one ended after the last commit.
    `damage` says why the last commit cannot be read.
    """

    worker_id: int
    last: Commit | None = None
    begun: tuple[int, float] | None = None
    commit_times: tuple[float, ...] = ()
    started: float | None = None
    ending: Ending | None = None
    damage: str | None = None

    @property
    def num_batches(self) -> int:
        return self.last.batch + 1 if self.last else 0

    @property
    def finished(self) -> bool:
        return self.last is not None and self.last.end_of_stream

    @property
    def active(self) -> float:
        """When somebody last was at work on it; 0 if never."""
        return max(self.commit_times[-1:] + ((self.started,) if self.started is not None else ()), default=0.0)


def read_standing(storage: Storage, worker_id: int) -> Standing:
    """Where a worker stands. Storage errors pass through."""
    folder = checkpoint.worker_folder(worker_id)
    objects, begun = _list_end(storage, folder)
    commits = _under(objects, f"{folder}/commits/")
    started = max((info.updated for info in _under(objects, f"{folder}/{STARTS}")), default=None)
    last, damage = None, None
    if commits:
        try:
            last = checkpoint.parse_commit(storage.read(commits[-1].name), commits[-1].name)
        except DamagedData as error:
            damage = str(error)
    times = tuple(info.updated for info in commits)
    ended = max(_under(objects, f"{folder}/{ENDED}"), key=_time, default=None)
    ending = None
    if ended is not None and ended.updated >= max(times[-1:] + ((started or 0.0),)):
        ending = parse_ending(storage.read(ended.name))
    return Standing(worker_id, last, begun, times, started, ending, damage)


def _under(objects: list[ObjectInfo], prefix: str) -> list[ObjectInfo]:
    return [info for info in objects if info.name.startswith(prefix)]


def _time(info: ObjectInfo) -> float:
    return info.updated


def _list_end(storage: Storage, folder: str) -> tuple[list[ObjectInfo], tuple[int, float] | None]:
    """The last commits and all notes on attempts, and an early batch with its time."""
    try:
        hint = parse_progress(storage.read(f"{folder}/progress.json"))
    except ObjectNotFound:
        hint = None
    if hint is not None and hint.batch >= _TAIL:
        found = _list_after(storage, folder, hint.batch - _TAIL)
        if found and found[0].name == f"{folder}/commits/{hint.batch - _TAIL + 1:08d}.json":
            return found, (0, hint.begun)
    marks = [info for info in storage.list(f"{folder}/{MARKS}") if checkpoint.batch_of(info.name) is not None]
    found = _list_after(storage, folder, checkpoint.batch_of(marks[-1].name) - _TAIL if marks else -1)
    early = (marks[:1] or _under(found, f"{folder}/commits/"))[:1]
    return found, next(((checkpoint.batch_of(info.name) or 0, info.updated) for info in early), None)


def _list_after(storage: Storage, folder: str, batch: int) -> list[ObjectInfo]:
    """What is in the worker's folder after this commit; if it is negative, from the first commit on."""
    first = f"{folder}/commits/"
    return list(storage.list(f"{folder}/", start_after=f"{first}{batch:08d}.json" if batch >= 0 else first))


@dataclass(frozen=True)
class Hint:
    """What `progress.json` tells those who look for the end of a chain: a batch that was committed, and when batch 0
    was, in the store's seconds."""

    batch: int
    begun: float


def parse_progress(data: bytes) -> Hint | None:
    """What `progress.json` tells, if it can be read; never trusted, only tried."""
    try:
        value = loads(data)
        hint = Hint(value["batch"], float(value["begun"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return hint if type(hint.batch) is int and 0 <= hint.batch < 10**8 and math.isfinite(hint.begun) else None
