"""The facts in `run.json` about every object of its run.

In: a checked `RunDescription`. Out: `AuditedRun`, with the token selection parsed. Cost: none to speak of.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..batching.token_selection import Selection
from ..core.errors import DamagedData, InvalidRequest
from ..format.run_config import RunConfig, RunDescription
from ..format.run_extension import RunExtension


@dataclass(frozen=True)
class AuditedRun:
    """The run config, its fingerprint, which tokens are stored, and the ids of the special tokens.

    `digest` is that of the bytes of `run.json`. `extensions` name further streams that the run took up. `root` gives
    the digest that the first commit of a stream names.
    """

    config: RunConfig
    fingerprint: str
    selection: Selection
    special_ids: tuple[int, ...] = ()
    digest: str = ""
    extensions: tuple[RunExtension, ...] = ()
    root: Callable[[int], str] = lambda stream: ""

    @classmethod
    def of(cls, run: RunDescription, name: str) -> "AuditedRun":
        """Return the facts of the run description stored under `name`. Raises DamagedData."""
        try:
            selection = Selection.parse(run.config.positions, run.config.drop_special)
        except InvalidRequest as error:
            raise DamagedData(f"{name}: not a readable run description ({error})") from error
        ids = tuple(run.special_tokens.ids.values())
        return cls(run.config, run.fingerprint, selection, ids, run.digest, run.extensions, run.root)
