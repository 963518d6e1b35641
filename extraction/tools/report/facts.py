"""The facts of a report, gathered from the output of a run.

In: OUTPUT. Out: `ReportFacts`: plain numbers, no drawing. Statistics, record lengths and times are of everything that
is committed; outstanding tokens and norms by position are of a sample of the rows, spread evenly over the batches.

Cost: each commit and each batch file's first bytes once, and `SAMPLED_BATCHES` runs of `SAMPLED_ROWS` rows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

from ...core.errors import DamagedData, ExtractionError
from ...format.batch_file import StoredBatch
from ...format.chain import AHEAD, StoredCommit, walk
from ...format.commit import Commit
from ...format.not_finite import NotFinite, added
from ...format.run_config import RunDescription
from ...read.reader import ActivationReader
from ...read.select import Select
from ...read.statistics import Largest, Statistics, statistics_of

SAMPLED_BATCHES = 32
SAMPLED_ROWS = 4096
POSITIONS = 64
OUTSTANDING = 8
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class CommitFact:
    """One commit: when it was created (the store's seconds), by which attempt, how many tokens it covers and stores."""

    stream: int
    time: float
    attempt: str
    tokens: int
    rows: int
    seconds: dict[str, float]

    @classmethod
    def of(cls, stored: StoredCommit) -> "CommitFact":
        """Return the facts of a commit."""
        commit, updated = stored.commit, stored.info.updated or 0.0
        return cls(commit.stream, updated, commit.attempt, commit.num_tokens, commit.num_rows, commit.seconds)


@dataclass(frozen=True)
class Outstanding:
    """A token whose activation has a large norm: `times` the median, most of it in one coordinate or not."""

    token: int
    position: int
    record_id: str
    times: float
    coordinate: int
    value: float


@dataclass(frozen=True)
class HookFacts:
    """Norms ‖x‖ of one hook point.

    Of all rows: the root mean square, and quantiles and the largest within 1%, NaN if every row has a NaN. Of the
    sample: medians by position in the window, and outstanding tokens, but for the one with the largest coordinate.
    """

    name: str
    width: int
    rms: float
    quantiles: tuple[float, ...]
    largest: float
    by_position: np.ndarray
    outstanding: tuple[Outstanding, ...]

    @property
    def median(self) -> float:
        """The median of the norms."""
        return self.quantiles[2]


@dataclass(frozen=True)
class ReportFacts:
    """Everything on the page. `record_lengths` are of the records that ended, those whose length is known.

    `damaged`: {stream: what is wrong}; nothing else on the page is of these streams.
    """

    output: str
    run: RunDescription
    commits: tuple[CommitFact, ...]
    num_bytes: int
    num_records: int
    record_lengths: np.ndarray
    hooks: tuple[HookFacts, ...]
    sampled_tokens: int
    verdict: str
    proof: str
    not_finite: NotFinite
    damaged: dict[int, str]

    @property
    def num_tokens(self) -> int:
        """The tokens that are committed, stored or not."""
        return sum(commit.tokens for commit in self.commits)

    @property
    def num_rows(self) -> int:
        """Tokens that are stored, or means over windows."""
        return sum(commit.rows for commit in self.commits)

    def interruptions(self) -> list[CommitFact]:
        """Return the first commit of every attempt that continued after another one."""
        by_stream: dict[int, list[CommitFact]] = defaultdict(list)
        for commit in self.commits:
            by_stream[commit.stream].append(commit)
        return [after for chain in by_stream.values() for before, after in zip(chain, chain[1:], strict=False)
                if after.attempt != before.attempt]  # fmt: skip


def gather(output: str, streams: str | None = None) -> ReportFacts:
    """Return the facts of a run, of damaged streams only that they are. Raises what the reader raises."""
    reader = ActivationReader(output)
    damaged: dict[int, str] = {}
    try:
        return _gather(reader, damaged, streams)
    except DamagedData:
        damaged = {number: said for number in reader.streams if (said := _damage(output, number))}
        if not damaged:
            raise
    whole = Select(streams=tuple(number for number in reader.streams if number not in damaged))
    return _gather(ActivationReader(output, whole), damaged, streams)


def _damage(output: str, stream: int) -> str | None:
    """Return what is wrong with a stream as far as a report reads it, None if nothing is."""
    try:
        _gather(ActivationReader(output, Select(streams=(stream,))), {}, None, proven=False)
    except DamagedData as error:
        return str(error)
    return None


def _gather(reader: ActivationReader, damaged: dict[int, str], streams: str | None, proven: bool = True) -> ReportFacts:
    """Return the facts of the streams of a reader; with `proven` also what `verify` says of the whole run."""
    output = reader.storage.location
    with ThreadPoolExecutor(AHEAD) as pool:
        walked = list(walk(reader.storage, reader.streams, reader.run, pool))
    stored_commits = [stored for stored in walked if stored is not None]
    lasts = [last.commit for last, end in pairwise(walked) if last is not None and end is None]
    lengths = [length for stored in stored_commits for length in _lengths_without_rows(stored.commit)]
    headers = reader.headers(reader.hook_points)
    statistics = statistics_of(_with_lengths(headers, lengths), reader.hook_points)
    sample = _choose(reader)
    hooks = [_read_hook(name, sample, found, reader.run.config.seq_len) for name, found in statistics.items()]
    verdict, proof = _prove(output, streams) if proven else ("not checked", "")
    return ReportFacts(
        output=output,
        run=reader.run,
        commits=tuple(map(CommitFact.of, stored_commits)),
        num_bytes=sum(last.totals.bytes for last in lasts),
        num_records=sum(last.cursor_after.record for last in lasts),
        record_lengths=np.array(lengths, np.int64),
        hooks=tuple(hooks),
        sampled_tokens=sum(min(stored.ref.num_rows, SAMPLED_ROWS) for stored in sample),
        verdict=verdict,
        proof=proof,
        not_finite=reduce(added, (last.totals.not_finite for last in lasts), {}),
        damaged=damaged,
    )


def _with_lengths(headers: Iterable[StoredBatch], lengths: list[int]) -> Iterator[StoredBatch]:
    """Yield the same batch files; append the lengths of the records that end in them to `lengths`."""
    for stored in headers:
        begin, end = stored.ref.begin, stored.ref.end
        sizes = stored.record_lengths[: end.record - begin.record].copy()
        sizes[:1] += begin.token_offset  # what came before, whether anything of it is stored or not
        lengths += sizes.tolist()
        yield stored


def _lengths_without_rows(commit: Commit) -> list[int]:
    """Return the lengths of the records that end in a commit without batch file, where its cursors determine them.

    They do for one record, and for several that have no tokens in the batch.
    """
    before, after = commit.cursor_before, commit.cursor_after
    num_ended = after.record - before.record
    tokens = commit.num_tokens - after.token_offset
    if commit.data is not None or num_ended < 1 or (num_ended > 1 and tokens):
        return []
    return [before.token_offset + tokens, *[0] * (num_ended - 1)]


def _choose(reader: ActivationReader) -> list[StoredBatch]:
    refs = list(reader.all_refs())
    chosen = np.unique(np.linspace(0, len(refs) - 1, SAMPLED_BATCHES).astype(int)) if refs else []
    return [StoredBatch(reader.storage, refs[number]) for number in chosen]


def _read_hook(name: str, sample: list[StoredBatch], of_all: Statistics, seq_len: int) -> HookFacts:
    norms, positions, best = [], [], []
    for stored in sample:
        values = stored.activations(name, 0, SAMPLED_ROWS).astype(np.float32)
        norms.append(np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64)))
        positions.append(stored.array("positions", 0, SAMPLED_ROWS) % seq_len)
        best += [(norms[-1][row], stored, int(row), values[row]) for row in np.argsort(-norms[-1])[:OUTSTANDING]]
    all_norms, all_positions = np.concatenate(norms), np.concatenate(positions)
    quantile = of_all.norms.get_quantile_value  # None where no norm was counted
    quantiles = tuple(math.nan if (value := quantile(part)) is None else value for part in (*QUANTILES, 1.0))
    by_position = np.array(
        [
            np.median(all_norms[all_positions == place]) if (all_positions == place).any() else np.nan
            for place in range(POSITIONS)
        ]
    )
    best.sort(key=lambda found: -found[0])
    outstanding = [_outstanding(*found, median=quantiles[2]) for found in best[:OUTSTANDING]]
    outstanding = _with_largest(outstanding, of_all.largest, quantiles[2])
    return HookFacts(
        name, len(of_all.mean), of_all.norm, quantiles[:-1], quantiles[-1], by_position, tuple(outstanding)
    )


def _with_largest(outstanding: list[Outstanding], largest: Largest, median: float) -> list[Outstanding]:
    """Return the list with the token that has the largest coordinate of all, in the sample or not."""
    found = Outstanding(
        largest.token,
        largest.position,
        largest.record_id,
        _times(largest.norm, median),
        largest.coordinate,
        largest.value,
    )
    others = [other for other in outstanding if (other.record_id, other.position) != (found.record_id, found.position)]
    return sorted([*others[: OUTSTANDING - 1], found], key=lambda one: -one.times)


def _times(norm: float, median: float) -> float:
    return norm / median if median else float("inf")


def _outstanding(norm: float, stored: StoredBatch, row: int, values: np.ndarray, median: float) -> Outstanding:
    record = int(np.searchsorted(stored.array("record_offsets"), row, side="right")) - 1
    token, position = (int(stored.array(name, row, row + 1)[0]) for name in ("tokens", "positions"))
    coordinate = int(np.argmax(np.abs(values)))
    where = (token, position, stored.record_ids[record])
    return Outstanding(*where, _times(float(norm), median), coordinate, float(values[coordinate]))


def _prove(output: str, streams: str | None) -> tuple[str, str]:
    """Return the verdict and the text of `verify`, or why it did not run."""
    from ...audit.verify import audit_run

    try:
        audit = audit_run(output, streams)
    except ExtractionError as error:
        return "not checked", f"verify did not run: {error}"
    return audit.verdict, audit.to_text()
