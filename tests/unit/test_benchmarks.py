"""Every benchmark explains itself and gives its results as one line of JSON."""

import importlib
import json
import shutil

import click
import pytest
from click.testing import CliRunner

from benchmarks import outcome
from benchmarks.throughput import Rate, Setting, summary
from tests.helpers.workers import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "@click.command" in path.read_text())


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "peers"])
def test_each_has_help_and_json(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    result = CliRunner().invoke(importlib.import_module(f"benchmarks.{name}").main, ["--help"])
    assert result.exit_code == 0
    assert "--json" in result.output and "--output" in result.output


@pytest.mark.parametrize("flags, printed", [(["--json"], '{"answer": 42}\n'), ([], "the answer is 42\n")])
def test_results_are_one_line_of_json_or_text(tmp_path, flags, printed):
    @click.command()
    @outcome.gives_results
    def measure(as_json, output):
        outcome.note("on stderr")
        outcome.give({"answer": 42}, "the answer is 42", as_json, output)

    result = CliRunner().invoke(measure, [*flags, "--output", tmp_path / "results.json"])
    assert (result.stdout, result.stderr) == (printed, "on stderr\n")
    assert json.loads((tmp_path / "results.json").read_text()) == {"answer": 42}


def test_the_share_of_the_machines_rate_is_that_of_the_arithmetic_of_all_computed_slots(tmp_path):
    """SmolLM2-135M up to layer 15 or whole: two operations for each weight of a block, and half of all pairs of a row."""
    shutil.copy(ROOT / "tests/model_configs/SmolLM2-135M.json", tmp_path / "config.json")
    setting = Setting(tmp_path, tmp_path, 15, "float32", 512, 8, 300, 48, 3, 90, None)
    rates = {"ours": Rate(741, 0.078), "hf-padded": Rate(150, 0.5)}
    found = summary(setting, [{"torch": 110.0, "xla": 117.0}] * 3, [rates] * 3)
    weights = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    block = 2 * weights + 4 * 576 * 512 / 2
    shares = {"ours": 741 / 0.922 * 16 * block / 117e9, "hf-padded": 150 / 0.5 * 30 * block / 117e9}
    assert found["share_of_matmul"] == pytest.approx(shares, abs=1e-3)
    assert found["padding"] == {"ours": 0.078, "hf-padded": 0.5} and found["ours_over"] == {"hf-padded": 4.94}
