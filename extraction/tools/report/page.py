"""The page of a report: facts in, one string of HTML out.

Everything that comes from the run, such as record ids and names, is escaped.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ...core.amounts import format_bytes, format_seconds
from ...format.not_finite import described
from ...models.hooks import suffix_of
from . import charts, norms, over_time
from .charts import section, short
from .facts import ReportFacts
from .norms import Words

_STYLE = Path(__file__).with_name("style.css")


def render(facts: ReportFacts, words: Words | None = None) -> str:
    """Return the whole page; `words` returns the text of a token id."""
    config = facts.run.config
    title = f"Activations of {config.model}"
    sections = [
        over_time.progress(facts), over_time.pace(facts), over_time.streams(facts),
        _damaged(facts), _not_finite(facts), norms.by_layer(facts), norms.by_position(facts), norms.spreads(facts),
        norms.outstanding(facts, words),
        _lengths(facts), _padding(facts), _stages(facts), _proof(facts), _configuration(config.to_json()),
    ]  # fmt: skip
    badge = f'<span class="badge {facts.verdict.replace(" ", "-")}">{escape(facts.verdict)}</span>'
    about = f"<p>{escape(', '.join(_kinds(facts)))}<br>{escape(facts.output)}</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_STYLE.read_text()}</style></head><body>'
        f"<main><header><h1>{escape(title)} {badge}</h1>{about}</header>{_tiles(facts)}"
        f'<div class="grid">{"".join(sections)}</div></main></body></html>\n'
    )


def _kinds(facts: ReportFacts) -> list[str]:
    """Return the kinds of hook points, and from how many layers."""
    kinds = Counter(suffix_of(hook.name) for hook in facts.hooks)
    return [f"{kind} of {count} layers" if count > 1 else kind for kind, count in kinds.items()] or ["nothing yet"]


def _tiles(facts: ReportFacts) -> str:
    streams = {commit.stream for commit in facts.commits}
    times = [commit.time for commit in facts.commits]
    span = max(times) - min(times) if times else 0.0
    sizes = facts.run.records_per_stream
    tiles = [
        (short(facts.num_tokens), "tokens"), (_of(facts.num_records, sum(sizes)), "records"),
        *([(short(facts.num_rows), "rows stored")] if facts.num_rows < facts.num_tokens else []),
        (format_bytes(facts.num_bytes), "stored"), (_of(len(streams), len(sizes)), "streams begun"),
        (f"{len(facts.commits):,}", "batches"),
        (f"{len(facts.interruptions()):,}", "interruptions survived"), (format_seconds(span), "first to last commit"),
    ]  # fmt: skip
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _of(part: int, whole: int) -> str:
    """Return text such as `12 of 60`, of an unknown whole (0) only the part."""
    return f"{part:,} of {whole:,}" if whole else f"{part:,}"


def _damaged(facts: ReportFacts) -> str:
    if not facts.damaged:
        return ""
    rows = "".join(
        f"<tr><td>{number}</td><td><code>{escape(said)}</code></td></tr>" for number, said in facts.damaged.items()
    )
    note = "The rest of this page leaves these streams out."
    table = f'<div class="scroll"><table><tr><th>stream</th><th>what is wrong</th></tr>{rows}</table></div>'
    return section("Damaged streams", note, table, wide=True)


def _not_finite(facts: ReportFacts) -> str:
    if not facts.not_finite:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td>"
        f'<td class="number">{counts["nan"]:,}</td><td class="number">{counts["inf"]:,}</td></tr>'
        for name, counts in facts.not_finite.items()
    )
    head = '<tr><th>hook point</th><th class="number">NaN</th><th class="number">infinite</th></tr>'
    note = f"{described(facts.not_finite)}: leave the rows that hold them out of training."
    return section("Values that are not finite", note, f'<div class="scroll"><table>{head}{cells}</table></div>')


def _stages(facts: ReportFacts) -> str:
    seconds: Counter[str] = Counter()
    for commit in facts.commits:
        seconds.update(commit.seconds)
    upload = seconds.pop("upload", 0.0)
    loop = sum(seconds.values())
    if not loop:
        return ""
    note = (f"Share of {format_seconds(loop)} in the workers' loops. Uploads took {upload / loop:.0%} of that time, "
            "beside them.")  # fmt: skip
    return section("Where the time went", note, charts.stripe(seconds.most_common()))


def _lengths(facts: ReportFacts) -> str:
    lengths = facts.record_lengths
    known = ""
    if len(lengths) < facts.num_records:
        known = (f"{len(lengths):,} of {facts.num_records:,} records have a known length; the others ended in batches "
                 "without rows. ")  # fmt: skip
    if not len(lengths):
        return section("Record lengths", known, "") if known else ""
    width = int(np.quantile(lengths, 0.99)) // 40 + 1
    edges = np.arange(0, int(np.quantile(lengths, 0.99)) + width + 1, width)
    counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 1), edges)
    note = (f"{known}Tokens in a record: median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, largest "
            f"{lengths.max():,}. The last bar holds the largest hundredth.")  # fmt: skip
    return section("Record lengths", note, charts.histogram(counts.tolist(), edges.tolist(), "tokens", "records"))


def _padding(facts: ReportFacts) -> str:
    slots = facts.run.config.num_slots
    if not facts.commits:
        return ""
    padding = np.array([100 * (1 - commit.tokens / slots) for commit in facts.commits])
    counts, edges = np.histogram(padding, 25, (0.0, max(float(padding.max()), 5.0)))
    note = (f"Share of a batch's {slots:,} slots without a token: median {np.median(padding):.1f}%. It is computed and "
            "thrown away, never stored. The last batch of a stream may be nearly empty.")  # fmt: skip
    return section("Padding", note, charts.histogram(counts.tolist(), edges.tolist(), "% of a batch", "batches"))


def _configuration(configuration: dict) -> str:
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="long"><code>{escape(_plain(value))}</code></td></tr>'
        for name, value in sorted(configuration.items())
        if value is not None
    )
    table = f'<div class="scroll"><table>{rows}</table></div>'
    return section("Configuration", "All that decides the bytes.", table, wide=True)


def _plain(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _proof(facts: ReportFacts) -> str:
    return section("Proof", "What verify says.", f"<pre>{escape(facts.proof)}</pre>")
