"""The shutdown signal: SIGTERM, SIGINT, SIGHUP or a preemption notice in, an event out, and an end within a fixed time.

Guarantee: GRACE_SECONDS after the signal, and LOG_SECONDS more if nobody reads its log, the process has ended with the
exit code of `TryAgain`, whatever it does; at once if nothing is in flight. A second signal changes nothing. Nothing
durable depends on those seconds.

The notice is that of Google's metadata server, `instance/preempted`, which is asked for on machines of Google's and
wherever GCE_METADATA_HOST (the variable of Google's own libraries) names one. It may come before the signal; a server
that does not answer is never a reason to fail.

Cost: a waiting thread, and on such machines another one with one request a minute.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time

from ..core.errors import TryAgain
from ..core.google_machine import metadata_host
from ..core.logs import say

GRACE_SECONDS = 8
LOG_SECONDS = 1  # to write the last line
NOTICE_PATH = "/computeMetadata/v1/instance/preempted"
_WAIT_SECONDS = 60
_LONGEST_PAUSE = 60.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Stop(threading.Event):
    """Set when the worker has to stop. A worker with work in flight that is worth the grace sets `busy`."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = False
        self._once = threading.Lock()

    def end_process(self, reason: str) -> None:
        """End the process: at once, or with something in flight by the event, and by force when the grace is over.

        For a thread that may wait.
        """
        if not self._once.acquire(blocking=False):
            return
        busy = self.busy
        # On a thread, since a log that nobody reads blocks who writes to it.
        text = f"{reason}: {'finishing what is in flight' if busy else 'nothing is in flight'}"
        log = threading.Thread(target=say, args=(text,), name="last words", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be started: nothing is said
            log.start()
        if busy:
            self.set()
            time.sleep(GRACE_SECONDS)
        if log.is_alive():
            log.join(LOG_SECONDS)
        os._exit(TryAgain.exit_code)


def watch_for_shutdown() -> Stop:
    """Return an event that those signals and a preemption notice set; call it before any other thread starts.

    A thread waits for the signals, since a handler would not run while the main thread is inside a compilation.
    """
    stop = Stop()
    signals = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signals.add(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _end_with_launcher()

    def wait() -> None:
        stop.end_process(signal.Signals(signal.sigwait(signals)).name)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    host = metadata_host()
    if host:
        threading.Thread(target=_watch, args=(host, stop), name="preemption", daemon=True).start()
    return stop


def _end_with_launcher() -> None:
    """Ask the kernel for SIGTERM when launch_worker.sh, which LAUNCH_PID names, dies: its successor is a rival."""
    launcher = os.environ.get("LAUNCH_PID")
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if not launcher or prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) == launcher:
        return
    if os.path.exists(f"/proc/{launcher}"):
        say("PYTHON of launch_worker.sh is not the interpreter but starts it: if the launcher is killed, this goes on; "
            "let the script `exec` the interpreter", "WARNING")  # fmt: skip
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(host: str, stop: Stop) -> None:
    """Wait for the notice while the process lives; after an error pause for up to a minute."""
    from http.client import HTTPException
    from urllib.error import HTTPError

    etag, pause = None, 1.0
    while True:
        try:
            value, etag = _ask(host, etag)
            pause = 1.0
            if value == "TRUE":
                stop.end_process("preemption notice")
                return
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, HTTPError) and error.code in (403, 404):
                return  # a server without this key, as inside some clusters
            etag, pause = None, min(pause * 2, _LONGEST_PAUSE)
        time.sleep(pause)


def _ask(host: str, etag: str | None) -> tuple[str, str | None]:
    """Return the value of the notice and its ETag; with an ETag, when the value changes or after a minute."""
    from urllib.request import ProxyHandler, Request, build_opener

    query = f"?wait_for_change=true&timeout_sec={_WAIT_SECONDS}&last_etag={etag}" if etag else ""
    request = Request(f"http://{host}{NOTICE_PATH}{query}", headers={"Metadata-Flavor": "Google"})
    with build_opener(ProxyHandler({})).open(request, timeout=_WAIT_SECONDS + 30) as answer:
        if answer.headers.get("Metadata-Flavor") != "Google":
            raise ValueError(f"{host} is not a metadata server")
        return answer.read(100).decode().strip(), answer.headers.get("ETag")
