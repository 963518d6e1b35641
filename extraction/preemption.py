"""Being told to stop: SIGTERM and SIGINT in, an event out, and an end that does not wait for anybody.

Guarantee: GRACE_SECONDS after the signal the process is gone with the exit code of `TryAgain`, whatever it does;
nothing durable depends on those seconds. Cost: one waiting thread.
"""

import os
import signal
import sys
import threading
import time

from .errors import TryAgain

GRACE_SECONDS = 8


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set; to be called before any other thread is started.

    A thread waits for the signals, since a handler would not run while the main thread is inside a compilation.
    """
    stop = threading.Event()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        number = signal.sigwait(signals)
        print(f"{signal.Signals(number).name}: finishing what is in flight", file=sys.stderr, flush=True)
        stop.set()
        time.sleep(GRACE_SECONDS)
        os._exit(TryAgain.exit_code)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
