"""Where the files of a source are: a local folder, file or glob, or the same in any storage: a bucket, the hub.

In: `--source`, the kinds of files that a dataset reads, and a `Choice` of split and configuration. Out: a `Source` with
its files in the order of their names, the same however the source was spelled. On the hub the revision is pinned to a
commit.

Guarantee: exactly the files that were named. A path that exists is that file or folder, whatever characters it has;
`*`, `?`, `[` and `**` are wildcards where nothing has that literal name. A folder, also one that a glob names, is
searched with its subfolders, but not what is named .hidden or _hidden. Of what a folder or glob names, files that are
no data (see `file_kinds`) are left out and named; several splits, several configurations or files of several kinds are
refused until one is chosen. Cost: one listing, and a README.md in the folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import InvalidRequest
from ...core.logs import say
from ...storage import ObjectInfo, backend_of, open_storage
from .configurations import choose_configuration
from .file_kinds import COMPRESSED, KINDS, holds_data, kind_of
from .find_files import Place, local_place, remote_place
from .splits import choose_split, split_of

SHOWN = 5


@dataclass(frozen=True)
class SourceFile:
    """A file by the name that a manifest gives it; `info` is what a listing told of it, if it did."""

    name: str
    info: ObjectInfo | None = None
    kind: str = "Parquet"
    split: str | None = None
    size: int = 0


@dataclass(frozen=True)
class Choice:
    """Which data set of a source with several is read."""

    split: str | None = None
    config: str | None = None

    def to_json(self) -> dict[str, str]:
        """As it stands in the manifest: what was asked for."""
        asked = {"split": self.split, "config": self.config}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Source:
    """`place` is the source without its revision; `revision` the commit, or None where there are none.

    `left_out` names what is beside the files and was not taken.
    """

    place: str
    revision: str | None
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether the files are of several splits."""
        return len({file.split for file in self.files if file.split}) > 1

    def announced(self) -> "Source":
        """The source, after a line on stderr about its files and their size."""
        size = sum(file.size for file in self.files)
        say(f"reading {len(self.files)} files, {size:,} bytes: {_few([file.name for file in self.files])}")
        if self.left_out:
            say(f"not reading {len(self.left_out)} other files there: {_few(self.left_out)}")
        return self


def find_source(source: str, kinds: Sequence[str] = ("Parquet",), choice: Choice = Choice()) -> Source:
    """The files at `source` of one of the `kinds`.

    Raises InvalidRequest when there are none, or when they are of several kinds, splits or configurations of which none
    was chosen.
    """
    place = _remote(source) if "://" in source else local_place(Path(source).expanduser())
    if place.is_file:
        chosen = {name: None for name in place.names}
    else:
        chosen = choose_configuration(place, source, choice.config)
    data = {name: split for name, split in chosen.items() if _kind(place, name, kinds)}
    if not data:
        raise _nothing(source, place, kinds)
    splits = {name: split or split_of(name) for name, split in data.items()}
    splits = choose_split(splits, source, choice.split)
    files = tuple(_file(place, name, _kind(place, name, kinds), split) for name, split in splits.items())
    _check_kinds(source, files)
    return Source(place.name, place.revision, files, tuple(name for name in place.names if name not in splits))


def _remote(source: str) -> Place:
    root, path = backend_of(source).split(source)
    return remote_place(open_storage(root), path)


def _kind(place: Place, name: str, kinds: Sequence[str]) -> str | None:
    """The kind of a file if it is one of these; a single file that is named is what a dataset of one kind reads."""
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
        return InvalidRequest(f"{source}: a file is one of {read}{packed}")
    if not place.names:
        there = "no file in this folder" if place.is_folder else "no such file or folder"
        return InvalidRequest(f"{source}: {what} there: {there}")
    return InvalidRequest(f"{source}: {what} there ({read}{packed}); it has {_few(place.names)}")


def _check_kinds(source: str, files: Sequence[SourceFile]) -> None:
    """Raises InvalidRequest for files of several kinds: which of them are the data only the user knows."""
    first = {file.kind: file for file in reversed(files)}
    if len(first) > 1:
        found = " and ".join(f"{kind} files ({first[kind].name})" for kind in sorted(first))
        suffix = KINDS[files[0].kind][0]
        raise InvalidRequest(f"{source} has {found}: choose one kind with a glob, such as '{source}/**/*{suffix}*'")


def _few(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
