"""Compiled steps that are kept, on this machine or through a bucket for all workers of one slice type.

In: the folder or gs:// prefix of `--compile-cache`. Out: a local folder for jax. For a prefix it is a folder of this
machine: what the bucket has is fetched before the step is compiled, what compiling added is stored afterwards.
Guarantee: jax names an entry by all that decides its content, and entries are create-only, so workers may share them;
a bucket that does not answer costs a compilation, never the run. Cost: one listing, and the entries not yet here.
"""

import hashlib
import os
from pathlib import Path
from typing import Self

from ..core.errors import ExtractionError
from ..core.logs import say
from ..storage import open_storage

_ENTRY, _STEP = "-cache", "jit_step-"  # as jax ends and begins the names of entries, and of a step's


class CompileCache:
    """Use as a context manager around loading the model; an empty `location` keeps nothing."""

    def __init__(self, location: str):
        self._location, self.folder = location, _local(location)
        self._there: set[str] = set()
        self._made_step = True

    def __enter__(self) -> Self:
        if self.folder and "://" in self._location:
            self._exchange(self._location, self.folder)
        self._there = self._entries()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        added = self._entries() - self._there
        self._made_step = self.folder is None or any(name.startswith(_STEP) for name in added)
        if kind is None and added and self.folder and "://" in self._location:
            self._exchange(self.folder, self._location)

    @property
    def held_step(self) -> bool:
        """Whether the step that was loaded meanwhile came from the cache: known afterwards."""
        return not self._made_step

    def _entries(self) -> set[str]:
        folder = Path(self.folder) if self.folder else None
        return {path.name for path in folder.glob(f"*{_ENTRY}")} if folder and folder.is_dir() else set()

    @staticmethod
    def _exchange(source: str, target: str) -> None:
        """Copy the entries that the target does not have."""
        try:
            here, there = open_storage(source), open_storage(target)
            known = {info.name for info in there.list()}
            for name in [info.name for info in here.list() if info.name.endswith(_ENTRY) and "/" not in info.name]:
                if name not in known:
                    there.create(name, here.read(name))
        except ExtractionError as error:
            say(f"compiled steps are not shared: {error}", "WARNING")


def _local(location: str) -> str | None:
    if "://" not in location:
        return os.path.expanduser(location) or None
    name = hashlib.sha256(location.rstrip("/").encode()).hexdigest()[:16]
    return os.path.expanduser(f"~/.cache/activation-extraction/xla-{name}")
