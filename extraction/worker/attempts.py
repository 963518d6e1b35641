"""Write the notes of an attempt: for people, for workers that choose a stream, and for launch_worker.sh.

In: when an attempt begins to work on a stream, its first commit, and the error that ends it. Out: create-only objects
in the `attempts` folder of the stream, which `format/stream_state.py` reads, and two local files for the launcher.
Guarantee: nothing that is committed depends on a note, and a note that fails to be written does not end the attempt,
unless the store refuses such writes for good.
Cost: one small object for each note.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ..core.errors import ExtractionError, Fenced, InvalidRequest, Stopped, TryAgain
from ..core.google_machine import zone
from ..core.logs import say
from ..core.printable import shown_lines
from ..core.strict_json import dumps
from ..format.commit import Attempt, Commit, commit_name
from ..format.run_config import FORMAT
from ..format.stream_state import BEGIN, END, Ending, note_name
from ..storage import Storage

_MOST_CHARACTERS = 2000  # of the message in a note


def new_attempt() -> Attempt:
    """Return an attempt of this process; its host has its zone too on a machine of Google's."""
    attempt = Attempt()
    return replace(attempt, host=f"{attempt.host} in {zone()}") if zone() else attempt


def note_begin(storage: Storage, stream: int, attempt: Attempt) -> None:
    """Write the note that this attempt begins to work on the stream.

    Raises InvalidRequest if the store takes no create-only writes: the attempt would have nowhere to commit.
    """
    _write(storage, note_name(stream, attempt.id, BEGIN), {"host": attempt.host})


def note_first_commit(commit: Commit) -> None:
    """Write the commit's name to the local file LAUNCH_COMMIT_FILE, if set: launch_worker.sh sees the progress."""
    path = os.environ.get("LAUNCH_COMMIT_FILE")
    if not path:
        return
    try:
        Path(path).write_text(f"{commit_name(commit.stream, commit.batch)}\n")
    except OSError as error:
        say(f"LAUNCH_COMMIT_FILE {path} is not written: {error}", "WARNING")


@contextlib.contextmanager
def note_failure(storage: Storage, stream: int, attempt: Attempt) -> Iterator[None]:
    """Write the note of an error that passes through, unless the next attempt is likely to succeed."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TryAgain) and not isinstance(error, Stopped):
            raise
        state = "fenced" if isinstance(error, Fenced) else "stopped" if isinstance(error, Stopped) else "failed"
        message = str(error) if isinstance(error, ExtractionError) else f"{type(error).__name__}: {error}"
        ending = Ending(state, message[:_MOST_CHARACTERS], attempt.id, attempt.host)
        _write(storage, note_name(stream, attempt.id, END), asdict(ending), known=type(error))
        raise


@contextlib.contextmanager
def retry_if_fenced_by_own_launcher(attempt: Attempt) -> Iterator[None]:
    """Raise TryAgain for a Fenced whose winner is an earlier attempt of the same launcher.

    A request of a killed worker may land after its successor has listed the commits. That attempt is no rival:
    launch_worker.sh starts a worker after the one before has ended, so the killed one commits nothing more, and the
    next attempt continues after its commit. LAUNCH_ATTEMPTS_FILE names the local file with the attempts of a launcher.
    """
    earlier = _earlier_attempts(attempt)
    try:
        yield
    except Fenced as fenced:
        if fenced.winner not in earlier:
            raise
        message = f"{fenced}: a killed attempt of this worker, whose last request arrived late"
        raise TryAgain(message) from fenced


def _earlier_attempts(attempt: Attempt) -> list[str]:
    """Return the attempts of this launcher before this one, and add this one to its file."""
    path = os.environ.get("LAUNCH_ATTEMPTS_FILE")
    if not path:
        return []
    try:
        with open(path, "a+", encoding="ascii") as file:
            file.seek(0)
            earlier = file.read().split()
            file.write(f"{attempt.id}\n")
    except (OSError, ValueError) as error:
        say(f"LAUNCH_ATTEMPTS_FILE {path} is not kept: {error}", "WARNING")
        return []
    return earlier


def _write(storage: Storage, name: str, content: dict[str, str], known: type | None = None) -> None:
    """Write a note, or warn that it is not written unless the error is of the `known` type, which the note is about.

    Raises InvalidRequest if no type is known.
    """
    try:
        shown = {key: shown_lines(text) for key, text in content.items()}
        storage.create(name, dumps({"format": FORMAT} | shown))
    except ExtractionError as error:
        if known is None and isinstance(error, InvalidRequest):
            raise
        if type(error) is not known:
            say(f"{name} is not written: {error}", "WARNING")
