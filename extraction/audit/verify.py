"""The proof of exactly once: commits, batch files and the manifest in, what is wrong out.

In: where a run and its streams lie. Out: a `RunAudit`, with a `StreamAudit` for each stream (`findings`).

What is proven without `deep`, from metadata and the id column of the streams (`chain`): each chain has no gap; each
cursor begins where the one before ended, from (0, 0) on; each batch file is there with the committed size and crc32c;
the ids of the records of each commit are those of the stream; counts and sums agree with each other, with the
configuration and with the manifest; no folder belongs to a stream that there is not. If every chain reaches the end of
its stream, every token of every record was committed exactly once. With `deep` every batch file is read and held
against its commit as well (`contents`).

A run may be audited while it is made: what is there so far is proven, and the verdict is "in progress". Batch files
that no commit names are listed and are no damage. A generation is not compared: an object that was restored, or a run
that was copied, has the same bytes under others. Symbolic links in a local folder are followed, since who can place
one can replace every object anyway; no name that is read from an object leads out of its worker's folder.

Cost: as in `chain`, `WORKERS_AT_ONCE` workers and `THREADS` reads at a time.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..core.errors import ConfigurationMismatch, DamagedData, ObjectNotFound
from ..format.commit import worker_folder
from ..format.run_config import RUN, RunDescription, no_run, read_run
from ..storage import Storage, open_storage
from ..streams.stream import load_manifest, open_stream
from .chain import Expected, Reading, audit_stream
from .facts import AuditedRun
from .findings import RunAudit, StreamAudit
from .progress import Meter

__all__ = ["RunAudit", "StreamAudit", "audit_run"]

WORKERS_AT_ONCE = 4
THREADS = 32
DEEP_THREADS = min(8, os.cpu_count() or 1)
_WORKER_FOLDER = re.compile(r"worker-[0-9]{5,}")


def audit_run(
    output: str, streams: str | None = None, deep: bool = False, visible: bool = False, expected: str | None = None
) -> RunAudit:
    """Check a run against its streams, those that `run.json` names unless given.

    `expected` is a digest, of the run or of a stream, that a person kept; `visible` shows a bar on stderr.

    Raises InvalidRequest if there is no run at `output`, DamagedData if `run.json` is lost or unreadable,
    ConfigurationMismatch if those are not the streams that the run was made from, and what storage raises.
    """
    storage = open_storage(output)
    described = _read_run(storage)
    run = AuditedRun.of(described, f"{output}/{RUN}")
    location = streams or described.streams
    manifest = load_manifest(location)
    if manifest.digest != run.config.manifest_digest:
        raise ConfigurationMismatch(f"{location}/manifest.json is not the manifest that {output} was made from")

    def audit(index: int) -> StreamAudit:
        source = open_stream(manifest, location, index)
        total = run.config.limit(source.num_records)
        return audit_stream(reading, index, run, Expected(total, source.read_ids))

    with (
        Meter(output, visible) as meter,
        ThreadPoolExecutor(DEEP_THREADS if deep else THREADS) as pool,
        ThreadPoolExecutor(WORKERS_AT_ONCE) as walks,
    ):
        reading = Reading(storage, pool, deep, meter.expect, meter.advance)
        try:
            audits = tuple(walks.map(audit, range(manifest.num_streams)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _compare_widths(audits)
    return RunAudit(output, deep, run, audits, _strays(storage, manifest.num_streams), expected)


def _read_run(storage: Storage) -> RunDescription:
    try:
        return read_run(storage)
    except ObjectNotFound:
        folders = [folder for folder in storage.folders() if _WORKER_FOLDER.fullmatch(folder)]
    # A start that failed before it had joined a run leaves a note in its folder, and no more.
    stored = next((info.name for folder in folders for info in storage.list(f"{folder}/commits/")), None)
    if stored:
        raise DamagedData(f"{storage}/{RUN} is missing, but {stored} is there: restore it")
    raise no_run(storage)


def _strays(storage: Storage, num_streams: int) -> tuple[str, ...]:
    """A line for each worker's folder that belongs to no stream."""
    own = {worker_folder(index) for index in range(num_streams)}
    return tuple(
        f"{folder}: there is no such stream, the manifest has {num_streams}, numbered from 0"
        for folder in storage.folders()
        if _WORKER_FOLDER.fullmatch(folder) and folder not in own
    )


def _compare_widths(audits: Sequence[StreamAudit]) -> None:
    """Note down the workers whose hook points are not as wide as those of the workers before them."""
    known: dict[str, int] = {}
    for audit in audits:
        for kind, width in audit.widths.items():
            if known.setdefault(kind, width) != width:
                folder = worker_folder(audit.stream)
                audit.problems.append(f"{folder}: its {kind} is {width} wide, that of other streams {known[kind]}")
