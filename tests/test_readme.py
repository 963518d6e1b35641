"""What the README says to type works: the reading example is run, the flags and commands exist."""

import json
import re
import subprocess
import sys

import pytest

from tests.workers import ROOT, extract, make_streams, python, text_of, write_corpus

README = (ROOT / "README.md").read_text()


def test_the_reading_example_runs(tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(i, 9) for i in range(4)]), tmp_path / "streams")
    result = extract(streams, tmp_path / "workflow/run-fineweb")
    assert result.returncode == 0, result.stderr
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "blocks.1.hook_resid_post" in result.stdout, result.stderr


@pytest.mark.parametrize("command", ["extract_activations.py run", "extract_activations.py verify",
                                     "extract_activations.py plan",
                                     "create_dataset_streams.py fineweb", "create_dataset_streams.py arc-agi",
                                     "create_dataset_streams.py ai2-arc", "create_dataset_streams.py text",
                                     "create_dataset_streams.py check"])
def test_the_commands_explain_themselves(command):
    result = python(*command.split(), "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


def test_every_flag_of_the_table_exists():
    table = README.partition("## Flags")[2].partition("\n## ")[0]
    shown = python("extract_activations.py", "run", "--help").stdout
    flags = set(re.findall(r"`(--[a-z-]+)`", table))
    assert len(flags) > 10
    assert all(flag in shown for flag in flags)


def test_its_figures_of_the_fault_campaign_are_those_that_were_measured():
    results = json.loads((ROOT / "benchmarks/results/fault_campaign.json").read_text())
    (figures,) = re.findall(
        r"([\d,]+) kills at random moments, ([\d,]+) resumes, ([\d,]+) batches in ([\d,]+) objects .*?, (\w+) mismatches",
        README.replace("\n", " "),
    )  # fmt: skip
    assert figures == (*(f"{results[name]:,}" for name in ("kills", "resumes", "batches", "objects")), "no")
    assert (results["mismatches"], results["problems"]) == (0, [])


def test_the_test_command_is_what_ci_runs():
    assert "-m pytest" in README and "'.[test]'" in README
    ci = (ROOT / ".ci/run").read_text()
    assert "'.[test]'" in ci and "-m pytest" in ci
