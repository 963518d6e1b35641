"""What `run.json` says about every object of its run.

In: a checked `RunDescription`. Out: `AuditedRun`, with the token selection parsed. Cost: none to speak of.
"""

from dataclasses import dataclass

from ..batching.token_selection import Selection
from ..core.errors import DamagedData, InvalidRequest
from ..format.run_config import RunConfig, RunDescription


@dataclass(frozen=True)
class AuditedRun:
    """The run config, its fingerprint, which tokens are stored, and the ids of the special tokens.

    `digest` is that of the bytes of `run.json`.
    """

    config: RunConfig
    fingerprint: str
    selection: Selection
    special_ids: tuple[int, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, run: RunDescription, name: str) -> "AuditedRun":
        """Return the facts of the run description stored under `name`. Raises DamagedData."""
        try:
            selection = Selection.parse(run.config.positions, run.config.drop_special)
        except InvalidRequest as error:
            raise DamagedData(f"{name}: not a readable run description ({error})") from error
        return cls(run.config, run.fingerprint, selection, tuple(run.special_tokens.ids.values()), run.digest)
