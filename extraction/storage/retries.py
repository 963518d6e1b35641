"""The retry policy of the storage backends.

In: a request, and a judge of its errors. Out: the request's result, or a domain error. Guarantee: an error that may
pass is retried with growing, jittered pauses, or the pause that the service asks for, until `EXTRACT_RETRY_DEADLINE`
seconds after the first failure; then `TryAgain` is raised. The deadline counts from the first failure so that a long
upload that breaks at its end has another try. A permission that a request of this process had is seldom taken back: its
refusal may pass, too. Cost: none without an error.
"""

import math
import os
import random
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..core.errors import InvalidRequest, PermissionDenied, TryAgain

Result = TypeVar("Result")
_VARIABLE, _DEFAULT_DEADLINE = "EXTRACT_RETRY_DEADLINE", 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_NOT_SUPPORTED = (501, 505)  # the method or its headers, the version of HTTP
_GRANTED: set[str] = set()  # the permissions that requests of this process had


class Passing(NamedTuple):
    """An error that may pass: its text, and the seconds that the service asks to wait.

    `final` is the error to raise at the deadline, by default a `TryAgain` with the text.
    """

    reason: str
    pause: float = 0.0
    final: Exception | None = None


class RetryPolicy:
    """Repeat requests until the deadline. Raises InvalidRequest if the variable is not a number."""

    def __init__(self) -> None:
        text = os.environ.get(_VARIABLE, str(_DEFAULT_DEADLINE))
        try:
            self._deadline = float(text)
        except ValueError:
            raise InvalidRequest(f"{_VARIABLE}={text} is not a number of seconds") from None

    def call(
        self,
        what: str,
        attempt: Callable[[], Result],
        judge: Callable[[Exception], Passing | Exception],
        tries: float = math.inf,
        permission: str = "",
    ) -> Result:
        """Return the result of `attempt`.

        Args:
            what: the object or place that the request is about, for messages.
            attempt: the request.
            judge: returns `Passing` for an error after which the request may succeed, else the error to raise.
            tries: the most attempts.
            permission: that the request needs, with the bucket and service that grant it; empty if it has no name.

        Raises:
            TryAgain: when the deadline or the number of tries is reached; or the `final` error of the last failure.
        """
        end, pause, done = math.inf, _FIRST_PAUSE, 0
        while True:
            try:
                result = attempt()
                if permission:
                    _GRANTED.add(permission)
                return result
            except Exception as error:
                done, end = done + 1, min(end, time.monotonic() + self._deadline)
                verdict, ended = judge(error), None
                if isinstance(verdict, PermissionDenied) and permission in _GRANTED:
                    verdict = Passing(str(verdict), final=verdict)
                try:
                    if verdict is error:
                        raise
                    if isinstance(verdict, Exception):
                        raise verdict from error
                    wait = max(pause * random.uniform(0.5, 1.0), verdict.pause)
                    if done >= tries or time.monotonic() + wait > end:
                        bound = "at the only try" if done >= tries else f"within {self._deadline:g} s"
                        ended = verdict.final or TryAgain(f"{what}: no success {bound}: {verdict.reason}")
                        raise ended from error
                finally:
                    del verdict, ended  # this frame is in the error's traceback: a cycle would keep sockets open
            time.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)


def is_passing_status(status: int) -> bool:
    """Return whether an HTTP status says that the same request may succeed later."""
    return status in (408, 429) or (status >= 500 and status not in _NOT_SUPPORTED)
