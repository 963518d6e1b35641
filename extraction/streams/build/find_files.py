"""The names of the files at a place: a path of this machine or in a storage, literal or with wildcards.

In: a path. Out: a `Place` with the names of its files, relative to it. Guarantee: that of `sources`; a link to a parent
folder is not followed. Cost: locally a listing of each folder that may contain such files; elsewhere one listing of the
names with the path's literal prefix.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ...core.errors import InvalidRequest, ObjectNotFound, PermissionDenied
from ...storage import ObjectInfo, Storage

SHOWN = 10
Children = Callable[[str], Sequence[str]]  # names in a folder ("" or ending with /); those of folders end with /


@dataclass(frozen=True)
class Place:
    """Files by their names under `base`. `name` is the place as a manifest names it, without its revision."""

    name: str
    base: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    facts: Callable[[str], tuple[ObjectInfo | None, int]]  # of a file: its listing entry, if any, and its size
    is_file: bool = False
    is_folder: bool = False
    revision: str | None = None

    def file_name(self, name: str) -> str:
        """Return a file's name as a manifest gives it."""
        return f"{self.base}{name}"

    def matching(self, pattern: str) -> Iterator[str]:
        """Yield the names that match a path or glob."""
        return _expand(_children_of(self.names), "", pattern.strip("/").split("/"))


def some_of(names: Sequence[str]) -> str:
    """Return the first names as text, and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# ---------------------------------------------------------------------------------------------- local


def local_place(path: Path) -> Place:
    """Return the files at a path of this machine."""
    parts = path.parts
    exists = os.path.lexists(path)
    fixed = len(parts) if exists else _first_wildcard(parts)
    start = Path(*parts[:fixed])
    # The folder is resolved but not the file: in a download cache files are links to names without order or suffix.
    is_file = exists and not path.is_dir()
    base = start.parent.resolve() if is_file else start.resolve()
    rest = [path.name] if is_file else list(parts[fixed:])
    names = [path.name] if is_file else sorted(set(_expand(lambda at: _scan(base, at), "", rest)))

    def facts(name: str) -> tuple[None, int]:
        file = base / name
        return None, file.stat().st_size if file.exists() else 0

    return Place(
        name=str(base.joinpath(*rest)), base=f"{base}/".replace("//", "/"), names=tuple(names), facts=facts,
        read=lambda name: (base / name).read_bytes(), is_file=is_file, is_folder=exists and not is_file,
    )  # fmt: skip


def _first_wildcard(parts: Sequence[str]) -> int:
    """Return how many parts of a path precede its first wildcard that is not the literal name of a file."""
    for number, part in enumerate(parts):
        if glob.has_magic(part) and not os.path.lexists(Path(*parts[: number + 1])):
            return number
    return len(parts)


def _scan(base: Path, at: str) -> list[str]:
    """Return the entries of a local folder, without links to a parent of themselves."""
    folder = base / at
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise PermissionDenied(f"{folder}: {error.strerror}") from error
    except OSError as error:
        raise InvalidRequest(f"{folder}: {error.strerror}") from error
    return [entry.name + "/" * entry.is_dir() for entry in entries if not _leads_back(entry)]


def _leads_back(entry: os.DirEntry[str]) -> bool:
    if not (entry.is_symlink() and entry.is_dir()):
        return False
    return f"{os.path.realpath(os.path.dirname(entry.path))}/".startswith(f"{os.path.realpath(entry.path)}/")


# ---------------------------------------------------------------------------------------------- remote


def remote_place(storage: Storage, path: str) -> Place:
    """Return the files at a path in a storage. Raises the storage's errors when it cannot be listed."""
    single = _stat(storage, path) if path else None
    wildcard = None if single else next((i for i, character in enumerate(path) if character in "*?["), None)
    if single or wildcard is not None:
        base, rest = _folder_of(path[:wildcard]), path[len(_folder_of(path[:wildcard])) :].split("/")
    else:
        base, rest = f"{path}/" if path else "", []
    infos = [single] if single else _listed(storage, base if wildcard is None else path[:wildcard])
    known = {info.name: info for info in infos if not info.name.endswith("/")}
    names = sorted({name.removeprefix(base) for name in _expand(_children_of(known), base, rest)})
    unpinned = storage.unpinned_location
    return Place(
        name=f"{unpinned}/{path}" if path else unpinned, base=f"{storage}/{base}", names=tuple(names),
        read=lambda name: storage.read(base + name), revision=storage.revision,
        facts=lambda name: (known[base + name], known[base + name].size),
        is_file=single is not None, is_folder=bool(names) and not single and wildcard is None,
    )  # fmt: skip


def _folder_of(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _stat(storage: Storage, path: str) -> ObjectInfo | None:
    try:
        return storage.stat(path)
    except ObjectNotFound:  # a folder, a glob, or nothing
        return None


def _listed(storage: Storage, prefix: str) -> list[ObjectInfo]:
    try:
        return list(storage.list(prefix))
    except ObjectNotFound:  # the hub has no such folder
        return []


def _children_of(names: Iterable[str]) -> Children:
    """Return a function that lists the entries of a folder among these names."""
    folders: dict[str, set[str]] = {}
    for name in names:
        at, parts = "", name.split("/")
        for part in parts[:-1]:
            folders.setdefault(at, set()).add(f"{part}/")
            at += f"{part}/"
        folders.setdefault(at, set()).add(parts[-1])
    return lambda at: sorted(folders.get(at, ()))


# ---------------------------------------------------------------------------------------------- wildcards


def _expand(children: Children, at: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the files that match a path below the folder `at`; for a folder, the files in it."""
    if not parts:
        yield from _walk(children, at)
        return
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _expand(children, at, rest)
        for name in children(at):
            if name.endswith("/") and not _hidden(name):
                yield from _expand(children, at + name, parts)
        return
    for name in _matching(children(at), head):
        if name.endswith("/"):
            yield from _expand(children, at + name, rest)
        elif not rest:
            yield at + name


def _walk(children: Children, at: str) -> Iterator[str]:
    for name in children(at):
        if not _hidden(name):
            yield from _walk(children, at + name) if name.endswith("/") else [at + name]


def _matching(names: Sequence[str], pattern: str) -> Sequence[str]:
    """Return the literal match, or else all that the wildcards match; hidden names only for a hidden pattern."""
    exact = [name for name in names if name.rstrip("/") == pattern]
    return exact or [
        name for name in names if fnmatchcase(name.rstrip("/"), pattern) and (not _hidden(name) or _hidden(pattern))
    ]


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))
