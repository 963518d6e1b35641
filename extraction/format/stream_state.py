"""The state of each stream of a run, found with a few requests however long its chain is.

In: the output of a run. Out: a `StreamState`: the last commit, which sums up the chain, when the store created it and
the commits before it, and the notes of attempts. Of a long chain only the end is listed. `progress.json` names a batch
near the end, and is believed only if that batch is committed; from there, or from the begin, the end is found in steps
that double and then halve.

Guarantee: none about commits before the last; `verify` proves those. Cost: two reads, a look-up of a commit and two
listings of some 40 names, one listing where the stream is finished; where `progress.json` is missing or old, two
look-ups more for each doubling of the commits that it does not know.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import DamagedData, ObjectNotFound
from ..core.strict_json import loads
from ..storage import ObjectInfo, Storage
from .commit import Commit, commit_name, read_commit, worker_folder

# In the order in which a person wants to know of them.
STATES = ("failed", "crashing", "fenced", "stuck", "stopped", "running", "starting", "waiting", "finished")
BEGIN, END = "begin", "end"  # kinds of notes
_ENDINGS = ("fenced", "failed", "stopped")
_MAX_NOTE = 1 << 16  # bytes of a note, and of progress.json
_DEATHS = 3  # attempts that died before they committed, after which a stream is crashing
_AT_ONCE = 2.0  # seconds within which attempts of several workers begin that chose the same stream
_TAIL = 20  # commits that are listed before the one that is known to exist


@dataclass(frozen=True)
class Ending:
    """The end of an attempt: `state` is fenced, failed or stopped, `message` its error."""

    state: str
    message: str
    attempt: str
    host: str


_UNREADABLE = Ending("failed", "(the note of its ending is not readable)", "", "")


@dataclass(frozen=True)
class StreamState:
    """The last commits of a stream and the last notes on it; times are the store's, in seconds.

    `commit_times` are those of the last commits, in order; `begun` is the time of batch 0. `attempt_begun` is when an
    attempt last began; `ending` is how one ended after the last commit, and `ended` when. `damage` names an object that
    is missing or not readable. `mfu`: the share of the chips' peak that its worker reached, as `progress.json` says.
    `died`: how many attempts began since the last commit and were followed by another.
    """

    stream: int
    last: Commit | None = None
    begun: float | None = None
    commit_times: tuple[float, ...] = ()
    mfu: float | None = None
    attempt_begun: float | None = None
    ending: Ending | None = None
    ended: float | None = None
    damage: str | None = None
    died: int = 0

    @property
    def num_batches(self) -> int:
        """The number of committed batches."""
        return self.last.batch + 1 if self.last else 0

    @property
    def finished(self) -> bool:
        """Whether the end of the stream is committed."""
        return self.last is not None and self.last.end_of_stream

    @property
    def stopped_at(self) -> float | None:
        """The time when the last attempt ended by a shutdown signal; None if it did not, or another one began since."""
        return self.ended if self.ending is not None and self.ending.state == "stopped" else None

    @property
    def last_active(self) -> float:
        """The time when an attempt last began or committed; 0 if never."""
        return max(self.commit_times[-1:] + (self.attempt_begun or 0.0,))

    def state_at(self, now: float, stuck_after: float) -> str:
        """Return which of `STATES` it is at the time `now`; `stuck_after` seconds without a sign of work are stuck."""
        if self.damage:
            return "failed"
        if self.finished:
            return "finished"
        if self.ending is not None:
            return self.ending.state
        if not self.last_active:
            return "waiting"
        if self.died >= _DEATHS:
            return "crashing"
        if now - self.last_active > stuck_after:
            return "stuck"
        return "running" if self.commit_times else "starting"


def note_name(stream: int, attempt: str, kind: str) -> str:
    """Return the name of the note of an attempt."""
    return f"{_notes_folder(stream)}{attempt}.{kind}.json"


def list_notes(storage: Storage, stream: int, kind: str) -> list[ObjectInfo]:
    """Return the notes of this kind on a stream."""
    return [info for info in storage.list(_notes_folder(stream)) if info.name.endswith(f".{kind}.json")]


def read_stream_state(storage: Storage, stream: int) -> StreamState:
    """Return the state of a stream; of a damaged one nothing but the damage. Other storage errors pass through."""
    try:
        return _read(storage, stream)
    except DamagedData as error:
        return StreamState(stream, damage=str(error))
    except ObjectNotFound as error:
        return StreamState(stream, damage=f"{error}, but later commits are: restore it")


def _read(storage: Storage, stream: int) -> StreamState:
    hint = _read_progress(storage, stream)
    commits, begun = _list_end(storage, stream, hint)
    last, damage, mfu = None, None, hint and hint.mfu
    if commits:
        try:
            last = read_commit(storage, commits[-1].name).commit
        except DamagedData as error:
            damage = str(error)
    times = tuple(map(_time, commits))
    if last is not None and last.end_of_stream:
        return StreamState(stream, last, begun, times, mfu)
    notes = list(storage.list(_notes_folder(stream)))
    begins = sorted(_time(info) for info in notes if info.name.endswith(f".{BEGIN}.json"))
    attempt_begun = begins[-1] if begins else None
    died = _died([time for time in begins if time > max(times[-1:], default=0.0)])
    end = max((info for info in notes if info.name.endswith(f".{END}.json")), key=_time, default=None)
    if end is None or _time(end) < max(times[-1:] + (attempt_begun or 0.0,)):
        return StreamState(stream, last, begun, times, mfu, attempt_begun, damage=damage, died=died)
    ending = _read_ending(storage, end.name)
    return StreamState(stream, last, begun, times, mfu, attempt_begun, ending, _time(end), damage, died)


def _died(begins: list[float]) -> int:
    """Return how many attempts are followed by another one; workers that chose the stream at once count as one."""
    return sum(later - earlier > _AT_ONCE for earlier, later in itertools.pairwise(begins))


def _read_ending(storage: Storage, name: str) -> Ending:
    try:
        return parse_ending(storage.read_small(name, _MAX_NOTE))
    except DamagedData:
        return _UNREADABLE


def parse_ending(data: bytes) -> Ending:
    """Return the ending that a note describes, or an ending that says that the note is not readable."""
    try:
        value: Any = loads(data)
        ending = Ending(*(value[key] for key in Ending.__dataclass_fields__))
        if ending.state in _ENDINGS and all(type(text) is str for text in asdict(ending).values()):
            return ending
    except (ValueError, TypeError, KeyError):
        pass
    return _UNREADABLE


def _notes_folder(stream: int) -> str:
    return f"{worker_folder(stream)}/attempts/"


def _time(info: ObjectInfo) -> float:
    return info.updated or 0.0


def _read_progress(storage: Storage, stream: int) -> "ProgressFile | None":
    try:
        return parse_progress(storage.read_small(f"{worker_folder(stream)}/progress.json", _MAX_NOTE))
    except (ObjectNotFound, DamagedData):
        return None


def _list_end(storage: Storage, stream: int, hint: "ProgressFile | None") -> tuple[list[ObjectInfo], float | None]:
    """Return the objects of the last commits, and when batch 0 was committed."""
    if hint is not None:
        known = _find_end(storage, stream, hint.batch)
        first = max(known - _TAIL, -1)
        commits = _list_after(storage, stream, first)
        if [info.name for info in commits[known - first - 1 : known - first]] == [commit_name(stream, known)]:
            return commits, hint.begun
    commits = _list_after(storage, stream, max(_find_end(storage, stream, -1) - _TAIL, -1))
    return commits, storage.stat(commit_name(stream, 0)).updated if commits else None


def _list_after(storage: Storage, stream: int, batch: int) -> list[ObjectInfo]:
    """Return the objects of the commits after this one, of all commits after -1."""
    after = commit_name(stream, batch) if batch >= 0 else ""
    return list(storage.list(f"{worker_folder(stream)}/commits/", start_after=after))


def _find_end(storage: Storage, stream: int, known: int) -> int:
    """Return the last batch, or one less than `_TAIL` before it.

    `known` is committed, or -1. A chain has no gaps, so that its end is found by halves.
    """
    step = _TAIL
    while _is_committed(storage, stream, known + step):
        known, step = known + step, 2 * step
    while step > _TAIL:
        step //= 2
        if _is_committed(storage, stream, known + step):
            known += step
    return known


def _is_committed(storage: Storage, stream: int, batch: int) -> bool:
    try:
        storage.stat(commit_name(stream, batch))
    except ObjectNotFound:
        return False
    return True


@dataclass(frozen=True)
class ProgressFile:
    """The content of `progress.json`: a batch that was committed, and when batch 0 was, by the store's clock.

    `mfu`: the share of the chips' peak that the worker reached, None if it is unknown.
    """

    batch: int
    begun: float
    mfu: float | None = None


def parse_progress(data: bytes) -> ProgressFile | None:
    """Return what `progress.json` says, None if it is not readable."""
    try:
        value: Any = loads(data)
        mfu = value.get("mfu")
        hint = ProgressFile(value["batch"], float(value["begun"]), None if mfu is None else float(mfu))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    numbers = (hint.begun, hint.mfu or 0.0)
    return hint if type(hint.batch) is int and 0 <= hint.batch < 10**8 and all(map(math.isfinite, numbers)) else None
