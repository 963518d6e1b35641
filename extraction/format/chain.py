"""The commits of a stream: listed, read ahead and checked, in order.

In: a storage, streams, and their run. Out: commits, each with the object that holds it. Guarantee: a chain with a gap,
a commit of another stream, batch or run, one that does not follow the object before it (the first `run.json` or the
extension of its stream), and one that does not begin where the batch before ended raise DamagedData that names the
object. Cost: a listing for each stream, a request for each commit, `AHEAD` at a time.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..core.errors import DamagedData, ObjectNotFound
from ..core.threads import prefetch
from ..storage import ObjectInfo, Storage
from .commit import Commit, batch_of, commit_name, data_name, read_commit, worker_folder
from .records import Cursor
from .run_config import RUN, RunDescription

AHEAD = 16


class StoredCommit(NamedTuple):
    """A commit, the object that holds it, and the digest of its bytes."""

    info: ObjectInfo
    commit: Commit
    digest: str


class Listing(NamedTuple):
    """The objects of a stream's commits folder: {batch: object}, and the names that no commit has."""

    commits: dict[int, ObjectInfo]
    strays: list[str]


def list_folder(storage: Storage, stream: int) -> Listing:
    """Return the commits folder of a stream as it is listed, with gaps and strays."""
    found = Listing({}, [])
    for info in storage.list(f"{worker_folder(stream)}/commits/"):
        batch = batch_of(info.name)
        if batch is None or info.name != commit_name(stream, batch):
            found.strays.append(info.name)
        else:
            found.commits[batch] = info
    return found


def commit_objects(storage: Storage, stream: int) -> list[ObjectInfo]:
    """Return the objects of a stream's commits in order. Raises DamagedData for a gap or a name that no commit has."""
    found, strays = list_folder(storage, stream)
    if strays:
        raise DamagedData(f"{strays[0]}: no commit has such a name; move it out of the folder")
    last = max(found, default=-1)
    return [found[batch] if batch in found else _find(storage, stream, batch, last) for batch in range(last + 1)]


def list_commits(storage: Storage, stream: int) -> list[str]:
    """Return the names of a stream's commits in order. Raises DamagedData as `commit_objects`."""
    return [info.name for info in commit_objects(storage, stream)]


def _find(storage: Storage, stream: int, batch: int, later: int) -> ObjectInfo:
    """Look up a commit that a listing lacks: one that is made while a worker commits may miss one before the last."""
    name = commit_name(stream, batch)
    try:
        return storage.stat(name)
    except ObjectNotFound:
        raise DamagedData(f"{name} is missing, but {commit_name(stream, later)} is there: restore it") from None


def walk(
    storage: Storage, streams: Iterable[int], run: RunDescription, pool: ThreadPoolExecutor
) -> Iterator[StoredCommit | None]:
    """Yield the commits of each stream in order, and None at the end of each. Raises DamagedData."""
    streams = tuple(streams)

    def items() -> Iterator[tuple[int, ObjectInfo | None]]:
        listed = prefetch(streams, lambda stream: commit_objects(storage, stream), AHEAD, pool)
        for stream, infos in zip(streams, listed, strict=True):
            yield from ((stream, info) for info in infos)
            yield stream, None

    def read(item: tuple[int, ObjectInfo | None]) -> tuple[int, StoredCommit | None]:
        stream, info = item
        return stream, info and StoredCommit(info, *read_commit(storage, info.name))

    last: StoredCommit | None = None
    for stream, stored in prefetch(items(), read, AHEAD, pool):
        if stored is not None:
            _check_follows(stored, stream, last, run)
        last = stored
        yield stored


def _check_follows(stored: StoredCommit, stream: int, last: StoredCommit | None, run: RunDescription) -> None:
    name, commit = stored.info.name, stored.commit
    check_place(commit, name, stream, last.commit.batch + 1 if last else 0)
    if commit.fingerprint != run.fingerprint:
        raise DamagedData(f"{name}: is of another run, fingerprint {commit.fingerprint}")
    if last and commit.previous != last.digest:
        raise DamagedData(f"{name}: follows another commit than {last.info.name}: one of them was rewritten")
    if not last and commit.previous != (root := run.root(stream)):
        first = RUN if root == run.digest else "extension of the run"
        raise DamagedData(f"{name}: follows another {first} than the one that is there, which was replaced: restore it")
    cursor = last.commit.cursor_after if last else Cursor(0, 0)
    if commit.cursor_before != cursor:
        raise DamagedData(f"{name}: begins at {commit.cursor_before}, the batch before it ended at {cursor}")


def check_place(commit: Commit, name: str, stream: int, batch: int) -> None:
    """Raise DamagedData for a commit of another stream or batch than its name says."""
    if (commit.stream, commit.batch) != (stream, batch):
        raise DamagedData(f"{name}: it says stream {commit.stream}, batch {commit.batch}")


def check_data(storage: Storage, commit: Commit) -> ObjectInfo:
    """Return the batch file of a commit. Raises DamagedData if it is missing or other bytes were committed."""
    try:
        info = storage.stat_with_crc32c(data_name(commit))
    except ObjectNotFound:
        info = None
    return compare_data(commit, info)


def compare_data(commit: Commit, info: ObjectInfo | None) -> ObjectInfo:
    """Return `info`, the batch file of a commit, None if it is missing. Raises DamagedData as `check_data`."""
    name = data_name(commit)
    if info is None:
        raise DamagedData(f"{name}: committed by batch {commit.batch}, but it is not there; restore it")
    if commit.data is not None and not info.holds(commit.data.size, commit.data.crc32c):
        raise DamagedData(
            f"{name}: {info.size} bytes with crc32c {info.crc32c}, but {commit.data.size} bytes with "
            f"{commit.data.crc32c} were committed; restore it"
        )
    return info
