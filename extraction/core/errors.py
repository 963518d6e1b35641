"""Domain errors: failures that a user can act on.

In: a sentence that names the object or flag, what was expected, and what to do. Out: an exception whose class is the
kind of failure. Guarantee: `exit_code` is the exit status of the command lines for it, on which `launch_worker.sh` and
schedulers rely. Cost: none.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExtractionError(Exception):
    """Base of all domain errors."""

    exit_code = 1


class InvalidRequest(ExtractionError):
    """A flag, an environment variable or a combination of them is invalid."""

    exit_code = 2


class DtypeOverflow(InvalidRequest):
    """A stream begins with values that the stored dtype does not hold."""


class DamagedData(ExtractionError):
    """Stored data differs from its commit, or input is not readable in the format that it claims."""

    exit_code = 65


class Fenced(ExtractionError):
    """Another worker owns this stream: it committed the batch that this worker was about to commit.

    `winner` is its attempt.
    """

    exit_code = 73

    def __init__(self, message: str, winner: str = ""):
        super().__init__(message)
        self.winner = winner


class TryAgain(ExtractionError):
    """Storage did not answer within the retry deadline, a disk is full, or the machine is preempted."""

    exit_code = 75


class Stopped(TryAgain):
    """A shutdown signal ended the attempt; the batches in flight are committed."""


class NotRead(ExtractionError):
    """Storage did not answer `status` or `verify`, whose exit code 75 says that a run is not finished."""

    exit_code = 69


@contextmanager
def as_not_read() -> "Iterator[None]":
    """Raise NotRead in place of TryAgain."""
    try:
        yield
    except TryAgain as error:
        raise NotRead(str(error)) from error


class PermissionDenied(ExtractionError):
    """Storage refused a request: a permission or valid credentials are missing."""

    exit_code = 77


class BucketDenied(PermissionDenied):
    """A bucket refused one of the permissions that a worker needs."""


class NoCredentials(PermissionDenied):
    """Credentials for a bucket are missing or expired."""


class ConfigurationMismatch(ExtractionError):
    """The run config of this attempt differs from that of the run."""

    exit_code = 78


class ObjectNotFound(ExtractionError):
    """No object has this name. Callers that know the meaning of its absence raise another domain error."""

    exit_code = 65


class ObjectExists(ExtractionError):
    """A create-only write found an object of that name with other bytes."""

    exit_code = 73
