"""The findings of an audit: plain values, for people as lines and for machines as JSON.

In: what `check_chain` and `check_batch_file` found in each stream. Out: `RunAudit`, its verdict and exit code.
Guarantee: equal findings give equal text and JSON, whatever threads found them. Cost: none to speak of.

The JSON of `verify --json`; keys are never removed, new ones may be added:

    schema            1
    output, deep      what was read; whether the batch files were, too
    verdict           "proven", "in progress" or "damaged"
    problems          a sentence for each thing that is wrong; it begins with the object's name
    unfinished        numbers of the streams that have not ended and have no problem
    uncommitted       names of orphaned files, which no commit names: of killed attempts, or in flight
    num_records, num_batches, num_bytes     committed, over all streams
    num_rows          rows that are stored
    num_tokens        tokens that the committed batches cover, stored or not
    expected_records  how many records the streams have
    not_finite        {hook point: {"nan": n, "inf": n}} where there are any; null without --deep
    fingerprint, manifest_digest   of the run config and of the streams, as run.json has them
    extensions        of an extended run: name, manifest_digest, first_stream, last_stream, num_records, and the run's
                      digest up to there, of the streams that it began with and of each extension
    num_ahead         how many streams were added since, and are no part of the run
    tokens            whether the streams were tokenized again and compared
    recomputed        seed, total, recomputed, equal, close, wrong, worst, worst_row, says; null without --recompute
    digest            of the whole run: a kept copy shows later that nothing was rewritten
    streams           the same of each stream, with stream, finished and digest, that of its last commit, in order
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from ..core.count_of import count_of
from ..core.errors import DamagedData, TryAgain
from ..core.printable import printable
from ..format.digests import digest_of
from ..format.extension_names import extension_name
from .audited_run import AuditedRun
from .compare_recomputed import Recomputation

SCHEMA = 1
LINES = 20  # of a kind and stream that people see
COUNTS = ("num_records", "num_rows", "num_tokens", "num_batches", "num_bytes", "expected_records")


@dataclass
class StreamAudit:
    """The findings in the folder of one stream. `finished`: the end of the stream is committed.

    `non_finite` counts (hook point, "nan" or "inf"); `widths` are those of its batch files, {hook point: width}.
    """

    stream: int
    expected_records: int = 0
    num_records: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_batches: int = 0
    num_bytes: int = 0
    finished: bool = False
    digest: str = ""
    problems: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    non_finite: Counter[tuple[str, str]] = field(default_factory=Counter)
    widths: dict[str, int] = field(default_factory=dict)

    def to_json(self, deep: bool) -> dict:
        """Return what was found in the stream as JSON."""
        names = ("stream", "finished", "digest", "problems", "uncommitted", *COUNTS)
        return {name: getattr(self, name) for name in names} | {"not_finite": _table(self.non_finite) if deep else None}


@dataclass(frozen=True)
class RunAudit:
    """The findings in a run: proven if every stream is finished and nothing is wrong.

    `ends` are the numbers of streams that the run began with, and had after each extension; `num_ahead` counts streams
    that were added since, and that the run has not taken up.
    """

    output: str
    deep: bool
    run: AuditedRun
    streams: tuple[StreamAudit, ...]
    strays: tuple[str, ...] = ()
    expected: str | None = None
    checked_tokens: bool = False
    recomputed: Recomputation | None = None
    ends: tuple[int, ...] = ()
    num_ahead: int = 0

    @property
    def digest(self) -> str:
        """The digest of the run: of the digests of `run.json` and of the last commit of each stream, in order.

        The digest of an extension is between those of the streams before it and of its own.
        """
        return self.digests[-1]

    @property
    def digests(self) -> list[str]:
        """The digests of the run without its extensions, and with one after the other of them."""
        text, found, begin = f"{self.run.digest}\n", [], 0
        for end, extension in zip_longest(self.ends or (len(self.streams),), self.run.extensions):
            text += "".join(f"{stream.digest}\n" for stream in self.streams[begin:end])
            found.append(digest_of(text.encode()))
            text, begin = f"{text}{extension.digest}\n" if extension else text, end
        return found

    @property
    def general(self) -> list[str]:
        """A sentence for each thing that is wrong and of no stream."""
        wrong = [*self.strays, *(self.recomputed.problems if self.recomputed else ())]
        if self.expected in (None, *self.digests, *(stream.digest for stream in self.streams)):
            return wrong
        return [*wrong, f"{self.output}: its digest is {self.digest}, and {self.expected} was expected"]

    @property
    def problems(self) -> list[str]:
        """A sentence for each thing that is wrong, those of no stream first."""
        return [*self.general, *(problem for stream in self.streams for problem in stream.problems)]

    @property
    def unfinished(self) -> list[int]:
        """The streams that have not ended and have no problem."""
        return [stream.stream for stream in self.streams if not stream.finished and not stream.problems]

    @property
    def uncommitted(self) -> list[str]:
        """The names of orphaned files."""
        return [name for stream in self.streams for name in stream.uncommitted]

    @property
    def non_finite(self) -> Counter[tuple[str, str]]:
        """The counts of NaN and infinite values over all streams."""
        return sum((stream.non_finite for stream in self.streams), Counter())

    @property
    def verdict(self) -> str:
        """One of proven, in progress and damaged."""
        return "damaged" if self.problems else "in progress" if self.unfinished else "proven"

    @property
    def exit_code(self) -> int:
        """The exit code of `verify`."""
        return {"damaged": DamagedData.exit_code, "in progress": TryAgain.exit_code, "proven": 0}[self.verdict]

    def totals(self) -> dict[str, int]:
        """Return the sums over all streams."""
        return {name: sum(getattr(stream, name) for stream in self.streams) for name in COUNTS}

    def to_json(self) -> dict:
        """Return what `verify --json` prints."""
        found = {"schema": SCHEMA, "output": self.output, "deep": self.deep, "verdict": self.verdict}
        found |= {"fingerprint": self.run.fingerprint, "manifest_digest": self.run.config.manifest_digest}
        found |= {"digest": self.digest, "problems": self.problems}
        found |= {"extensions": self._extensions(), "num_ahead": self.num_ahead}
        found |= {"unfinished": self.unfinished, "uncommitted": self.uncommitted}
        found |= {"tokens": self.checked_tokens}
        found |= {"recomputed": self.recomputed.to_json() if self.recomputed else None}
        found |= self.totals() | {"not_finite": _table(self.non_finite) if self.deep else None}
        return found | {"streams": [stream.to_json(self.deep) for stream in self.streams]}

    def to_text(self) -> str:
        """Return a line for each thing that is wrong, not finished or ignored, and the summary."""
        lines, unfinished = [f"wrong: {problem}" for problem in self.general], set(self.unfinished)
        for stream in self.streams:
            lines += _shortened([f"wrong: {problem}" for problem in stream.problems], f"stream {stream.stream}")
        lines += [
            f"not finished: stream {stream.stream}, {stream.num_records:,} of {stream.expected_records:,} records"
            for stream in self.streams
            if stream.stream in unfinished
        ]
        lines += _shortened([f"not committed, ignored: {name}" for name in self.uncommitted], "the run")
        for hook_point, found in _table(self.non_finite).items():
            lines.append(f"not finite: {hook_point} has {found['nan']:,} NaN and {found['inf']:,} infinite values")
        lines += _shortened(
            [f"digest of stream {stream.stream}: {stream.digest}" for stream in self.streams], "the run"
        )
        lines += [self.recomputed.to_text()] if self.recomputed else []
        lines.append(f"fingerprint {self.run.fingerprint}, manifest {self.run.config.manifest_digest}")
        lines += [
            f"{found['name']}: streams {found['first_stream']} to {found['last_stream']}, "
            f"{count_of(found['num_records'], 'record')}, digest of the run up to here: {found['digest']}"
            for found in self._extensions()
        ]
        if self.num_ahead:
            lines.append(f"not of this run: {count_of(self.num_ahead, 'stream')} added to the streams since")
        lines.append(f"digest of the run: {self.digest}")
        return "\n".join(printable(line) for line in [*lines, self._summary()])

    def _extensions(self) -> list[dict]:
        """Return which streams the run began with, and which each extension added; of a run without any none."""
        names = ["run.json", *map(extension_name, range(1, len(self.ends)))] if self.run.extensions else []
        return [
            {
                "name": name, "manifest_digest": manifest, "first_stream": first, "last_stream": end - 1,
                "num_records": sum(stream.num_records for stream in self.streams[first:end]), "digest": digest,
            }
            for name, manifest, (first, end), digest in zip(
                names, self._manifests, pairwise((0, *self.ends)), self.digests, strict=False
            )
        ]  # fmt: skip

    @property
    def _manifests(self) -> list[str]:
        return [self.run.config.manifest_digest, *(extension.manifest_digest for extension in self.run.extensions)]

    def _summary(self) -> str:
        totals = self.totals()
        stored, read = totals["num_rows"], totals["num_tokens"]
        read_tokens = count_of(read, "token")
        tokens = read_tokens if stored == read else f"{count_of(stored, 'row')} of {read_tokens}"
        batches = count_of(totals["num_batches"], "batch", "batches")
        once = ", each record exactly once"
        end = {"proven": once, "in progress": f"{once} so far", "damaged": ""}
        return (
            f"{self.output}: {self.verdict}. {count_of(len(self.streams), 'stream')}, {batches}, "
            f"{count_of(totals['num_records'], 'record')}, {tokens}, {totals['num_bytes']:,} bytes"
            f"{', all of them read' if self.deep else ''}"
            f"{', tokens compared with the streams' if self.checked_tokens else ''}{end[self.verdict]}"
        )


def _shortened(lines: list[str], of: str) -> Iterator[str]:
    yield from lines[:LINES]
    if len(lines) > LINES:
        yield f"  and {len(lines) - LINES:,} more such lines of {of}; --json has them all"


def _table(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    names = sorted({hook_point for hook_point, _ in counts})
    return {name: {kind: counts[name, kind] for kind in ("nan", "inf")} for name in names}
