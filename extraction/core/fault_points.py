"""Named kill points: a test kills a worker at an exact place.

In: the environment variable `EXTRACT_KILL_AT`, `POINT` or `POINT:BATCH`. Out: SIGKILL to this process at that point.
Guarantee: without the variable nothing happens. Cost: one dictionary look-up.
"""

import os
import signal


def kill_point(name: str, batch: int = 0) -> None:
    """Kill this process if this point is armed, for this batch or for all batches."""
    armed = os.environ.get("EXTRACT_KILL_AT")
    if armed in (name, f"{name}:{batch}"):
        os.kill(os.getpid(), signal.SIGKILL)
