"""The part of a report about norms: by layer, by position, of each hook point, and the tokens that stand out.

In: `ReportFacts`. Out: sections of HTML.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from html import escape

import numpy as np

from ...models.hooks import layer_of, suffix_of
from . import charts
from .charts import Axes, section, short
from .facts import HookFacts, Outstanding, ReportFacts

Words = Callable[[int], str]
_FEW = 12  # rows that are shown without being asked for
_COLORS = 6


def _layers(facts: ReportFacts) -> dict[str, list[tuple[int, HookFacts]]]:
    """Return the hook points of each kind that has several layers, by layer."""
    found: dict[str, list[tuple[int, HookFacts]]] = defaultdict(list)
    for hook in facts.hooks:
        if hook.name.startswith("blocks.") and hook.median > 0:
            found[suffix_of(hook.name)].append((layer_of(hook.name), hook))
    return {name: sorted(hooks, key=lambda pair: pair[0]) for name, hooks in found.items() if len(hooks) > 2}


def by_layer(facts: ReportFacts) -> str:
    """Show how norms grow with depth: the median of each kind, its middle half, and the largest."""
    kinds = _layers(facts)
    if not kinds:
        return ""
    hooks = [pair for pairs in kinds.values() for pair in pairs]
    low, high = min(hook.quantiles[1] for _, hook in hooks), max(hook.largest for _, hook in hooks)
    layers = [layer for layer, _ in hooks]
    axes = Axes((min(layers), max(layers)), (max(low, 1e-9) / 1.2, high * 1.2), logarithmic=True)
    content = axes.frame(lambda layer: f"{layer:g}" if layer == round(layer) else "", short, "layer")
    for number, (name, pairs) in enumerate(kinds.items()):
        color = f"c{number % _COLORS}"
        middle = [(layer, max(hook.quantiles[1], 1e-9), hook.quantiles[3]) for layer, hook in pairs]
        content += charts.band(axes, middle, color)
        content += charts.path(
            axes, [(layer, hook.largest) for layer, hook in pairs], f"{color} far", f"{name}: largest"
        )
        content += charts.path(axes, [(layer, hook.median) for layer, hook in pairs], color, f"{name}: median")
    note = "Lines: the median norm of a token. Bands: the middle half. Dots: the largest. The scale is logarithmic."
    legend = charts.legend([name for name in kinds])
    return section("Norms by layer", note, charts.svg(content, "norms by layer") + legend)


def by_position(facts: ReportFacts) -> str:
    """Show attention sinks: the median norm at each position over the median of all."""
    curves = [(hook, _ratio_by_position(hook)) for hook in facts.hooks]
    curves = [(hook, points) for hook, points in curves if points]
    if not curves:
        return ""
    values = [y for _, points in curves for _, y in points]
    axes = Axes((0, max(x for _, points in curves for x, _ in points) or 1),
                (min(min(values), 0.5), max(max(values) * 1.1, 2.0)), logarithmic=True)  # fmt: skip
    content = axes.frame(short, short, "position in the window")
    strongest = max(curves, key=lambda curve: max(y for _, y in curve[1]))
    for hook, points in curves:
        if hook is not strongest[0]:
            content += charts.path(axes, points, "c0 faint", hook.name)
    content += charts.path(axes, strongest[1], "c0", strongest[0].name)
    peak = max(strongest[1], key=lambda point: point[1])
    times = f"{peak[1]:,.{0 if peak[1] >= 10 else 1}f}"
    note = (f"Median norm at a position in the window, of the sample, over the median of all; a line for each hook "
            f"point. The most: {times}× at position {peak[0]:.0f} of {strongest[0].name}.")  # fmt: skip
    return section("Norms by position", note, charts.svg(content, "norms by position"))


def _ratio_by_position(hook: HookFacts) -> list[tuple[float, float]]:
    return [(float(place), float(value / hook.median)) for place, value in enumerate(hook.by_position)
            if np.isfinite(value) and value > 0 and hook.median > 0]  # fmt: skip


def _folded(title: str, content: str, rows: int) -> str:
    """Return the content, folded if it is long."""
    if rows <= _FEW:
        return content
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def spreads(facts: ReportFacts) -> str:
    """Show the distribution of each hook point's norms, a line for each."""
    if not facts.hooks:
        return ""
    counted = [hook for hook in facts.hooks if not math.isnan(hook.largest)]
    low = min((max(hook.quantiles[0], 1e-9) for hook in counted), default=1.0)
    scale = (low / 1.1, max([low, *(hook.largest for hook in counted)]) * 1.1)
    cells = ['<div class="head">hook point</div><div class="head">1 to 99%, middle half, median; largest</div>']
    cells += [f'<div class="head number">{name}</div>' for name in ("r.m.s.", "median", "largest")]
    for hook in sorted(facts.hooks, key=lambda hook: suffix_of(hook.name)):  # by layer within a kind
        cells.append(
            f'<div class="name">{escape(hook.name)}</div>'
            f'<div class="picture">{_spread(hook, scale)}</div>'
            f'<div class="number rms" data-label="r.m.s.">{hook.rms:.4g}</div>'
            f'<div class="number" data-label="median">{hook.median:.4g}</div>'
            f'<div class="number" data-label="largest">{hook.largest:.4g}</div>'
        )
    note = f"The norm of each token's activation, on a logarithmic scale from {short(scale[0])} to {short(scale[1])}. "
    note += "Of all that are stored and have no NaN; quantiles and largest within 1%."
    table = _folded(f"{len(facts.hooks)} hook points", f'<div class="norms">{"".join(cells)}</div>', len(facts.hooks))
    return section("Norms", note, table, wide=True)


def _spread(hook: HookFacts, scale: tuple[float, float]) -> str:
    return "" if math.isnan(hook.largest) else charts.spread(hook.quantiles, hook.rms, hook.largest, scale)


def outstanding(facts: ReportFacts, words: Words | None) -> str:
    """List the tokens that distort training: of the hook points where their norms are largest."""
    ranked = sorted(facts.hooks, key=lambda hook: -hook.largest / max(hook.median, 1e-9))[:2]
    rows = [_outstanding_row(hook.name, found, words) for hook in ranked for found in hook.outstanding]
    if not rows:
        return ""
    names = ["norm / median", "position", "token id", *(["text"] if words else []), "coordinate", "its value"]
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    head = f"<tr><th>hook point</th>{head}<th>record</th></tr>"
    strong = [found for hook in facts.hooks for found in hook.outstanding if found.times > 5]
    first = sum(found.position % facts.run.config.seq_len == 0 for found in strong)
    note = "Tokens far above the median weigh most in a squared error; leave them out or scale them when training. "
    note += f"Those of a sample of {facts.sampled_tokens:,}, and of all tokens the one with the largest coordinate. "
    note += (
        f"Of those above 5×, as far as listed, {first} of {len(strong)} begin a window."
        if strong
        else "None of them is above 5× the median."
    )
    table = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    shown = table if strong else _folded("The largest", table, _FEW + 1)
    return section("Tokens that stand out", note, shown, wide=True)


def _outstanding_row(name: str, found: Outstanding, words: Words | None) -> str:
    said = [f"<code>{escape(repr(words(found.token)))}</code>"] if words else []
    numbers = [str(found.position), str(found.token), *said, str(found.coordinate), f"{found.value:,.4g}"]
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    hot = " hot" if found.times > 5 else ""
    return (
        f'<tr><td><code>{escape(name)}</code></td><td class="number{hot}">{found.times:,.1f}×</td>{cells}'
        f'<td class="id">{escape(found.record_id)}</td></tr>'
    )
