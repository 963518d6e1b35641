"""What a fault campaign kills: commands as processes of their own, and the storage that they write to.

In: the arguments of a command. Out: a process that runs the real entry point, either forked from this one, which has
imported the modules once, or a new interpreter. Guarantee: importing this module starts no thread and no jax backend,
so a fork is as good as a fresh start; children and servers die with this process, however it ends. Cost of a start on
one core: 0.6 s forked, 5 s as an interpreter.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Before the imports that read them: no threads in what will be forked; and jax says when it compiles.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1"}

import google.cloud.storage  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401

import checkpoint  # noqa: E402
import extract_activations  # noqa: E402
import extraction.audit.verify  # noqa: E402, F401
import extraction.worker.worker  # noqa: E402, F401

STOPPING = {signal.SIGTERM, signal.SIGINT}
LONGEST_STOP, LONGEST_RUN = 10, 600  # seconds: from SIGTERM to the end, and of a command that nobody disturbs


def die_with_parent() -> None:
    """In a child: SIGKILL when the parent ends (prctl, PR_SET_PDEATHSIG of linux/prctl.h)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Command:
    """A started `extract_activations.py`: what it says, and how it ends."""

    def __init__(self, arguments: list[object], full: bool = False):
        self.began, self.text = time.monotonic(), b""
        self._reader, writer = os.pipe()
        # Blocked until the child has the handlers of a new process: the parent's would swallow the first signal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        parent, self.pid = os.getpid(), os.fork()
        if self.pid == 0:
            self._become([str(argument) for argument in arguments], full, parent, writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(writer)

    def _become(self, arguments: list[str], full: bool, parent: int, writer: int) -> NoReturn:
        try:
            os.setsid()
            die_with_parent()
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            for descriptor in (1, 2):
                os.dup2(writer, descriptor)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os.close(self._reader)
            os.close(writer)
            command = [str(ROOT / "extract_activations.py"), *arguments]
            if os.getppid() == parent:
                if full:
                    os.execv(sys.executable, [sys.executable, *command])
                sys.argv = command
                extract_activations.main()
        except BaseException:  # whatever it is, no child may go on as a second campaign
            traceback.print_exc()
        finally:
            os._exit(1)

    def listen(self, until: float, word: bytes | None = None) -> str:
        """Take in what it says until `until` on the monotonic clock: `ended`, `said` (the word) or `time`."""
        while True:
            if not select.select([self._reader], [], [], max(until - time.monotonic(), 0))[0]:
                return "time"
            chunk = os.read(self._reader, 1 << 16)
            if not chunk:
                return "ended"
            self.text += chunk
            if word is not None and word in self.text:
                return "said"

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and wait; the exit code, negative for death by a signal."""
        try:
            if number is not None:
                os.kill(self.pid, number)
            if number == signal.SIGTERM and self.listen(time.monotonic() + LONGEST_STOP) == "time":
                os.kill(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        finally:
            os.close(self._reader)

    def tail(self) -> str:
        return self.text[-2000:].decode(errors="replace")


def run(*arguments: object) -> tuple[int, str]:
    """A command that nobody disturbs: its exit code and what it said."""
    command = Command([*arguments])
    hangs = command.listen(command.began + LONGEST_RUN) == "time"
    return command.end(signal.SIGKILL if hangs else None), command.text.decode()


@dataclass(frozen=True)
class Shelf:
    """Names of a worker's objects: of data, of commits, and of files that a write has not finished."""

    data: set[str]
    commits: set[str]
    torn: set[str]


@dataclass(frozen=True)
class Backend:
    """Where a run goes: its location, the folder with its objects, and the server's address if there is one."""

    location: str
    folder: Path
    address: str | None = None

    def look(self, worker_id: int) -> Shelf:
        """What is in a worker's folder at this moment; no server is asked."""
        part = checkpoint.worker_folder(worker_id) + "/"
        names = [unquote(str(path.relative_to(self.folder))) for path in self.folder.rglob("*")]
        torn = {name for name in names if part in name and ".tmp-" in name}
        whole = {name for name in names if part in name} - torn
        data, commits = ({name for name in whole if f"/{kind}/" in name} for kind in ("batches", "commits"))
        return Shelf(data, commits, torn)

    def instruct(self, operation: str, name: str, action: str, settings: dict) -> None:
        """Have the server misbehave (the instructions of tests/helpers/fake_gcs.py)."""
        body = {"operation": operation, "name": name, "action": action} | settings
        urllib.request.urlopen(f"{self.address}/_instructions", json.dumps(body).encode()).close()


@contextlib.contextmanager
def open_backend(kind: str, folder: Path) -> Iterator[Backend]:
    """`local`: a folder. `gcs`: a server, its objects in a folder so that they outlive it; children get its address."""
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    if kind == "local":
        yield Backend(str(folder / "objects"), folder / "objects")
        return
    command = [sys.executable, "-m", "tests.helpers.fake_gcs", "--folder", folder / "objects"]
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=die_with_parent
        )
    try:
        address = server.stdout.readline().strip()
        os.environ |= {"STORAGE_EMULATOR_HOST": address, "EXTRACT_RETRY_DEADLINE": "60"}
        yield Backend("gs://bucket/run", folder / "objects", address)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
