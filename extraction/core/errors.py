"""Domain errors: what can go wrong for a reason that a user can do something about.

In: a sentence that names the object or flag and what is wrong with it. Out: an exception whose class says what kind
of trouble it is; `exit_code` is the process exit status that the command lines give it (the contract with
`launch_worker.sh` and schedulers).
"""


class ExtractionError(Exception):
    """Base of all domain errors."""

    exit_code = 1


class InvalidRequest(ExtractionError):
    """A flag, an environment variable or a combination of them asks for something that cannot be."""

    exit_code = 2


class DamagedData(ExtractionError):
    """Stored data or input is not what it was committed as, or cannot be read as what it claims to be."""

    exit_code = 65


class Fenced(ExtractionError):
    """Another worker owns this stream: it committed the batch that this worker was about to commit; `winner` is its
    attempt."""

    exit_code = 73

    def __init__(self, message: str, winner: str = ""):
        super().__init__(message)
        self.winner = winner


class TryAgain(ExtractionError):
    """Storage did not answer within the retry deadline, a disk is full, or the machine is being taken away."""

    exit_code = 75


class Stopped(TryAgain):
    """Told to stop, by a signal or because the machine is being taken away; what was under way is committed."""


class PermissionDenied(ExtractionError):
    """Storage refused for lack of a permission or of valid credentials."""

    exit_code = 77


class BucketDenied(PermissionDenied):
    """A bucket refused one of the permissions that a worker needs."""


class NoCredentials(PermissionDenied):
    """There are no credentials for a bucket, or they are no longer taken: it was not even asked."""


class ConfigurationMismatch(ExtractionError):
    """The configuration of this start is not the one that the run was made with."""

    exit_code = 78


class ObjectNotFound(ExtractionError):
    """No object of this name. Callers that know what its absence means turn it into one of the errors above."""

    exit_code = 65


class ObjectExists(ExtractionError):
    """A create-only write found another object of that name, with other bytes."""

    exit_code = 73
