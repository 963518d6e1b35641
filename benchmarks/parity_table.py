#!/usr/bin/env python
"""docs/parity.md: the distance from transformers at every hook point, of every family and of a real model.

    python benchmarks/parity_table.py --page docs/parity.md --model PATH

Of each family a tiny random model (those of the tests), whose documents are packed here and run alone there; with
`--model` also a real model over the paragraphs of the README and the docs. The reference is transformers in float32
with plain attention. A number is the relative error over all tokens, ‖ours - theirs‖ / ‖theirs‖, the worst layer's.
"""

import datetime
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from extraction.models.hooks import BY_SUFFIX, suffix_of  # noqa: E402

Errors = dict[str, float]  # short name of a hook point -> the worst layer's relative error
DTYPES = ("float32", "bfloat16")


def worst_by_kind(errors: Mapping[str, float]) -> Errors:
    """Return the largest error of the layers of each hook point."""
    found: Errors = {}
    for name, error in errors.items():
        short = BY_SUFFIX[suffix_of(name)].short
        found[short] = max(found.get(short, 0.0), error)
    return found


def of_tiny_models(folder: Path) -> Iterator[tuple[str, str, Errors]]:
    """Yield name, compute dtype and errors of each tiny model of the tests."""
    from tests.helpers.tiny_configs import CONFIGS
    from tests.helpers.tiny_models import TinyModel, documents, error, load, run

    for name in CONFIGS:
        model = TinyModel(name, folder / name)
        for dtype in DTYPES:
            store = "float32" if dtype == "float32" else "bfloat16"
            ours, _ = run(load(model.folder, compute_dtype=dtype, store_dtype=store), documents())
            errors = {hook: float(error(ours[hook], theirs)) for hook, theirs in model.reference.items()}
            note(f"{name}, {dtype}: {max(errors.values()):.2g}")
            yield name, dtype, worst_by_kind(errors)


def of_real_model(model: str, num_records: int) -> Iterator[tuple[str, str, Errors]]:
    """Yield name, compute dtype and errors of a model folder over real text."""
    from extraction.tools.parity import measure
    from extraction.worker.flags import ParityFlags

    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        text.write("\n\n".join(page.read_text() for page in pages))
        text.flush()
        for dtype in DTYPES:
            flags = ParityFlags(
                model=model, text=text.name, records=num_records, seq_len=256, batch_size=4, compute_dtype=dtype,
                store_dtype="float32" if dtype == "float32" else "bfloat16",
            )  # fmt: skip
            found = measure(flags)
            errors = {name: distance.relative_error for name, distance in found.distances.items()}
            note(f"{model}, {dtype}, {found.setting['tokens']} tokens: {max(errors.values()):.2g}")
            yield Path(model).name, dtype, worst_by_kind(errors)


def page_of(rows: list[tuple[str, str, Errors]], real: list[tuple[str, str, Errors]]) -> str:
    """Return the page, a table for each compute dtype."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "torch", "transformers"))
    lines = [
        "# Parity with transformers", "",
        "Made by `python benchmarks/parity_table.py --page docs/parity.md --model PATH` on "
        f"{datetime.date.today().isoformat()}, on a CPU, with {versions}.", "",
        "Each number is the relative error over all tokens, ‖ours - theirs‖ / ‖theirs‖, of the worst layer. Ours are",
        "packed with other documents; theirs are transformers' model in float32 with plain attention, one document at",
        "a time. Models are tiny random ones, a line for each setting of the tests; `-` where a hook point is absent.",
    ]  # fmt: skip
    shorts = [kind.short for kind in BY_SUFFIX.values()]
    for dtype in DTYPES:
        lines += [
            "",
            f"## Compute dtype {dtype}",
            "",
            f"| model | {' | '.join(shorts)} |",
            "|---" * (len(shorts) + 1) + "|",
        ]
        for name, of, errors in [*real, *rows]:
            if of == dtype:
                lines.append(f"| {name} | {' | '.join(f'{errors[s]:.0e}' if s in errors else '-' for s in shorts)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--model", help="A model folder to compare on real text too.")
@click.option("--records", default=24, show_default=True, help="Paragraphs for --model.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write the tables there.")
@gives_results
def main(model: str | None, records: int, page: Path | None, as_json: bool, output: Path | None) -> None:
    """Measure every model and write the page."""
    real = list(of_real_model(model, records)) if model else []
    with tempfile.TemporaryDirectory() as folder:
        tiny = list(of_tiny_models(Path(folder)))
    text = page_of(tiny, real)
    if page:
        page.write_text(text)
    results = about("jax", "flax", "torch", "transformers") | {"errors": [*real, *tiny]}
    give(results, text, as_json, output)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
