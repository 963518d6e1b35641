"""The page of a report: facts in, one string of HTML out.

Everything that comes from the run, such as record ids and names, is escaped.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..status import format_bytes, format_seconds
from . import charts
from .charts import Axes, short
from .facts import HookFacts, Outstanding, ReportFacts

_STYLE = Path(__file__).with_name("style.css")
_BINS = 60
Words = Callable[[int], str]


def render(facts: ReportFacts, words: Words | None = None) -> str:
    """The whole page; `words` tells the text of a token id."""
    configuration = facts.run["configuration"]
    title = f"Activations of {configuration.get('model', 'a model')}"
    sections = [
        _progress(facts), _pace(facts), _norms(facts), _outstanding(facts, words), _positions(facts), _lengths(facts),
        _padding(facts), _stages(facts), _configuration(configuration), _proof(facts),
    ]  # fmt: skip
    badge = f'<span class="badge {facts.verdict.replace(" ", "-")}">{escape(facts.verdict)}</span>'
    about = f'<p>{escape(", ".join(_kinds(facts)))}<br>{escape(facts.output)}</p>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_STYLE.read_text()}</style></head><body>'
        f"<main><header><h1>{escape(title)} {badge}</h1>{about}</header>{_tiles(facts)}"
        f'<div class="grid">{"".join(sections)}</div></main></body></html>\n'
    )


def _kind(name: str) -> str:
    """A hook point's name without its layer."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _kinds(facts: ReportFacts) -> list[str]:
    """The kinds of hook points, and from how many layers."""
    kinds = Counter(_kind(hook.name) for hook in facts.hooks)
    return [f"{kind} of {count} layers" if count > 1 else kind for kind, count in kinds.items()] or ["nothing yet"]


def _section(title: str, note: str, content: str, wide: bool = False) -> str:
    css = ' class="wide"' if wide else ""
    return f"<section{css}><h2>{escape(title)}</h2><p>{escape(note)}</p>{content}</section>"


def _tiles(facts: ReportFacts) -> str:
    streams = {commit.stream for commit in facts.commits}
    times = [commit.time for commit in facts.commits]
    span = max(times) - min(times) if times else 0.0
    tiles = [
        (short(facts.num_tokens), "tokens"), (f"{facts.num_records:,}", "records"),
        *([(short(facts.num_rows), "rows stored")] if facts.num_rows < facts.num_tokens else []),
        (format_bytes(facts.num_bytes), "stored"), (f"{len(streams):,}", "streams begun"),
        (f"{len(facts.commits):,}", "batches"),
        (f"{len(facts.interruptions()):,}", "interruptions survived"), (format_seconds(span), "first to last commit"),
    ]  # fmt: skip
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _clock(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 60:.3g} min" if seconds >= 120 else f"{seconds:.3g} s"


def _interruptions(facts: ReportFacts, begin: float) -> list[tuple[float, str]]:
    return [(commit.time - begin, f"stream {commit.stream} went on after {_clock(commit.time - begin)}")
            for commit in facts.interruptions()]  # fmt: skip


def _progress(facts: ReportFacts) -> str:
    """Committed tokens over time."""
    if not facts.commits:
        return _section("Progress", "Nothing is committed yet.", "")
    ordered = sorted(facts.commits, key=lambda commit: commit.time)
    begin, total = ordered[0].time, np.cumsum([commit.tokens for commit in ordered])
    keep = np.unique(np.linspace(0, len(ordered) - 1, 300).astype(int))
    points = [(ordered[number].time - begin, float(total[number])) for number in keep]
    axes = Axes((0.0, max(points[-1][0], 1e-3)), (0.0, float(total[-1])))
    marks = _interruptions(facts, begin)
    content = axes.frame(_clock, short, "since the first commit") + charts.area(axes, points, "wash")
    content += charts.path(axes, points, "c0", "tokens committed") + charts.marks(axes, marks)
    note = "Tokens committed, by the store's clock. Strokes: a stream goes on after an interruption."
    return _section("Progress", note, charts.svg(content, "tokens committed over time"))


def _pace(facts: ReportFacts) -> str:
    if len(facts.commits) < 2:
        return _section("Pace", "One commit has no pace.", "")
    times = np.array([commit.time for commit in facts.commits])
    begin, span = times.min(), max(times.max() - times.min(), 1e-3)
    bins = min(_BINS, max(len(times) // 4, 1))
    tokens, edges = np.histogram(times - begin, bins, (0.0, span), weights=[commit.tokens for commit in facts.commits])
    rates = tokens / (span / bins)
    axes = Axes((0.0, span), (0.0, float(rates.max()) * 1.05))
    points = [(float((low + high) / 2), float(rate)) for low, high, rate in zip(edges, edges[1:], rates, strict=False)]
    content = axes.frame(_clock, short, "since the first commit") + charts.path(axes, points, "c0", "tokens per second")
    content += charts.marks(axes, _interruptions(facts, begin))
    note = f"Tokens per second of all workers together; {facts.num_tokens / span:,.0f} in the mean."
    return _section("Pace", note, charts.svg(content, "tokens per second over time"))


def _norms(facts: ReportFacts) -> str:
    if not facts.hooks:
        return ""
    low = min(max(hook.quantiles[0], 1e-9) for hook in facts.hooks)
    scale = (low / 1.1, max(hook.largest for hook in facts.hooks) * 1.1)
    cells = ['<div class="head">hook point</div><div class="head">1 to 99%, middle half, median; largest</div>']
    cells += [f'<div class="head number">{name}</div>' for name in ("r.m.s.", "median", "largest")]
    for hook in sorted(facts.hooks, key=lambda hook: _kind(hook.name)):  # by layer within a kind
        cells.append(
            f'<div class="name">{escape(hook.name)}</div>'
            f'<div class="picture">{charts.spread(hook.quantiles, hook.rms, hook.largest, scale)}</div>'
            f'<div class="number rms" data-label="r.m.s.">{hook.rms:.4g}</div>'
            f'<div class="number" data-label="median">{hook.median:.4g}</div>'
            f'<div class="number" data-label="largest">{hook.largest:.4g}</div>'
        )
    note = f"The norm of each token's activation, on a logarithmic scale from {short(scale[0])} to {short(scale[1])}. "
    if all(hook.of_all for hook in facts.hooks):
        note += "Of all that are stored; quantiles and largest within 1%."
    else:
        note += f"Root mean square of all that are stored; the rest of a sample of {facts.sampled_tokens:,}."
    return _section("Norms", note, f'<div class="norms">{"".join(cells)}</div>', wide=True)


def _outstanding(facts: ReportFacts, words: Words | None) -> str:
    """The tokens that distort training: of the hook points where they stand out most."""
    ranked = sorted(facts.hooks, key=lambda hook: -hook.largest / max(hook.median, 1e-9))[:2]
    rows = [_outstanding_row(hook.name, found, words) for hook in ranked for found in hook.outstanding]
    if not rows:
        return ""
    names = ["norm / median", "position", "token id", *(["text"] if words else []), "coordinate", "its value"]
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    head = f"<tr><th>hook point</th>{head}<th>record</th></tr>"
    strong = [found for hook in facts.hooks for found in hook.outstanding if found.times > 5]
    first = sum(found.position == 0 for found in strong)
    note = "Tokens far above the median weigh most in a squared error; leave them out or scale them when training. "
    note += f"Those of a sample of {facts.sampled_tokens:,}, and of all tokens the one with the largest coordinate. "
    note += (
        f"Of those above 5×, as far as listed, {first} of {len(strong)} stand at position 0." if strong
        else "None of them is above 5× the median."
    )
    table = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    return _section("Tokens that stand out", note, table, wide=True)


def _outstanding_row(name: str, found: Outstanding, words: Words | None) -> str:
    said = [f"<code>{escape(repr(words(found.token)))}</code>"] if words else []
    numbers = [str(found.position), str(found.token), *said, str(found.coordinate), f"{found.value:,.4g}"]
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    hot = " hot" if found.times > 5 else ""
    return (
        f'<tr><td><code>{escape(name)}</code></td><td class="number{hot}">{found.times:,.1f}×</td>{cells}'
        f'<td class="long">{escape(found.record_id)}</td></tr>'
    )


def _positions(facts: ReportFacts) -> str:
    """Attention sinks: the median norm at each position over the median of all."""
    curves = [(hook, _ratio_by_position(hook)) for hook in facts.hooks]
    curves = [(hook, points) for hook, points in curves if points]
    if not curves:
        return ""
    values = [y for _, points in curves for _, y in points]
    axes = Axes((0, max(x for _, points in curves for x, _ in points) or 1),
                (min(min(values), 0.5), max(max(values) * 1.1, 2.0)), logarithmic=True)  # fmt: skip
    content = axes.frame(short, short, "position in the sequence")
    strongest = max(curves, key=lambda curve: max(y for _, y in curve[1]))
    for hook, points in curves:
        content += charts.path(axes, points, "c0" if hook is strongest[0] else "faint", hook.name)
    peak = max(strongest[1], key=lambda point: point[1])
    note = (f"Median norm at a position, of the sample, over the median of all, a line for each hook point. "
            f"The most: {peak[1]:.2g}× at position {peak[0]:.0f} of {strongest[0].name}.")  # fmt: skip
    return _section("Norms by position", note, charts.svg(content, "norms by position"))


def _ratio_by_position(hook: HookFacts) -> list[tuple[float, float]]:
    return [(float(place), float(value / hook.median)) for place, value in enumerate(hook.by_position)
            if np.isfinite(value) and value > 0 and hook.median > 0]  # fmt: skip


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
    return _section("Where the time went", note, charts.stripe(seconds.most_common()))


def _lengths(facts: ReportFacts) -> str:
    lengths = facts.record_lengths
    if not len(lengths):
        return ""
    top = float(np.quantile(lengths, 0.99)) + 1
    counts, edges = np.histogram(np.minimum(lengths, top), 40, (0.0, top))
    note = (f"Tokens in a record: median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, largest "
            f"{lengths.max():,}. The last bar holds the largest hundredth.")  # fmt: skip
    return _section("Record lengths", note, charts.histogram(counts.tolist(), edges.tolist(), "tokens", "records"))


def _padding(facts: ReportFacts) -> str:
    slots = facts.slots_per_batch
    if not slots or not facts.commits:
        return ""
    padding = np.array([100 * (1 - commit.tokens / slots) for commit in facts.commits])
    counts, edges = np.histogram(padding, 40, (0.0, max(float(padding.max()), 5.0)))
    note = (f"Share of a batch's {slots:,} slots without a token: median {np.median(padding):.1f}%. It is computed and "
            "thrown away, never stored. The last batch of a stream may be nearly empty.")  # fmt: skip
    return _section("Padding", note, charts.histogram(counts.tolist(), edges.tolist(), "% of a batch", "batches"))


def _configuration(configuration: dict) -> str:
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="long"><code>{escape(_plain(value))}</code></td></tr>'
        for name, value in sorted(configuration.items()) if value is not None
    )
    return _section("Configuration", "All that decides the bytes.", f'<div class="scroll"><table>{rows}</table></div>')


def _plain(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _proof(facts: ReportFacts) -> str:
    return _section("Proof", "What verify says.", f"<pre>{escape(facts.proof)}</pre>")
