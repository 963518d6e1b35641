"""Audit of a run: it proves exactly once, or says what is wrong.

In: the locations of a run and of its streams. Out: a `RunAudit`, with a `StreamAudit` for each stream (`findings`).

What is proven without `deep`, from metadata and the id column of the streams (`check_chain`): each chain has no gap;
each cursor begins where the one before ended, from (0, 0) on; each batch file is there with the committed size and
crc32c; the ids of the records of each commit are those of the stream; counts and sums agree with each other, with the
configuration and with the manifest; no folder belongs to a stream that there is not. If every chain reaches the end of
its stream, every token of every record was committed exactly once. With `deep` every batch file is read and held
against its commit as well (`check_batch_file`).

A run may be audited while it is made: what is there so far is proven, and the verdict is "in progress". Batch files
that no commit names are listed and are no damage. A generation is not compared: an object that was restored, or a run
that was copied, has the same bytes under others. Symbolic links in a local folder are followed, since who can place
one can replace every object anyway; no name that is read from an object leads out of its worker's folder.

Cost: as in `check_chain`, `WORKERS_AT_ONCE` workers and `THREADS` reads at a time.
"""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..core.errors import ConfigurationMismatch, DamagedData, InvalidRequest
from ..core.progress_bar import ProgressBar
from ..format.commit import worker_folder
from ..format.run_config import RUN, RunDescription, read_existing_run
from ..storage import Storage, open_storage
from ..streams.extensions import load_manifest, up_to
from ..streams.stream import Stream, open_stream
from .audited_run import AuditedRun
from .check_against_streams import TokenCheck, tokenizer_of
from .check_chain import Expected, Reading, audit_stream
from .compare_recomputed import Computer, Draw, recompute
from .findings import RunAudit, StreamAudit

__all__ = ["Checks", "RunAudit", "StreamAudit", "audit_run"]

WORKERS_AT_ONCE = 4
THREADS = 32
DEEP_THREADS = min(8, os.cpu_count() or 1)
_WORKER_FOLDER = re.compile(r"worker-[0-9]{5,}")


@dataclass(frozen=True)
class Checks:
    """The checks besides the chain, and what they compare with.

    `tokens`: the streams are tokenized again, by the tokenizer of `model`, where `run.json` says unless given.
    `recompute`: the batches to draw; what `computer` returns for a run computes them. `expected`: a digest, of the run
    or of a stream, that a person kept. `visible`: show a bar on stderr.
    """

    tokens: bool = False
    model: str | None = None
    recompute: Draw | None = None
    computer: Callable[[RunDescription], Computer] | None = None
    expected: str | None = None
    visible: bool = False


NOTHING_MORE = Checks()


def audit_run(output: str, streams: str | None = None, deep: bool = False, checks: Checks = NOTHING_MORE) -> RunAudit:
    """Check a run against its streams, those that `run.json` names unless given; with `deep` the batch files, too.

    Raises InvalidRequest if there is no run at `output`, DamagedData if `run.json` is lost or unreadable,
    ConfigurationMismatch if those are not the streams that the run was made from, and what storage raises.
    """
    storage = open_storage(output)
    described = read_existing_run(storage)
    run = AuditedRun.of(described, f"{output}/{RUN}")
    location = streams or described.streams
    every = load_manifest(location)
    parts = [up_to(every, digest) for digest in described.manifest_digests]
    if parts[0] is None:
        raise ConfigurationMismatch(f"{location}/manifest.json is not the manifest that {output} was made from")
    if (manifest := parts[-1]) is None:
        raise ConfigurationMismatch(f"{location} does not have the streams that extended {output}")
    tokenizer = tokenizer_of(described, checks.model) if checks.tokens else None

    def audit(index: int) -> StreamAudit:
        source = open_stream(manifest, location, index)
        total = run.config.limit(source.num_records)
        found = audit_stream(reading, index, run, Expected(total, source.read_ids))
        if tokenizer is not None:
            found.problems += _token_problems(TokenCheck(storage, run, tokenizer, pool), source)
        return found

    with (
        ProgressBar(f"verify {output}", 0, visible=checks.visible) as bar,
        ThreadPoolExecutor(DEEP_THREADS if deep else THREADS) as pool,
        ThreadPoolExecutor(WORKERS_AT_ONCE) as walks,
    ):
        reading = Reading(storage, pool, deep, bar.expect, bar.advance)
        try:
            audits = tuple(walks.map(audit, range(manifest.num_streams)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _compare_widths(audits)
    strays, recomputed = _strays(storage, described, manifest.num_streams, every.num_streams), None
    if checks.recompute is not None and checks.computer is not None:
        numbers = range(manifest.num_streams)
        if checks.recompute.stream is not None:
            if checks.recompute.stream not in numbers:
                raise InvalidRequest(f"--stream {checks.recompute.stream}: the run has streams 0 to {len(numbers) - 1}")
            numbers = (checks.recompute.stream,)
        recomputed = recompute(storage, numbers, run.config, checks.recompute, checks.computer(described))
    ends = tuple(part.num_streams for part in parts if part is not None)
    ahead = every.num_streams - manifest.num_streams
    return RunAudit(output, deep, run, audits, strays, checks.expected, checks.tokens, recomputed, ends, ahead)


def _token_problems(check: TokenCheck, source: Stream) -> list[str]:
    try:
        return list(check.problems(source))
    except DamagedData as error:
        return [f"{worker_folder(source.index)}: its stream cannot be tokenized again: {error}"]


def _strays(storage: Storage, described: RunDescription, num_streams: int, planned: int) -> tuple[str, ...]:
    """Return a line for each worker's folder that belongs to no stream of the run.

    Of the `planned` streams those that the run has not taken up may have the note of an attempt, but no commit.
    """
    own = {worker_folder(index) for index in range(num_streams)}
    ahead = {worker_folder(index) for index in range(num_streams, planned)}
    strays = tuple(
        f"{folder}: there is no such stream, the manifest has {num_streams}, numbered from 0"
        for folder in storage.folders()
        if _WORKER_FOLDER.fullmatch(folder) and folder not in own
        if folder not in ahead or next(storage.list(f"{folder}/commits/"), None)
    )
    # A run that was extended since it was described has streams that are not known here.
    return strays if strays and read_existing_run(storage).extensions == described.extensions else ()


def _compare_widths(audits: Sequence[StreamAudit]) -> None:
    """Note down the workers whose hook points are not as wide as those of the workers before them."""
    known: dict[str, int] = {}
    for audit in audits:
        for kind, width in audit.widths.items():
            if known.setdefault(kind, width) != width:
                folder = worker_folder(audit.stream)
                audit.problems.append(f"{folder}: its {kind} is {width} wide, that of other streams {known[kind]}")
