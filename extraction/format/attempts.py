"""Small notes in a worker's folder: for people, and for those who choose a stream to work on.

In: the start of an attempt on a stream, and how it ended if that was not well. Out: create-only objects
`worker-NNNNN/starts/<attempt>.json` and `worker-NNNNN/ended/<attempt>.json`. Nothing that is committed depends on a
note, and one that cannot be written is left. Cost: one small object for each.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..core.errors import ExtractionError, Fenced, Stopped, TryAgain
from ..core.logs import say
from ..core.strict_json import loads
from ..storage import ObjectInfo, Storage
from .commit import Instance, worker_folder
from .run_config import FORMAT

STARTS, ENDED = "starts/", "ended/"
_STATES = ("fenced", "failed", "stopped")


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: `state` is fenced, failed or stopped, `message` what it said."""

    state: str
    message: str
    attempt: str
    host: str


def note_start(storage: Storage, stream: int, instance: Instance) -> None:
    """Leave word that this attempt works on the stream from now on, by the store's clock."""
    _note(storage, f"{worker_folder(stream)}/{STARTS}{instance.attempt}.json", {"host": instance.host})


@contextlib.contextmanager
def no_rival_to_itself(instance: Instance) -> Iterator[None]:
    """Raise TryAgain for a Fenced whose winner is an earlier attempt of the same launcher.

    A request of a worker that was killed may land after its successor has listed the commits. That attempt is no rival:
    launch_worker.sh starts a worker after it has seen the end of the one before, so it commits nothing more, and the
    next start goes on after its commit. The attempts of a launcher are in the local file LAUNCH_ATTEMPTS_FILE.
    """
    path = os.environ.get("LAUNCH_ATTEMPTS_FILE")
    earlier: list[str] = []
    if path:
        try:
            with open(path, "a+", encoding="ascii") as file:
                file.seek(0)
                earlier = file.read().split()
                file.write(f"{instance.attempt}\n")
        except (OSError, ValueError) as error:
            say(f"LAUNCH_ATTEMPTS_FILE {path} is not kept: {error}", "WARNING")
    try:
        yield
    except Fenced as fenced:
        if fenced.winner not in earlier:
            raise
        message = f"{fenced}: a killed start of this worker, whose last request came late"
        raise TryAgain(message) from fenced


def list_starts(storage: Storage, stream: int) -> list[ObjectInfo]:
    """The notes of all attempts that took on the stream."""
    return list(storage.list(f"{worker_folder(stream)}/{STARTS}"))


@contextlib.contextmanager
def noted_ending(storage: Storage, stream: int, instance: Instance) -> Iterator[None]:
    """Leave word of an error that passes through, unless it is one that the next start is likely to get past."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TryAgain) and not isinstance(error, Stopped):
            raise
        state = "fenced" if isinstance(error, Fenced) else "stopped" if isinstance(error, Stopped) else "failed"
        message = str(error) if isinstance(error, ExtractionError) else f"{type(error).__name__}: {error}"
        ending = Ending(state, message[:2000], instance.attempt, instance.host)
        name = f"{worker_folder(stream)}/{ENDED}{instance.attempt}.json"
        _note(storage, name, asdict(ending), known=type(error))
        raise


def parse_ending(data: bytes) -> Ending:
    """The note of an ending; what cannot be read as one is an ending that says so."""
    try:
        value = loads(data)
        ending = Ending(*(value[key] for key in Ending.__dataclass_fields__))
        if ending.state in _STATES and all(type(text) is str for text in asdict(ending).values()):
            return ending
    except (ValueError, TypeError, KeyError):
        pass
    return Ending("failed", "(the note of its ending cannot be read)", "", "")


def _note(storage: Storage, name: str, content: dict, known: type | None = None) -> None:
    """Write a note. Trouble of the kind that is `known` already, as it is what is being noted, needs no second line."""
    try:
        storage.create(name, (json.dumps({"format": FORMAT} | content) + "\n").encode())
    except ExtractionError as error:
        if type(error) is not known:
            say(f"{name} is not written: {error}", "WARNING")
