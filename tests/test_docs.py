"""The pages under docs/ say what is so: the format as it is written, the flags and files that exist."""

import json
import re
import subprocess
import sys

import pytest

import checkpoint
from extraction.shards import decode
from extraction.storage import open_storage
from tests.runs import WIDTHS, make_run
from tests.workers import ROOT, python

DOCS = ROOT / "docs"
FORMAT = (DOCS / "storage-format.md").read_text()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    storage = open_storage(str(tmp_path_factory.mktemp("run")))
    make_run(storage, [[8] * 3])
    return storage


def keys_of_table(first_column: str) -> set[str]:
    """What stands in backquotes in the first column of the table that begins with this head."""
    table = FORMAT.partition(f"| {first_column} |")[2].partition("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_the_table_of_a_commit_has_its_keys(output):
    commit = json.loads(output.read("worker-00000/commits/00000000.json"))
    assert keys_of_table("key") == commit.keys()


def test_the_table_of_a_data_object_has_its_arrays(output):
    shard = decode(output.read("worker-00000/batches/00000000.safetensors"))
    named = {key.replace("<hook point>", hook) for key in keys_of_table("array") for hook in WIDTHS}
    assert named == shard.arrays.keys()
    assert list(shard.arrays)[:2] == ["record_index", "record_offsets"]
    assert {"schema", "worker_id", "batch", "record_ids"} <= shard.metadata.keys()


def test_run_json_has_what_the_page_says(output):
    described = FORMAT.partition("`run.json` holds ")[2].partition("\n\n")[0]
    assert checkpoint.read_run(output).keys() <= set(re.findall(r"`([^`]+)`", described))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_and_files_exist(page):
    text = (DOCS / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists(), target
    for name in re.findall(r"`((?:deploy|benchmarks|examples|extraction)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", ["run", "status"])
def test_flags_that_the_pages_name_exist(command):
    shown = python("extract_activations.py", command, "--help").stdout
    flags = {"run": ("--idle-after", "--metrics-port", "--log-format"),
             "status": ("--watch", "--json", "--stuck-after")}
    text = (DOCS / "operations.md").read_text()
    assert all(flag in shown and flag in text for flag in flags[command])


def test_the_reading_examples_run(output):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "reading.md").read_text(), re.DOTALL))
    result = subprocess.run([sys.executable, "-c", f"OUTPUT = {output.location!r}\n{code}"], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "torch.bfloat16" in result.stdout
