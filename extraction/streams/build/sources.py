"""The files of a source: a local folder, file or glob, or the same in any storage.

In: `--source`, the kinds of files that a dataset reads, and a `Choice` of split and configuration. Out: a `Source` with
its files in the order of their names, the same for each spelling of the source. On the hub the revision is pinned to a
commit.

Guarantee: exactly the named files. An existing path is that file or folder, whatever characters it has; `*`, `?`, `[`
and `**` are wildcards unless a file has that literal name. A folder, also one that a glob names, is searched with its
subfolders, without .hidden and _hidden names. In a folder or glob, files that are not data (see `file_kinds`) are left
out and reported; several splits, configurations or kinds of files are refused until one is chosen. Cost: one listing,
and a README.md in the folder.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.count_of import count_of
from ...core.errors import InvalidRequest
from ...core.logs import say
from ...storage import ObjectInfo, backend_of, open_storage
from .configurations import choose_configuration
from .file_kinds import COMPRESSED, KINDS, holds_data, kind_of
from .find_files import Place, local_place, remote_place, some_of
from .splits import choose_split, split_of


@dataclass(frozen=True)
class SourceFile:
    """A file by its name in a manifest; `info` is its entry in a listing, if there was one."""

    name: str
    info: ObjectInfo | None = None
    kind: str = "Parquet"
    split: str | None = None
    size: int = 0


class NothingNew(InvalidRequest):
    """The streams that are extended have all files of the source."""


@dataclass(frozen=True)
class Known:
    """The content of streams that are extended: the sizes of their source files by name, without a revision.

    Of the files in `cut` they have the first records only. Ids that are made of row numbers begin with `prefix`, those
    that are made of file names leave out the folder `ids_under`.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()
    prefix: str = ""
    ids_under: str | None = None

    def has(self, file: SourceFile) -> bool:
        """Return whether the streams have a file. Raises InvalidRequest if it changed, or they have only some of it."""
        name = without_revision(file.name)
        if name not in self.sizes:
            return False
        if file.size != self.sizes[name]:
            had = f"it had {self.sizes[name]:,} bytes when the streams were made, now {file.size:,}"
            raise InvalidRequest(f"{name}: {had}; put new documents into files of their own")
        if name in self.cut:
            why = "only the first records, by --max-records or --max-tokens, and an extension takes whole files"
            raise InvalidRequest(f"{name}: the streams have {why}; name other files with --source")
        return True


@dataclass(frozen=True)
class Choice:
    """The data set to read of a source with several, without the files that are known."""

    split: str | None = None
    config: str | None = None
    known: Known = Known()

    def to_json(self) -> dict[str, str]:
        """Return the options of a manifest: the requested split and configuration."""
        asked = {"split": self.split, "config": self.config}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Source:
    """`place` is the source without its revision; `revision` the commit, or None where there are none.

    `left_out` names the files of the place that are not read, `known` those of them that the extended streams have.
    """

    place: str
    revision: str | None
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether the files are of several splits."""
        return len({file.split for file in self.files if file.split}) > 1

    def announced(self) -> "Source":
        """Return the source, after a line on stderr about its files."""
        size = sum(file.size for file in self.files)
        names = some_of([file.name for file in self.files])
        say(f"reading {count_of(len(self.files), 'file')}, {size:,} bytes: {names}")
        if self.left_out:
            say(f"not reading {count_of(len(self.left_out), 'other file')} there: {some_of(self.left_out)}")
        if self.known:
            say(f"not reading {count_of(len(self.known), 'file')} that the streams have: {some_of(self.known)}")
        return self


def find_source(source: str, kinds: Sequence[str] = ("Parquet",), choice: Choice = Choice()) -> Source:
    """Return the files at `source` of one of the `kinds`.

    Raises InvalidRequest when there are none, or several kinds, splits or configurations without a choice.
    """
    place = _remote(source) if "://" in source else local_place(Path(os.path.expanduser(source)))
    if place.is_file:
        chosen: Mapping[str, str | None] = dict.fromkeys(place.names)
    else:
        chosen = choose_configuration(place, source, choice.config)
    kind_by_name = {name: kind for name in chosen if (kind := _kind(place, name, kinds))}
    if not kind_by_name:
        raise _nothing(source, place, kinds)
    splits = choose_split({name: chosen[name] or split_of(name) for name in kind_by_name}, source, choice.split)
    files = tuple(_file(place, name, kind_by_name[name], split) for name, split in splits.items())
    _check_kinds(source, files)
    new = tuple(file for file in files if not choice.known.has(file))
    if not new:
        raise NothingNew(f"the streams have every file of {source} ({count_of(len(files), 'file')})")
    left_out = tuple(name for name in place.names if name not in splits)
    return Source(place.name, place.revision, new, left_out, tuple(file.name for file in files if file not in new))


def without_revision(name: str) -> str:
    """Return a file's name without the commit of the hub."""
    return re.sub(r"^(hf://(?:[^/@]+/)+[^/@]+)@[^/]+/", r"\1/", name)


def _remote(source: str) -> Place:
    root, path = backend_of(source).split(source)
    return remote_place(open_storage(root), path)


def _kind(place: Place, name: str, kinds: Sequence[str]) -> str | None:
    """Return the kind of a file if it is one of these; a single named file has the only kind of a dataset."""
    kind = kind_of(name) if place.is_file or holds_data(name) else None
    if place.is_file and kind is None and len(kinds) == 1:
        return kinds[0]
    return kind if kind in kinds else None


def _file(place: Place, name: str, kind: str, split: str | None) -> SourceFile:
    info, size = place.facts(name)
    return SourceFile(place.file_name(name), info, kind, split, size)


def _nothing(source: str, place: Place, kinds: Sequence[str]) -> InvalidRequest:
    suffixes = [suffix for kind in kinds for suffix in KINDS[kind]]
    read = ", ".join(f"*{suffix}" for suffix in suffixes)
    packed = f", also packed ({', '.join(COMPRESSED)})" if set(kinds) - {"Parquet"} else ""
    what = f"no {kinds[0]} file" if len(kinds) == 1 else "no data"
    if place.is_file:
        return InvalidRequest(f"{source}: this kind of file is not read; read are {read}{packed}")
    if not place.names:
        there = "no file in this folder" if place.is_folder else "no such file or folder"
        return InvalidRequest(f"{source}: {what} there: {there}")
    return InvalidRequest(f"{source}: {what} ({read}{packed}); it has {some_of(place.names)}")


def _check_kinds(source: str, files: Sequence[SourceFile]) -> None:
    """Raise InvalidRequest for files of several kinds: only the user knows which of them are the data."""
    first = {file.kind: file for file in reversed(files)}
    if len(first) > 1:
        found = " and ".join(f"{kind} files ({first[kind].name})" for kind in sorted(first))
        suffix = KINDS[files[0].kind][0]
        raise InvalidRequest(f"{source} has {found}: choose one kind with a glob, such as '{source}/**/*{suffix}*'")
