"""Named kill points, so that a test can stop a worker dead at an exact place.

In: the environment variable `EXTRACT_KILL_AT`, `POINT` or `POINT:BATCH`. Out: SIGKILL to this process when it comes by.
Without the variable a point costs one dictionary look-up.
"""

import os
import signal

KILL_POINTS = ("before-run", "after-run", "before-data", "after-data", "before-commit", "after-commit")


def kill_point(name: str, batch: int = 0) -> None:
    """Die here by SIGKILL if this point is armed (for this batch, or for any if no batch was named)."""
    armed = os.environ.get("EXTRACT_KILL_AT")
    if armed in (name, f"{name}:{batch}"):
        os.kill(os.getpid(), signal.SIGKILL)
