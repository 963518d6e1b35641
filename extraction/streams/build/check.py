"""The proof that streams are disjoint, complete and unchanged.

In: a streams folder. Out: a sentence for each problem. Checked: each file of the manifest exists with the pinned size,
footer and etag; materialised files match their stream's digest; with content, the pinned columns match their crc32c; no
row is in two streams and, unless a part of the source was requested, every row is in one; the source has no further
files; as many rows pass the filter as the manifest says; every record has an id, unique over all streams.

Cost: a footer for each file; with content, the pinned columns of files without an etag; with ids, the id column (and
those of the filter) of everything, and a temporary database of the ids on disk. Materialised files are read whole.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from ...core.count_of import count_of
from ...core.errors import DamagedData, InvalidRequest, ObjectNotFound
from ...core.progress_bar import track
from ...storage import Storage, open_storage
from ..column_chunks import ColumnChunks
from ..extensions import home_of, load_manifest, parts_of
from ..manifest import Manifest, ParquetFacts, Piece, is_outside
from ..parquet import Files, check_pinned, read_footer, row_group_sizes
from ..stream import Stream, open_stream
from .content_digests import each_row_group
from .footers import THREADS
from .materialize import PREFIX, UniqueIds
from .sources import Choice, find_source, without_revision

BLOCK = 1 << 22
IDS_AT_A_TIME = 10_000
Facts = list[int] | DamagedData


class Checked(NamedTuple):
    """The manifest, the problems of its streams, and a list of the checks, as `disjoint, complete, ...`."""

    manifest: Manifest
    problems: list[str]
    proven: str


def check_streams(location: str, ids: bool = True, content: bool = True) -> Checked:
    """Return the problems of the streams of a folder; `ids` and `content` say whether those are read.

    Raises InvalidRequest when there is no manifest, DamagedData when it is not one, TryAgain when something cannot be
    read at this time.
    """
    home = open_storage(location)
    manifest = load_manifest(location)
    known = [without_revision(file.name) for file in manifest.files if is_outside(file.name)]
    twice = sorted(name for name, number in Counter(known).items() if number > 1)
    problems = [f"{name}: its rows are in streams of two extensions" for name in twice]
    for part in parts_of(manifest):
        problems += _check_part(part.manifest, home_of(home, part), content)
        problems += _check_source(part.manifest, set(known))
    if ids and not problems:
        problems += id_problems(open_stream(manifest, home, index) for index in range(manifest.num_streams))
    return Checked(manifest, problems, ", ".join(["disjoint", "complete", *_unchanged(manifest, content, ids)]))


def _check_part(manifest: Manifest, home: Storage, content: bool) -> list[str]:
    """Return the problems of the files of streams that were added in one step."""
    sizes = _row_groups(manifest, home)
    problems = [str(found) for found in sizes if isinstance(found, DamagedData)]
    problems += _check_cover(manifest, sizes)
    problems += _check_own_files(manifest, home, problems)
    return problems + (list(_check_content(manifest, home, sizes)) if content else [])


def _unchanged(manifest: Manifest, content: bool, ids: bool) -> Iterator[str]:
    """Yield phrases that say how the files were compared, and whether ids were."""
    by_store = sum(file.etag is not None for file in manifest.files)
    by_content = len(manifest.files) - by_store
    if by_store:
        yield f"unchanged by the store's checksums ({count_of(by_store, 'file')})"
    if by_content or not by_store:
        yield f"unchanged by {'content' if content else 'size and footer'} ({count_of(by_content, 'file')})"
    if ids:
        yield "every id once"


def _row_groups(manifest: Manifest, home: Storage) -> list[Facts]:
    """Return the rows of the row groups of each file, or the problem of the file."""
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
    """Yield a problem for rows in two streams, and for rows in none unless a part of the source was requested."""
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
    """Yield a problem for each materialised file that is unknown to the manifest or differs from its digest."""
    own = {file.name for file in manifest.files if not is_outside(file.name)}
    for info in home.list(PREFIX):
        if info.name not in own:
            yield f"{info.name} exists, but is not in this manifest"
    if problems:
        return
    streams = track(manifest.streams, "stream files", manifest.num_streams) if own else ()
    for number, stream in enumerate(streams):
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


def _check_content(manifest: Manifest, home: Storage, sizes: Sequence[Facts]) -> Iterator[str]:
    """Return a problem for each row group of the source's files whose bytes differ from the pins."""
    files = manifest.files
    groups = [
        _pinned_groups(file) if is_outside(file.name) and not isinstance(found, DamagedData) else ()
        for file, found in zip(files, sizes, strict=True)
    ]

    def changed(chunks: ColumnChunks, number: int, group: int) -> str | None:
        try:
            chunks.hold(group, tuple(files[number].content or ()))
            chunks.check(files[number])
        except DamagedData as error:
            return str(error)
        return None

    return filter(None, each_row_group(Files(home), files, groups, changed))


def _pinned_groups(file: ParquetFacts) -> list[int]:
    """Return the row groups of a file that the manifest pins."""
    columns = (file.content or {}).values()
    return [group for group, values in enumerate(zip(*columns, strict=True)) if None not in values]


def _check_source(manifest: Manifest, known: Collection[str]) -> Iterator[str]:
    """Yield a problem for each file that the source has and that is not `known`."""
    is_cut = "max_records" in manifest.options or "max_tokens" in manifest.options
    if is_cut or not any(is_outside(file.name) for file in manifest.files):
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
        if without_revision(file.name) not in known:
            yield f"{file.name} is in the source, but in no stream"


def id_problems(streams: Iterable[Stream]) -> Iterator[str]:
    """Yield a problem for each duplicate id, unreadable row, and count of rows that differs from the manifest."""
    with UniqueIds() as seen:
        for stream in streams:
            ids, done = track(stream.read_ids(), f"ids of stream {stream.index}", stream.num_records), 0
            try:
                while group := list(islice(ids, IDS_AT_A_TIME)):
                    yield from seen.add(group, _placed(stream.index, done))
                    done += len(group)
            except DamagedData as error:
                yield str(error)


def _placed(stream: int, first: int) -> Callable[[int], str]:
    return lambda number: f"record {first + number} of stream {stream}"
