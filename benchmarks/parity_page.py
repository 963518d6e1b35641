"""The tables of docs/parity.md, made of what `parity_table.py` found."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CHOICE = "expert_indices"  # a share of tokens, no relative error
SAME = 1e-5  # below this relative error two tensors are the same
HEAD = """# Parity with transformers

Made by `{command}` on {date}, on a CPU,
with {versions}.
All figures, of each kind of hook point: `benchmarks/results/parity.json`.

Each number is the relative error over all tokens, ‖ours - theirs‖ / ‖theirs‖, of the hook point and layer where it is
largest. Ours are packed with other documents; theirs are transformers' model in float32 with plain attention, one
document at a time. *Worst token* is the largest relative error of one token there. SmolLM2 has its published weights
(dequantised from a GGUF file) and reads paragraphs of the project's pages; the others are tiny random models, one for
each model type. In bfloat16 a mixture may choose other experts where two scores are near: *other experts* is the
share of such tokens in the worst layer; their values differ entirely, also in later layers. The tests compare these
models, and one or more with unusual settings for each family, in float32 at every hook point.

| model type | float32 | where | worst token | bfloat16 | where | worst token | other experts |
|---|---|---|---|---|---|---|---|"""
LENS_HEAD = """
## The same names in TransformerLens

Of each family one model was also run by the bridge of TransformerLens {version}, as it is after loading, and each of
its hooks was compared with transformers' tensor of each hook point, in float32. *Same* counts the hook points whose
name has the same tensor there (relative error below 1e-5), *largest error* is of these. *Another tensor*: the name
exists there for something else. *No such name*: it does not exist. After an arrow is a name in the block that has the
tensor, `-` if none has. [Hook points](hook-points.md#names-in-other-tools) says what this means.

| model type | same | largest error | another tensor | no such name |
|---|---|---|---|---|"""


class Row(NamedTuple):
    """Of a model: a compute dtype, or `lens`, and what was found, by the short names of hook points."""

    model: str
    kind: str
    found: dict[str, Any]


def page_of(results: Mapping[str, Any]) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [HEAD.format(command=results["command"], date=results["date"], versions=versions)]
    lines += [_row(name, kinds) for name, kinds in results["models"].items()]
    lens = {name: kinds["lens"] for name, kinds in results["models"].items() if "lens" in kinds}
    if lens:
        lines += [LENS_HEAD.format(version=results["versions"]["transformer-lens"])]
        lines += [f"| `{name}` | {_lens_cells(found)} |" for name, found in lens.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, kinds: Mapping[str, Any]) -> str:
    cells = [f"`{name}`"]
    for dtype in ("float32", "bfloat16"):
        errors = {short: error for short, error in kinds[dtype]["relative_error"].items() if short != CHOICE}
        short = max(errors, key=errors.__getitem__)
        cells += [f"{errors[short]:.1e}", f"`{short}`", f"{kinds[dtype]['worst_token'][short]:.1e}"]
    choice = kinds["bfloat16"]["relative_error"].get(CHOICE)
    cells.append("-" if choice is None else f"{choice:.1%}")
    return f"| {' | '.join(cells)} |"


def _lens_cells(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return f"- | - | does not load: {found['refused']} | "
    equal, errors = found["equal"], found["same_name"]
    named = {short: error for short, error in errors.items() if error is not None}
    same = {short: error for short, error in named.items() if error < SAME}
    other = ", ".join(_renamed(short, equal) for short in named if short not in same)
    absent = ", ".join(_renamed(short, equal) for short in errors if short not in named)
    return f"{len(same)} of {len(errors)} | {max(same.values(), default=0.0):.0e} | {other} | {absent}"


def _renamed(short: str, equal: Mapping[str, str]) -> str:
    return f"`{short}` → `{equal[short].split()[0]}`" if equal[short] else f"`{short}` → -"
