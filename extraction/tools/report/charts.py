"""Small charts as SVG text: no script, no font, no request; colours are the page's CSS variables.

In: numbers. Out: SVG elements of `WIDTH` units that scale to their column. Every mark has a title, which browsers show
when pointed at.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
Format = Callable[[float], str]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` steps apart."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Return text such as `1.2M`, `350` or `0.02`."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


class Axes:
    """A plotting area with its scales; `logarithmic` is about y."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], logarithmic: bool = False):
        self.x, self.y, self.logarithmic = x, y, logarithmic

    def across(self, value: float) -> float:
        """Return the x of the drawing for a value."""
        low, high = self.x
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def up(self, value: float) -> float:
        """Return the y of the drawing for a value."""
        low, high = self.y
        if self.logarithmic:
            low, high, value = (math.log10(number) for number in (low, high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    def frame(self, format_x: Format, format_y: Format, label_x: str) -> str:
        """Return the grid, tick labels and the name of x."""
        parts = []
        for value in self._ticks_y():
            height = self.up(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
            label = escape(format_y(value))
            parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
        for value in ticks(*self.x, 5):
            place, low = self.across(value), HEIGHT - BOTTOM + 15
            parts.append(f'<text x="{place:.1f}" y="{low}" text-anchor="middle">{escape(format_x(value))}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle" class="axis">{escape(label_x)}</text>')
        return "".join(parts)

    def _ticks_y(self) -> list[float]:
        if not self.logarithmic:
            return ticks(*self.y)
        decades = range(math.ceil(math.log10(self.y[0])), math.floor(math.log10(self.y[1])) + 1)
        return [10.0**power for power in decades] if len(decades) > 1 else ticks(*self.y)


def svg(content: str, label: str) -> str:
    """Return a drawing; a screen reader reads `label`."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'


def path(axes: Axes, points: Sequence[tuple[float, float]], css: str, title: str) -> str:
    """Return a line through the points; of a single point, a dot."""
    places = [f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in points]
    if len(places) == 1:
        x, y = places[0].split(",")
        return f'<circle class="{css}" cx="{x}" cy="{y}" r="3"><title>{escape(title)}</title></circle>'
    return f'<polyline class="{css}" points="{" ".join(places)}"><title>{escape(title)}</title></polyline>'


def area(axes: Axes, points: Sequence[tuple[float, float]], css: str) -> str:
    """Return the surface between the points and the bottom."""
    bottom = HEIGHT - BOTTOM
    places = [f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in points]
    first, last = axes.across(points[0][0]), axes.across(points[-1][0])
    return f'<polygon class="{css}" points="{first:.1f},{bottom} {" ".join(places)} {last:.1f},{bottom}"/>'


def band(axes: Axes, points: Sequence[tuple[float, float, float]], css: str) -> str:
    """Return the surface between a lower and an upper line; points are x, lower, upper."""
    upper = [f"{axes.across(x):.1f},{axes.up(high):.1f}" for x, _, high in points]
    lower = [f"{axes.across(x):.1f},{axes.up(low):.1f}" for x, low, _ in reversed(points)]
    return f'<polygon class="band {css}" points="{" ".join(upper + lower)}"/>'


def legend(names: Sequence[str]) -> str:
    """Return the meaning of the colours, as HTML."""
    cells = "".join(f'<li><b class="s{number % 6}"></b>{escape(name)}</li>' for number, name in enumerate(names))
    return f'<ul class="legend">{cells}</ul>'


def section(title: str, note: str, content: str, wide: bool = False) -> str:
    """Return a card of the page."""
    css = ' class="wide"' if wide else ""
    return f"<section{css}><h2>{escape(title)}</h2><p>{escape(note)}</p>{content}</section>"


def marks(axes: Axes, at: Sequence[tuple[float, str]]) -> str:
    """Return short strokes on the bottom line, each with its meaning."""
    bottom = HEIGHT - BOTTOM
    return "".join(
        f'<line class="mark" x1="{axes.across(x):.1f}" x2="{axes.across(x):.1f}" y1="{bottom - 12}" y2="{bottom}">'
        f"<title>{escape(title)}</title></line>"
        for x, title in at
    )


def histogram(counts: Sequence[int], edges: Sequence[float], label: str, what: str) -> str:
    """Return bars of equal width; `edges` is one longer than `counts`."""
    axes = Axes((edges[0], edges[-1]), (0, max(counts) * 1.05 or 1))
    bars = []
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        left, right, top = axes.across(low), axes.across(high), axes.up(count)
        title = f"{short(low)} to {short(high)}: {count:,} {what}"
        bars.append(f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
                    f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{escape(title)}</title></rect>')  # fmt: skip
    return svg(axes.frame(short, short, label) + "".join(bars), f"{what} by {label}")


def stripe(parts: Sequence[tuple[str, float]]) -> str:
    """Return one bar cut into shares, as HTML: name and share of each."""
    total = sum(value for _, value in parts) or 1.0
    cells = "".join(
        f'<i class="s{number}" style="width:{value / total:.2%}" title="{escape(name)} {value / total:.1%}"></i>'
        for number, (name, value) in enumerate(parts)
    )
    legend = "".join(f'<li><b class="s{number}"></b>{escape(name)} <span>{value / total:.1%}</span></li>'
                     for number, (name, value) in enumerate(parts))  # fmt: skip
    return f'<div class="stripe">{cells}</div><ul class="legend">{legend}</ul>'


def spread(quantiles: Sequence[float], mean: float, largest: float, scale: tuple[float, float]) -> str:
    """Return one distribution as a line on a shared logarithmic scale: 1 to 99%, the middle half, median, mean."""
    low, high = (math.log10(value) for value in scale)

    def at(value: float) -> float:
        return 400 * (math.log10(min(max(value, scale[0]), scale[1])) - low) / (high - low or 1.0)

    first, quarter, median, three_quarters, last = quantiles
    title = f"1%: {first:.4g}, median: {median:.4g}, 99%: {last:.4g}, largest: {largest:.4g}, r.m.s.: {mean:.4g}"
    width = max(at(three_quarters) - at(quarter), 1)
    return (
        f'<svg class="spread" viewBox="0 0 400 20" preserveAspectRatio="none"><title>{title}</title>'
        f'<line class="thin" x1="{at(first):.1f}" x2="{at(last):.1f}" y1="10" y2="10"/>'
        f'<line class="far" x1="{at(last):.1f}" x2="{at(largest):.1f}" y1="10" y2="10"/>'
        f'<rect class="half" x="{at(quarter):.1f}" width="{width:.1f}" y="4" height="12"/>'
        f'<line class="median" x1="{at(median):.1f}" x2="{at(median):.1f}" y1="2" y2="18"/>'
        f'<line class="largest" x1="{at(largest):.1f}" x2="{at(largest):.1f}" y1="5" y2="15"/></svg>'
    )
