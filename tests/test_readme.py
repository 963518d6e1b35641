"""What the README says to type works: the reading example is run, the flags and commands exist."""

import json
import re
import subprocess
import sys

import pytest

from extraction import errors
from extraction.config import HOOK_SUFFIXES
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
                                     "extract_activations.py plan", "extract_activations.py status",
                                     "extract_activations.py report", "extract_activations.py export",
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


def test_it_links_to_every_page_and_each_link_leads_somewhere():
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert all((ROOT / link).exists() for link in links)
    assert {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()} <= links


def test_its_hook_points_and_exit_codes_are_those_of_the_code():
    sentence = README.partition("Each block has ")[2].partition(", short for")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(HOOK_SUFFIXES)
    table = README.partition("| code | meaning |")[2].splitlines()[2:]
    codes = {int(line.split("|")[1]) for line in table}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.ExtractionError]
    assert codes == {0} | {kind.exit_code for kind in kinds}


def test_its_layout_is_that_of_the_storage_format():
    layouts = [README.partition("## What lies in the output")[2], (ROOT / "docs/storage-format.md").read_text()]
    ours, theirs = (re.findall(r"worker-\w+/([\w.]+)", layout.split("```")[1]) for layout in layouts)
    assert sorted(ours) == sorted(theirs)
    assert {"commits", "starts", "ended"} <= set(ours)
