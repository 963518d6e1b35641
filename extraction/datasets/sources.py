"""Where the files of a source are: a local folder, file or glob, or the same in any storage: a bucket, the hub.

In: `--source`. Out: a `Source` with its files in the order of their names, the same however the source was spelled; a
folder is searched with its subfolders, but not what is named .hidden or _hidden. On the hub the revision is pinned to a
commit. Cost: one listing.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InvalidRequest, ObjectNotFound
from ..storage import ObjectInfo, Storage, backend_of, open_storage


@dataclass(frozen=True)
class SourceFile:
    """A file by the name that a manifest gives it; `info` is what a listing told of it, if it did."""

    name: str
    info: ObjectInfo | None = None


@dataclass(frozen=True)
class Source:
    """`place` is the source without its revision; `revision` the commit, or None where there are none."""

    place: str
    revision: str | None
    files: tuple[SourceFile, ...]


def find_source(source: str, suffixes: Sequence[str] = (".parquet",)) -> Source:
    """The files at `source`; in a folder those whose names end in one of `suffixes`. Raises InvalidRequest for none."""
    found = _remote(source, suffixes) if "://" in source else _local(source, suffixes)
    if not found.files:
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise InvalidRequest(f"{source}: no {_kind(suffixes)} file there (a folder is searched for {wanted})")
    return found


def _kind(suffixes: Sequence[str]) -> str:
    return " or ".join({".parquet": "Parquet", ".jsonl": "JSONL"}.get(suffix, suffix) for suffix in suffixes)


# ---------------------------------------------------------------------------------------------- local


def _local(source: str, suffixes: Sequence[str]) -> Source:
    path = Path(source).expanduser()
    if path.is_dir():
        place = path.resolve()
        inside = (file for suffix in suffixes for file in place.rglob(f"*{suffix}"))
        found = [file for file in inside if not _hidden(file.relative_to(place).parts)]
    else:
        place = _resolved(path)
        found = [path] if path.exists() else [Path(name) for name in glob.glob(str(path), recursive=True)]
    # The folder is resolved but not the file: in a download cache files are links to names without order or suffix.
    names = sorted({str(file.parent.resolve() / file.name) for file in found if not file.is_dir()})
    return Source(str(place), None, tuple(map(SourceFile, names)))


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)


def _resolved(pattern: Path) -> Path:
    """A file name or glob with the folder before its first wildcard resolved."""
    fixed = _fixed(pattern.parts)
    return Path(*pattern.parts[:fixed]).resolve().joinpath(*pattern.parts[fixed:])


def _fixed(parts: Sequence[str]) -> int:
    """How many parts of a glob name a folder: all before the first wildcard, but not the last part."""
    return next((number for number, part in enumerate(parts) if glob.has_magic(part)), max(len(parts) - 1, 0))


# ---------------------------------------------------------------------------------------------- remote


def _remote(source: str, suffixes: Sequence[str]) -> Source:
    root, path = backend_of(source).split(source)
    storage = open_storage(root)
    place = f"{storage.place}/{path}" if path else storage.place
    return Source(place, storage.revision, _listed(storage, path, suffixes))


def _listed(storage: Storage, path: str, suffixes: Sequence[str]) -> tuple[SourceFile, ...]:
    """The files of a storage that a path names: itself a file, a folder, or a glob."""
    pattern = path.split("/") if path else []
    if path.endswith(tuple(suffixes)) or glob.has_magic(path):
        folder, wanted = pattern[: _fixed(pattern)], [pattern]
    else:
        folder, wanted = pattern, [[*pattern, "**", f"*{suffix}"] for suffix in suffixes]
    try:
        infos = list(storage.list("".join(f"{part}/" for part in folder)))
    except ObjectNotFound:  # the hub has no such folder
        return ()
    found = []
    for info in infos:
        parts = info.name.split("/")
        named = [*pattern] == parts
        if named or (any(_matches(parts, one) for one in wanted) and not _hidden(parts[len(folder) :])):
            found.append(SourceFile(f"{storage}/{info.name}", info))
    return tuple(found)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is one that a glob means; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
