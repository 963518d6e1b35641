"""Where each stream of a run stands, found with few requests: one listing and one read for each worker.

In: the output of a run. Out: a `Standing` for a worker: its last commit, which sums up the chain, and when, by the
store's clock, it and the ones before it were created. Of a long chain only the end is listed; `progress.json` tells
where that is, and is believed only if the commit it names is there.

Guarantee: none about what lies before the last commit; that is what `verify` is for.
"""

from dataclasses import dataclass
from itertools import islice

import checkpoint
from checkpoint import Commit

from .attempts import ENDED, STARTS, Ending, parse_ending
from .errors import DamagedData, ObjectNotFound
from .storage import ObjectInfo, Storage
from .strict_json import loads

_PAGE = 1000  # objects in one answer to a listing
_TAIL = 100  # commits at the end of a long chain that are looked at


@dataclass(frozen=True)
class Standing:
    """`commit_times`: when the last commits were created, in order; `begun`: the first one. All in the store's seconds.

    `started` is when an attempt last said that it took on the stream, `ending` how one ended after the last commit.
    `damage` says why the last commit cannot be read.
    """

    worker_id: int
    last: Commit | None = None
    begun: float | None = None
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
    commits, notes, begun = _list_end(storage, folder)
    started = max((info.updated for info in notes if info.name.startswith(f"{folder}/{STARTS}")), default=None)
    last, damage = None, None
    if commits:
        try:
            last = checkpoint.parse_commit(storage.read(commits[-1].name), commits[-1].name)
        except DamagedData as error:
            damage = str(error)
    times = tuple(info.updated for info in commits)
    ended = max((info for info in notes if info.name.startswith(f"{folder}/{ENDED}")), key=_time, default=None)
    ending = None
    if ended is not None and ended.updated >= max(times[-1:] + ((started or 0.0),)):
        ending = parse_ending(storage.read(ended.name))
    return Standing(worker_id, last, begun, times, started, ending, damage)


def _time(info: ObjectInfo) -> float:
    return info.updated


def _list_end(storage: Storage, folder: str) -> tuple[list[ObjectInfo], list[ObjectInfo], float | None]:
    """The last commits, all notes, and when the first commit was created."""
    first, found = f"{folder}/commits/", None
    page = list(islice(storage.list(f"{folder}/", start_after=first), _PAGE))
    begun = page[0].updated if page and page[0].name.startswith(first) else None
    if len(page) == _PAGE:
        found = _from_hint(storage, folder)
        if found is None:
            found = list(storage.list(f"{folder}/", start_after=first))
    objects = page if found is None else found
    commits = [info for info in objects if info.name.startswith(first)]
    return commits, [info for info in objects if not info.name.startswith(first)], begun


def _from_hint(storage: Storage, folder: str) -> list[ObjectInfo] | None:
    """What follows the commit that `progress.json` leads to, if that commit is there."""
    try:
        batch = parse_progress(storage.read(f"{folder}/progress.json"))
    except ObjectNotFound:
        return None
    if batch is None:
        return None
    found = list(storage.list(f"{folder}/", start_after=f"{folder}/commits/{batch - _TAIL:08d}.json"))
    return found if found and found[0].name == f"{folder}/commits/{batch - _TAIL + 1:08d}.json" else None


def parse_progress(data: bytes) -> int | None:
    """The batch that `progress.json` names, if it names one after the first `_TAIL`; never trusted, only tried."""
    try:
        batch = loads(data)["batch"]
    except (ValueError, KeyError, TypeError):
        return None
    return batch if type(batch) is int and _TAIL <= batch < 10**8 else None
