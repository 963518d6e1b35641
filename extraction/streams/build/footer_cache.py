"""A cache of the footers of remote files, in a folder of this machine.

In: the requested columns and limits, and `FileGroups`. Out: the same, for the same version of a file. Guarantee: a
missing or cut line only causes the footer to be read again; the key contains the file's etag. Local files are not
cached: they are read as fast. Cost: a line of JSON for each file.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..manifest import ParquetFacts
from ..parquet import etag_of
from .assign_row_groups import FileGroups
from .sources import SourceFile

SCHEMA = 2
ARRAYS = {"rows": np.int64, "records": np.int64, "unclear": np.bool_, "tokens": np.int64}


class FooterCache:
    """One file of lines for each `question`; without a folder nothing is kept. Use as a context manager."""

    def __init__(self, folder: Path | None, question: object):
        digest = hashlib.sha256(json.dumps([SCHEMA, question], sort_keys=True).encode()).hexdigest()
        self._path = folder and folder / f"{digest[:32]}.jsonl"
        self._known: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._file: Any = None

    def __enter__(self) -> "FooterCache":
        if self._path and self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["facts"]["name"], entry["facts"]["etag"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # cut by an interruption
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def get(self, file: SourceFile) -> FileGroups | None:
        """Return the cached groups of this version of a remote file."""
        entry = self._known.get((file.name, etag_of(file.info))) if file.info else None
        if entry is None:
            return None
        arrays = {key: np.array(entry[key], kind) for key, kind in ARRAYS.items() if entry[key] is not None}
        return FileGroups(ParquetFacts(**entry["facts"]), **arrays)

    def keep(self, file: SourceFile, groups: FileGroups) -> None:
        """Store the groups of a remote file, unless they are from the cache."""
        if self._path is None or file.info is None or groups.facts.etag is None:
            return
        if (groups.facts.name, groups.facts.etag) in self._known:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            self._file.write(b"\n" if os.fstat(self._file.fileno()).st_size else b"")  # ends a line that was cut
        arrays = {key: getattr(groups, key) for key in ARRAYS}
        entry = {key: None if array is None else array.tolist() for key, array in arrays.items()}
        self._file.write(json.dumps({"facts": groups.facts.to_json()} | entry).encode() + b"\n")
        self._file.flush()
