"""Log lines on stderr: for people, or as JSON for Google Cloud Logging.

In: a sentence and its severity. Out: the sentence, or one line of JSON with `severity`, `message`, `time`
(cloud.google.com/logging/docs/structured-logging) and the worker's number. Guarantee: each line is flushed, holds no
character that steers a terminal, and is lost where stderr is closed or its disk is full: no line ends a worker. Cost:
one write.
"""

import contextlib
import json
import sys
from datetime import UTC, datetime

from .printable import shown_lines

_chosen = "text"


def use_format(name: str) -> None:
    """Write `text` or `json` from now on, in this process."""
    global _chosen
    _chosen = name


def is_json() -> bool:
    """Return whether lines are JSON."""
    return _chosen == "json"


def say(message: str, severity: str = "INFO", worker: int | None = None) -> None:
    """Write one line. `severity` is INFO, WARNING or ERROR."""
    if _chosen == "json":
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"severity": severity, "message": message, "time": time}
        line = json.dumps(fields if worker is None else fields | {"worker": worker})
    else:
        line = {"INFO": "", "WARNING": "warning: ", "ERROR": "error: "}[severity] + shown_lines(message)
        line = line if worker is None else f"worker {worker}: {line}"
    with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe, a closed file
        print(line, file=sys.stderr, flush=True)
