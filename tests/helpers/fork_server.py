"""Commands of the project as forks of a process that has imported the library, which saves two seconds of each start.

In: a script, its arguments and its environment. Out: a process, with the methods of `subprocess.Popen` that tests use.
Guarantee: the server has no thread of Python and no jax backend, so that a fork is as good as a fresh interpreter. Cost: one
server for each process of pytest.
"""

import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[2]
READ_BY_IMPORTS = ("JAX_", "PYTHON", "XLA_", "LD_", "HF_")  # beginnings of the names of variables


def is_forkable(arguments: list[str], environment: dict[str, str]) -> bool:
    """Whether the imports of this command are those of the server; `parity` also imports torch."""
    given, own = (
        {key: value for key, value in variables.items() if key.startswith(READ_BY_IMPORTS)}
        for variables in (environment, os.environ | {"JAX_PLATFORMS": "cpu"})
    )
    return given == own and arguments[:1] != ["parity"]


@functools.cache
def _server() -> tuple[subprocess.Popen, str]:
    """Start the server of this process, which ends with its standard input."""
    path = str(Path(tempfile.mkdtemp(prefix="forks-")) / "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server", path],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if server.stdout.readline() != "ready\n":
        raise RuntimeError(f"the fork server ended with {server.wait()}")
    return server, path


class Forked:
    """A started command. Its stderr is a pipe, unless a file is given."""

    def __init__(self, script: Path, arguments: list[str], environment: dict[str, str], files: tuple[IO, IO] | None):
        self.returncode: int | None = None
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._link.connect(_server()[1])
        reader, writer = (None, None) if files else os.pipe()
        self.stderr = reader and os.fdopen(reader)
        descriptors = [file.fileno() for file in files] if files else [1, writer]
        request = json.dumps([str(script), arguments, environment, os.getcwd()]).encode()
        socket.send_fds(self._link, [len(request).to_bytes(4, "big")], descriptors)
        self._link.sendall(request)
        if writer:
            os.close(writer)
        self.pid = int.from_bytes(self._link.recv(4), "big")

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended, negative for death by a signal."""
        if self.returncode is None:
            if not select.select([self._link], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int.from_bytes(self._link.recv(4), "big", signed=True)
            self._link.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait, and return the rest of its stderr, which must fit into a pipe."""
        self.wait(timeout)
        with self.stderr:
            return None, self.stderr.read()

    def send_signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self.returncode is None and not select.select([self._link], [], [], 0)[0]:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL if it runs."""
        self.send_signal(signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------ the server


def serve(path: str) -> None:
    """Fork a guard for each connection, until the standard input ends."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards are reaped by the system
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        link, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            guard(link)
        link.close()


def guard(link: socket.socket) -> NoReturn:
    """Fork a command, and report its process id and its exit code."""
    try:
        size, descriptors, _, _ = socket.recv_fds(link, 4, 2)
        with link.makefile("rb") as stream:
            script, arguments, environment, folder = json.loads(stream.read(int.from_bytes(size, "big")))
        pid = os.fork()
        if pid == 0:
            link.close()
            become(script, arguments, environment, folder, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        link.sendall(pid.to_bytes(4, "big"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        link.sendall(code.to_bytes(4, "big", signed=True))
    finally:
        os._exit(0)


def become(script: str, arguments: list[str], environment: dict[str, str], folder: str, files: list[int]) -> NoReturn:
    """Run a script as an interpreter of its own would."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(files, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv[:] = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # as an interpreter would; no child may go on as a second server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_library() -> None:
    """Import what the commands import, and read the small files of transformers that the test model needs."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads in a process that is forked
    import extract_activations

    extract_activations.without_torch()
    os.environ["DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"] = "true"  # as storage/gcs.py does
    import google.cloud.storage  # noqa: F401
    import huggingface_hub.hf_api  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import create_dataset_streams  # noqa: F401
    import extraction.audit.verify  # noqa: F401
    import extraction.datasets.fineweb
    import extraction.datasets.text  # noqa: F401
    import extraction.read.exports  # noqa: F401
    import extraction.tools.plan  # noqa: F401
    import extraction.tools.report  # noqa: F401
    import extraction.tools.status_table  # noqa: F401
    import extraction.worker.worker  # noqa: F401
    from extraction.models.config_file import read_model_config

    read_model_config(ROOT / "examples/tiny-lm")
    assert threading.active_count() == 1


if __name__ == "__main__":
    import_library()
    serve(sys.argv[1])
