"""What proves that streams are disjoint, complete and unchanged.

In: a streams folder. Out: a sentence for each thing that is wrong. Checked: each file of the manifest is there, of the
pinned size, footer and etag, and files of our own are the bytes of their stream's digest; no row is in two streams and,
unless a part of the source was asked for, every row is in one; the source has no further files; as many rows pass the
filter as the manifest says; every id is there, and none twice over all streams.

Cost: a footer for each file; with ids, the id column (and those of the filter) of everything, and a temporary database
of the ids on disk. Files of our own are read as a whole.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ..errors import DamagedData, InvalidRequest, ObjectNotFound
from ..manifest import Manifest, Piece, is_outside, load_manifest
from ..parquet import Files, check_pinned, read_footer, row_group_sizes
from ..storage import Storage, open_storage
from ..streams import Stream, open_stream
from .footers import THREADS
from .rows import PREFIX, UniqueIds
from .sources import Choice, find_source
from .tracking import track

BLOCK = 1 << 22
IDS_AT_A_TIME = 10_000
Facts = list[int] | DamagedData


def check_streams(location: str, ids: bool = True) -> tuple[Manifest, list[str]]:
    """The manifest of a streams folder, and what is wrong with its streams.

    Raises InvalidRequest when there is no manifest, DamagedData when it is not one, TryAgain when something cannot be
    read at this time.
    """
    home = open_storage(location)
    manifest = load_manifest(location)
    sizes = _row_groups(manifest, home)
    problems = [str(found) for found in sizes if isinstance(found, DamagedData)]
    problems += _check_cover(manifest, sizes)
    problems += _check_own_files(manifest, home, problems)
    problems += _check_source(manifest)
    if ids and not problems:
        problems += _check_ids([open_stream(manifest, home, index) for index in range(manifest.num_streams)])
    return manifest, problems


def _row_groups(manifest: Manifest, home: Storage) -> list[Facts]:
    """The rows of the row groups of each file, or what is wrong with it."""
    files = Files(home)

    def sizes_of(number: int) -> Facts:
        pinned = manifest.files[number]
        try:
            file = files.open(pinned.name)
            with file.handle:
                facts, metadata = read_footer(file)
            check_pinned(facts, pinned)
            return row_group_sizes(metadata)
        except DamagedData as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        numbers = range(len(manifest.files))
        return list(track(pool.map(sizes_of, numbers), "files", len(numbers)))


def _check_cover(manifest: Manifest, sizes: Sequence[Facts]) -> Iterator[str]:
    """Rows that are in two streams, or in none though the whole source was asked for."""
    spans: dict[int, list[tuple[int, int, Piece]]] = {}
    for stream in manifest.streams:
        for piece in stream.pieces:
            groups = sizes[piece.file]
            if isinstance(groups, DamagedData):
                continue
            begin = sum(groups[: piece.row_group]) + piece.first_row
            end = begin + piece.rows
            if piece.row_group >= len(groups) or end > sum(groups):
                yield f"{manifest.files[piece.file].name}: {piece.to_json()} asks for rows that are not there"
                continue
            spans.setdefault(piece.file, []).append((begin, end, piece))
    for number, groups in enumerate(sizes):
        if not isinstance(groups, DamagedData):
            yield from _check_rows(
                manifest.files[number].name, sorted(spans.get(number, [])), sum(groups), manifest.is_part
            )


def _check_rows(name: str, spans: Sequence[tuple[int, int, Piece]], num_rows: int, is_part: bool) -> Iterator[str]:
    at = 0
    for begin, end, piece in spans:
        if begin < at:
            yield f"{name}: row {begin} is in two streams ({piece.to_json()})"
        elif begin > at and not is_part:
            yield f"{name}: rows {at} to {begin - 1} are in no stream"
        at = max(at, end)
    if at < num_rows and not is_part:
        yield f"{name}: rows {at} to {num_rows - 1} are in no stream"


def _check_own_files(manifest: Manifest, home: Storage, problems: Sequence[str]) -> Iterator[str]:
    """Files beside the manifest: all bytes, and none that are not of it."""
    own = {file.name for file in manifest.files if not is_outside(file.name)}
    for info in home.list(PREFIX):
        if info.name not in own:
            yield f"{info.name} is there, but not of this manifest"
    if problems:
        return
    for number, stream in enumerate(manifest.streams):
        names = [manifest.files[file].name for file in dict.fromkeys(piece.file for piece in stream.pieces)]
        if names and not is_outside(names[0]) and _digest(home, names) != stream.digest:
            yield f"{', '.join(names)}: not the bytes of stream {number}"


def _digest(home: Storage, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        with home.open(name) as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _check_source(manifest: Manifest) -> Iterator[str]:
    """Files that the source has, and the manifest does not."""
    known = {file.name for file in manifest.files}
    if not any(map(is_outside, known)) or "max_records" in manifest.options or "max_tokens" in manifest.options:
        return
    source = manifest.source
    if manifest.revision is not None:
        parts = source.split("/")
        source = "/".join([*parts[:4], f"{parts[4]}@{manifest.revision}", *parts[5:]])
    try:
        choice = Choice(manifest.options.get("split"), manifest.options.get("config"))
        found = find_source(source, choice=choice).files
    except (InvalidRequest, ObjectNotFound) as error:
        yield str(error)
        return
    for file in found:
        if file.name not in known:
            yield f"{file.name} is in the source, but in no stream"


def _check_ids(streams: Sequence[Stream]) -> Iterator[str]:
    """Ids that are there twice, and rows that the manifest counts otherwise or that cannot be read."""
    with UniqueIds() as seen:
        for stream in streams:
            ids, done = stream.read_ids(), 0
            try:
                while group := list(islice(ids, IDS_AT_A_TIME)):
                    yield from seen.add(group, _placed(stream.index, done))
                    done += len(group)
            except DamagedData as error:
                yield str(error)


def _placed(stream: int, first: int) -> Callable[[int], str]:
    return lambda number: f"record {first + number} of stream {stream}"
