"""The part of a report about time: how much was committed when, at which pace, and when which stream was worked on.

In: `ReportFacts`. Out: sections of HTML. Times are the store's, counted from the first commit.
"""

from collections import defaultdict
from html import escape
from itertools import chain

import numpy as np

from . import charts
from .charts import Axes, section, short
from .facts import CommitFact, ReportFacts

_BINS = 60
_MOST_ROWS = 1000  # streams that are drawn
_READABLE = 11.0  # pixels in which the number of a stream can be read


class _Clock:
    """Seconds since the first commit, in the unit that suits the whole."""

    def __init__(self, facts: ReportFacts):
        times = [commit.time for commit in facts.commits]
        self.begin, self.span = min(times), max(max(times) - min(times), 1e-3)
        units = ((172_800, 86_400, "d"), (7200, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
        self._divisor, self._unit = next(unit[1:] for unit in units if self.span >= unit[0])

    def at(self, time: float) -> float:
        return (time - self.begin) / self._divisor

    def axis(self) -> tuple[float, float]:
        return 0.0, self.span / self._divisor

    def say(self, value: float) -> str:
        return f"{value:.3g} {self._unit}"


def _interruptions(facts: ReportFacts, clock: _Clock) -> list[tuple[float, str]]:
    return [(clock.at(commit.time), f"stream {commit.stream} goes on at {clock.say(clock.at(commit.time))}")
            for commit in facts.interruptions()]  # fmt: skip


def progress(facts: ReportFacts) -> str:
    """Show committed tokens over time."""
    if len(facts.commits) < 2:
        return section(
            "Progress", "One batch is committed so far." if facts.commits else "Nothing is committed yet.", ""
        )
    clock, ordered = _Clock(facts), sorted(facts.commits, key=lambda commit: commit.time)
    total = np.cumsum([commit.tokens for commit in ordered])
    keep = np.unique(np.linspace(0, len(ordered) - 1, 300).astype(int))
    points = [(clock.at(ordered[number].time), float(total[number])) for number in keep]
    axes = Axes(clock.axis(), (0.0, float(total[-1]) or 1.0))
    content = axes.frame(clock.say, short, "since the first commit") + charts.area(axes, points, "wash")
    content += charts.path(axes, points, "c0", "tokens committed") + charts.marks(axes, _interruptions(facts, clock))
    note = "Tokens committed, by the store's clock. Strokes: a stream goes on after an interruption."
    return section("Progress", note, charts.svg(content, "tokens committed over time"))


def pace(facts: ReportFacts) -> str:
    """Show tokens per second over time."""
    if len(facts.commits) < 2:
        return ""
    clock = _Clock(facts)
    edges = np.linspace(clock.begin, clock.begin + clock.span, min(_BINS, max(len(facts.commits) // 4, 1)) + 1)
    done = _tokens_done(facts, edges)
    rates = np.diff(done) / np.diff(edges)
    axes = Axes(clock.axis(), (0.0, float(rates.max()) * 1.05 or 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    points = [(clock.at(time), float(rate)) for time, rate in zip(middles.tolist(), rates, strict=True)]
    content = axes.frame(clock.say, short, "since the first commit") + charts.area(axes, points, "wash")
    content += charts.path(axes, points, "c0", "tokens per second") + charts.marks(axes, _interruptions(facts, clock))
    note = f"Tokens per second of all workers together; {(done[-1] - done[0]) / clock.span:,.0f} in the mean."
    return section("Pace", note, charts.svg(content, "tokens per second over time"))


def _tokens_done(facts: ReportFacts, times: np.ndarray) -> np.ndarray:
    """Return how many tokens were computed by each time.

    A batch is taken to be computed evenly since the commit before it, the first of an attempt within its own seconds.
    """
    done = np.zeros(len(times))
    for commits in chain.from_iterable(_attempts(facts)):
        ends = [commit.time for commit in commits]
        begin = ends[0] - sum(commits[0].seconds.values())
        totals = np.cumsum([0, *(commit.tokens for commit in commits)])
        done += np.interp(times, np.maximum.accumulate([begin, *ends]), totals)
    return done


def streams(facts: ReportFacts) -> str:
    """Show when workers worked on each stream: a bar for each attempt from its first to its last commit."""
    if len(facts.commits) < 2:
        return ""
    clock, rows = _Clock(facts), _attempts(facts)
    shown = rows[:_MOST_ROWS]
    height = min(max(260 / len(shown), 2.0), 18.0)
    parts = [_row(number * height, height, attempts, clock) for number, attempts in enumerate(shown)]
    total = round(len(shown) * height)
    picture = (f'<svg class="streams" viewBox="0 0 1000 {total}" preserveAspectRatio="none" style="height:{total}px" '
               f'role="img" aria-label="streams over time">{"".join(parts)}</svg>')  # fmt: skip
    if height >= _READABLE:
        numbers = "".join(f'<span style="height:{height:.1f}px">{attempts[0][0].stream}</span>' for attempts in shown)
        picture = f'<div class="rows"><div class="numbers">{numbers}</div>{picture}</div>'
    scale = f'<div class="scale"><span>first commit</span><span>{clock.say(clock.axis()[1])}</span></div>'
    note = (f"{len(rows):,} begun, a line for each: a bar from the first to the last commit of an attempt, an orange "
            "stroke where the next one goes on.")  # fmt: skip
    if len(rows) > len(shown):
        note += f" The first {len(shown):,} are drawn."
    return section("Streams", note, picture + scale, wide=True)


def _attempts(facts: ReportFacts) -> list[list[list[CommitFact]]]:
    """Return the commits by stream, and in it by attempt, in order."""
    found: dict[int, list[list[CommitFact]]] = defaultdict(list)
    for commit in facts.commits:
        attempts = found[commit.stream]
        if not attempts or attempts[-1][-1].attempt != commit.attempt:
            attempts.append([])
        attempts[-1].append(commit)
    return [attempts for _, attempts in sorted(found.items())]


def _row(top: float, height: float, attempts: list[list[CommitFact]], clock: _Clock) -> str:
    at = lambda commit: 1000 * (commit.time - clock.begin) / clock.span  # noqa: E731
    y, thick, parts = top + height * 0.15, height * 0.7, []
    first, last = at(attempts[0][0]), at(attempts[-1][-1])
    middle = top + height / 2
    parts.append(f'<line class="gap" x1="{first:.1f}" x2="{last:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
    for number, commits in enumerate(attempts):
        left, tokens = min(at(commits[0]), 997.0), sum(commit.tokens for commit in commits)
        title = f"stream {commits[0].stream}, attempt {number + 1}: {len(commits):,} batches, {tokens:,} tokens"
        width = max(at(commits[-1]) - left, 3.0)
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{thick:.1f}">'
                     f"<title>{escape(title)}</title></rect>")  # fmt: skip
        if number:
            parts.append(f'<rect class="again" x="{left:.1f}" y="{y:.1f}" width="3" height="{thick:.1f}"/>')
    return "".join(parts)
