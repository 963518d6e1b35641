"""Where each stream of a run stands, found with a few requests however long its chain is.

In: the output of a run. Out: a `Standing` for a worker: its last commit, which sums up the chain, and when, by the
store's clock, it and the ones before it were created. Of a long chain only the end is listed. `progress.json` tells
where that is, and is believed only if the commit it leads to is there; from there, or from the begin, the end is
looked for in steps that double and then halve.

Guarantee: none about what lies before the last commit; that is what `verify` is for.
Cost: two reads, a look for a commit and a listing of some 40 names; where `progress.json` is missing or old, two looks
more for each doubling of the commits that it does not know of.
"""

import math
from dataclasses import dataclass

from ..core.errors import DamagedData, ObjectNotFound
from ..core.strict_json import loads
from ..storage import ObjectInfo, Storage
from .attempts import ENDED, STARTS, Ending, parse_ending
from .commit import Commit, parse_commit, worker_folder

_TAIL = 20  # commits that are looked at before the one that is known to be there


@dataclass(frozen=True)
class Standing:
    """`commit_times`: when the last commits were created, in order, in the store's seconds.

    `begun` is when batch 0 was committed.
    `started` is when an attempt last said that it took on the stream, `ending` how one ended after the last commit,
    and `ended` when.
    `damage` says why the last commit cannot be read.
    """

    stream: int
    last: Commit | None = None
    begun: float | None = None
    commit_times: tuple[float, ...] = ()
    started: float | None = None
    ending: Ending | None = None
    damage: str | None = None
    ended: float | None = None

    @property
    def num_batches(self) -> int:
        return self.last.batch + 1 if self.last else 0

    @property
    def finished(self) -> bool:
        return self.last is not None and self.last.end_of_stream

    @property
    def stopped(self) -> float | None:
        """When the last to work on it said that it had been told to stop; None if it went on, or said nothing."""
        return self.ended if self.ending is not None and self.ending.state == "stopped" else None

    @property
    def active(self) -> float:
        """When somebody last was at work on it; 0 if never."""
        return max(self.commit_times[-1:] + ((self.started,) if self.started is not None else ()), default=0.0)


def read_standing(storage: Storage, stream: int) -> Standing:
    """Where a worker stands. Storage errors pass through."""
    folder = worker_folder(stream)
    objects, begun = _list_end(storage, folder)
    commits = _under(objects, f"{folder}/commits/")
    started = max((info.updated for info in _under(objects, f"{folder}/{STARTS}")), default=None)
    last, damage = None, None
    if commits:
        try:
            last = parse_commit(storage.read(commits[-1].name), commits[-1].name)
        except DamagedData as error:
            damage = str(error)
    times = tuple(info.updated for info in commits)
    ended = max(_under(objects, f"{folder}/{ENDED}"), key=_time, default=None)
    ending = None
    if ended is not None and ended.updated >= max(times[-1:] + ((started or 0.0),)):
        ending = parse_ending(storage.read(ended.name))
    return Standing(stream, last, begun, times, started, ending, damage, ended.updated if ending else None)


def _under(objects: list[ObjectInfo], prefix: str) -> list[ObjectInfo]:
    return [info for info in objects if info.name.startswith(prefix)]


def _time(info: ObjectInfo) -> float:
    return info.updated


def _list_end(storage: Storage, folder: str) -> tuple[list[ObjectInfo], float | None]:
    """The last commits and all notes on attempts, and when batch 0 was committed."""
    try:
        hint = parse_progress(storage.read(f"{folder}/progress.json"))
    except ObjectNotFound:
        hint = None
    if hint is not None:
        known = _find_end(storage, folder, hint.batch)
        first = max(known - _TAIL, -1)
        objects = _list_after(storage, folder, first)
        if [info.name for info in objects[known - first - 1 : known - first]] == [_commit_name(folder, known)]:
            return objects, hint.begun
    known = _find_end(storage, folder, -1)
    if known >= _TAIL:
        begun = storage.stat(_commit_name(folder, 0)).updated
        return _list_after(storage, folder, known - _TAIL), begun
    objects = _list_after(storage, folder, -1)
    return objects, next((info.updated for info in _under(objects, _commit_name(folder, 0))), None)


def _list_after(storage: Storage, folder: str, batch: int) -> list[ObjectInfo]:
    """What is in the worker's folder after this commit, or after all that comes before the commits if it is -1."""
    after = _commit_name(folder, batch) if batch >= 0 else f"{folder}/commits/"
    return list(storage.list(f"{folder}/", start_after=after))


def _find_end(storage: Storage, folder: str, known: int) -> int:
    """The last batch, or one less than `_TAIL` before it; `known` is committed, or -1. A chain has no gaps, so that its
    end can be looked for by halves."""
    step = _TAIL
    while _is_committed(storage, folder, known + step):
        known, step = known + step, 2 * step
    while step > _TAIL:
        step //= 2
        if _is_committed(storage, folder, known + step):
            known += step
    return known


def _is_committed(storage: Storage, folder: str, batch: int) -> bool:
    try:
        storage.stat(_commit_name(folder, batch))
    except ObjectNotFound:
        return False
    return True


def _commit_name(folder: str, batch: int) -> str:
    return f"{folder}/commits/{batch:08d}.json"


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
