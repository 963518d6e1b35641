"""Compiled steps that are kept, on this machine or in a bucket for all workers of one slice type.

In: the folder or gs:// prefix of `--compile-cache`, and the entries that `run.json` names. Out: a folder for jax, used
while the step is compiled, and the entries that were used, by name and digest. Entries hold native code, so

- the start that begins a run compiles its step, and `run.json` keeps the digest of each entry;
- an entry of a shared prefix is used only if `run.json` has its digest;
- an entry of a folder of this machine is used if it is whole: who may write there owns the machine's account.

Guarantee: an entry is stored whole, under a name that ends with its digest, and compared when it is read; one that is
damaged is left out and replaced. A cache that fails costs a compilation, never the run. Cost: one listing, and reading
the entries.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from ..core.errors import ExtractionError, ObjectExists
from ..core.logs import say
from ..format.digests import digest_of
from ..storage import Storage, open_storage

_ENTRY, _STEP = "-cache", "jit_step-"  # as jax ends and begins the names of entries, and of a step's


class CompileCache:
    """Use as a context manager around loading the model; an empty `location` keeps nothing.

    Args:
        location: of the cache.
        agreed: {entry: digest} of `run.json`; None for the start that begins a run.
    """

    def __init__(self, location: str, agreed: Mapping[str, str] | None):
        self._location, self._agreed = location, agreed
        self._is_shared = "://" in location
        self._there: set[str] = set()
        self.entries: dict[str, str] = {}
        self.folder: str | None = None
        self.held_step = False

    def __enter__(self) -> Self:
        if self._location:
            try:
                self.folder = tempfile.mkdtemp(prefix="xla-")
                for name, data in self._usable(open_storage(self._location)):
                    Path(self.folder, name).write_bytes(data)
                    self._there.add(name)
            except (ExtractionError, OSError) as error:
                say(f"compiled steps are not read from {self._location}: {error}", "WARNING")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self.folder is None:
            return
        try:
            found = {path.name: path.read_bytes() for path in Path(self.folder).glob(f"*{_ENTRY}")}
            self.entries = {name: digest_of(data) for name, data in found.items()}
            added = found.keys() - self._there
            self.held_step = any(name.startswith(_STEP) for name in self._there - added) and not any(
                name.startswith(_STEP) for name in added
            )
            if kind is None:
                storage = open_storage(self._location)
                for name in sorted(added):
                    _keep(storage, name, found[name])
        except (ExtractionError, OSError) as error:
            say(f"compiled steps are not kept in {self._location}: {error}", "WARNING")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _usable(self, storage: Storage) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the entries that this start may use."""
        if self._agreed is None:
            return
        for info in list(storage.list()):
            name, _, digest = info.name.rpartition(".")
            is_agreed = self._agreed.get(name) == f"sha256:{digest}"
            if not name.endswith(_ENTRY) or "/" in name or (self._is_shared and not is_agreed) or name in self._there:
                continue
            data = storage.read(info.name)
            if digest_of(data) == f"sha256:{digest}":
                yield name, data
            else:
                say(
                    f"{self._location}/{info.name} is damaged: it is not used, and replaced if it is made again",
                    "WARNING",
                )


def _keep(storage: Storage, name: str, data: bytes) -> None:
    """Store an entry, in the place of one whose content is not what its name says."""
    stored = f"{name}.{digest_of(data).removeprefix('sha256:')}"
    try:
        storage.create(stored, data)
    except ObjectExists:
        storage.replace(stored, data)
