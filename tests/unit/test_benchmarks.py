"""Every benchmark explains itself and gives its results as one line of JSON."""

import importlib
import json

import click
import pytest
from click.testing import CliRunner

from benchmarks import outcome
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
