"""Real tokens a second, end to end, next to what others do with the same documents and model on this machine.

In: a corpus (examples/make_corpus.py). Out, for each dtype and shape of a step: the medians over `--rounds` rounds in
which all take turns in the same order: real tokens per second, padding (the share of computed slots without a token),
and the share of the machine's rate of matrix products (benchmarks/matmul_rate.py, measured in each round) that the
arithmetic of the computed slots reaches. A contender that runs the whole model is counted with the whole model.

The model has SmolLM2-135M's sizes and random weights, unless `--model` names a folder, and the hook point is the output
of `--layer`. Ours is a whole worker with its default batches: records read, tokenised, packed, computed, stored and
committed in a local folder. The peers are those of benchmarks/peers.py; sae-lens has pins of its own, so it is run by
the interpreter given by `--saelens`. Both take `--documents`; the loops over transformers, several times slower, take
the first `--slow-documents`.

    python benchmarks/throughput.py --corpus DIR --saelens VENV/bin/python --output benchmarks/results/throughput.json

Start-up and compilation are left out for all. Each dtype and shape takes at most about `--minutes`.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.matmul_rate import instruction_set  # noqa: E402
from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from benchmarks.worker import make_135m, make_stream, run_worker  # noqa: E402
from extraction.models.config_file import read_model_config  # noqa: E402
from extraction.models.cost import ideal_flops  # noqa: E402
from extraction.models.step_options import StepOptions  # noqa: E402

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "numpy")
PEER_ROWS = 8
SLOW = ("hf-padded", "hf-packed")  # which also run the layers above the hook point


class Rate(NamedTuple):
    """Of one run: real tokens per second, and the share of computed slots without a token."""

    tokens_per_second: float
    padding: float


@dataclass(frozen=True)
class Setting:
    """What is measured, how often and for how long; `saelens` is the interpreter that has it."""

    model: Path
    corpus: Path
    layer: int
    dtype: str
    seq_len: int
    rows: int
    documents: int
    slow_documents: int
    rounds: int
    minutes: float
    saelens: str | None

    def flops_per_slot(self, name: str) -> float:
        """Operations of a contender on one slot."""
        config = read_model_config(self.model)
        layer = config.num_layers - 1 if name in SLOW else self.layer
        step = StepOptions((f"blocks.{layer}.hook_resid_post",), 1, self.seq_len, self.dtype, "bfloat16")
        return ideal_flops(config, step) / self.seq_len


def matmul_gflops(dtype: str) -> dict[str, float]:
    """GFLOP/s of each library, measured in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/matmul_rate.py"), "--rounds", "3", "--dtypes", dtype, "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {library: rates[dtype] for library, rates in found["gflops"].items()}


def run_peer(python: str, kind: str, setting: Setting, output: Path) -> Rate:
    command = [python, str(ROOT / "benchmarks/peers.py"), kind, "--model", str(setting.model)]
    command += ["--corpus", str(setting.corpus), "--layer", str(setting.layer), "--seq-len", str(setting.seq_len)]
    command += ["--documents", str(setting.slow_documents if kind in SLOW else setting.documents)]
    command += ["--dtype", setting.dtype, "--batch-size", str(PEER_ROWS), "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if result.returncode:
        raise SystemExit(f"{kind} failed: {result.stderr[-2000:]}")
    found = json.loads(result.stdout.strip().splitlines()[-1])
    return Rate(found["tokens"] / found["seconds"], 1 - found["tokens"] / found["slots"])


def contenders_of(work: Path, setting: Setting) -> dict[str, Callable[[Path], Rate]]:
    """For each who takes part, a run that gives its rate; `ours` first, its step compiled."""
    streams, cache = work / "streams", work / f"cache-{setting.dtype}-{setting.seq_len}"
    flags = {
        "layers": setting.layer,
        "seq-len": setting.seq_len,
        "batch-size": setting.rows,
        "compute-dtype": setting.dtype,
    }
    run_worker(setting.model, streams, work / f"warm-{cache.name}", flags | {"max-records": 8}, cache)

    def ours(output: Path) -> Rate:
        found = run_worker(setting.model, streams, output, flags | {"max-records": setting.documents}, cache)
        return Rate(found["tokens_per_second"], found["padding_share"])

    peers = dict.fromkeys(SLOW, sys.executable) | ({"saelens": setting.saelens} if setting.saelens else {})
    return {"ours": ours} | {name: partial(run_peer, python, name, setting) for name, python in peers.items()}


def measure(work: Path, setting: Setting, tell: Callable[[dict], None]) -> None:
    """Rounds in which all take turns, as many as asked for and as fit into the time; what is known goes to `tell`."""
    runs, begin, longest = contenders_of(work, setting), time.perf_counter(), 0.0
    gflops: list[dict[str, float]] = []
    rounds: list[dict[str, Rate]] = []
    for number in range(setting.rounds):
        since = time.perf_counter()
        if since + longest - begin > setting.minutes * 60:
            note(f"no time for round {number + 1} within {setting.minutes:g} minutes")
            break
        gflops.append(matmul_gflops(setting.dtype))
        rounds.append({})
        for name, run in runs.items():
            output = work / f"{setting.dtype}-{setting.seq_len}-{name}-{number}"
            rounds[-1][name] = run(output)
            shutil.rmtree(output)
            note({name: rounds[-1][name]._asdict()})
        longest = max(longest, time.perf_counter() - since)
        tell(summary(setting, gflops, rounds))


def summary(setting: Setting, gflops: list[dict[str, float]], rounds: list[dict[str, Rate]]) -> dict:
    """Medians of the rounds, and our rate over those of the others."""

    def median(of: Callable[[str, Rate, float], float], digits: int) -> dict[str, float]:
        found = {
            name: [of(name, turn[name], max(rates.values())) for turn, rates in zip(rounds, gflops, strict=True)]
            for name in rounds[0]
        }
        return {name: round(statistics.median(values), digits) for name, values in found.items()}

    rates = median(lambda name, rate, best: rate.tokens_per_second, 1)
    flops = {name: setting.flops_per_slot(name) for name in rates}
    return {
        "matmul_gflops": {name: statistics.median(found[name] for found in gflops) for name in gflops[0]},
        "tokens_per_second": rates,
        "padding": median(lambda name, rate, best: rate.padding, 4),
        "share_of_matmul": median(
            lambda name, rate, best: rate.tokens_per_second / (1 - rate.padding) * flops[name] / (best * 1e9), 3
        ),
        "ours_over": {name: round(rates["ours"] / rate, 2) for name, rate in rates.items() if name != "ours"},
        "rounds": {name: [round(turn[name].tokens_per_second, 1) for turn in rounds] for name in rates},
        "documents": {name: setting.slow_documents if name in SLOW else setting.documents for name in rates},
    }


@click.command()
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=None, type=click.Path(exists=True, path_type=Path), help="By default random weights.")
@click.option("--layer", default=15, show_default=True, help="Whose output is stored.")
@click.option("--documents", default=300, show_default=True)
@click.option("--slow-documents", default=48, show_default=True, help="Of the loops over transformers.")
@click.option("--shapes", default="512x8,1024x2", show_default=True, help=f"T x B; the peers take {PEER_ROWS} rows.")
@click.option("--dtypes", default="float32,bfloat16", show_default=True, help="One after the other.")
@click.option("--rounds", default=3, show_default=True, help="Of each dtype and shape.")
@click.option("--minutes", default=90.0, show_default=True, help="No further round of a shape that would end later.")
@click.option("--saelens", default=None, help="Interpreter with sae-lens; by default this one, if it has it.")
@gives_results
def main(corpus: Path, model: Path | None, as_json: bool, output: Path | None, **asked) -> None:
    """Measure. Each round that ended is in `--output`; what it has of other dtypes and shapes stays."""
    saelens = asked["saelens"] or (sys.executable if importlib.util.find_spec("sae_lens") else None)
    results = json.loads(output.read_text()) if output and output.exists() else {}
    limits = {name: asked[name] for name in ("layer", "documents", "slow_documents", "rounds", "minutes")}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = model or make_135m(work / "model")
        make_stream(corpus, work / "streams")
        for dtype in asked["dtypes"].split(","):
            for shape in asked["shapes"].split(","):
                seq_len, rows = map(int, shape.split("x"))

                def tell(found: dict, dtype: str = dtype, shape: str = shape) -> None:
                    machine = about(*PACKAGES) | {"instructions": instruction_set()}
                    versions = machine | {"sae-lens": version_of_saelens(saelens)}
                    results.setdefault(dtype, {})[shape] = versions | found
                    if output:
                        output.write_text(json.dumps(results, indent=2) + "\n")

                shapes = {"seq_len": seq_len, "rows": rows}
                setting = Setting(model, corpus, dtype=dtype, saelens=saelens, **shapes, **limits)
                measure(work, setting, tell)
    give(results, "\n".join(as_text(results)), as_json, output)


def as_text(results: dict) -> list[str]:
    """Lines for people: the machine's rate, then each contender."""
    lines = []
    for dtype, shape, found in ((dtype, *item) for dtype, shapes in results.items() for item in shapes.items()):
        lines.append(f"{dtype} {shape}: {found['matmul_gflops']} GFLOP/s with {', '.join(found['instructions'])}")
        for name, rate in found["tokens_per_second"].items():
            padding, share = found["padding"][name], found["share_of_matmul"][name]
            over = found["ours_over"].get(name, 1)
            lines.append(
                f"  {name}: {rate} tokens/s, padding {padding:.1%}, {share:.1%} of that rate, ours over it {over}"
            )
    return lines


def version_of_saelens(python: str | None) -> str | None:
    code = "from importlib.metadata import version; print(version('sae-lens'))"
    return python and subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
