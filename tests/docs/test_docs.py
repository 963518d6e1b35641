"""The pages under docs/ say what is so: the format as it is written, the flags and files that exist."""

import ast
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import checkpoint
from extraction.batching.token_selection import Selection, Selector
from extraction.datasets.ai2_arc import question
from extraction.format.safetensors import decode
from extraction.models.accelerators import GPUS, SLICES
from extraction.models.config import OF_A_MIXTURE
from extraction.models.config_file import read_model_config
from extraction.models.families import FAMILIES
from extraction.models.hooks import EMBED_HOOK, FINAL_HOOK, HOOK_KINDS, LOSS_HOOK
from extraction.storage import Storage, open_storage
from extraction.streams.build.row_files import Located
from extraction.worker.loop import StageTimes
from tests.helpers import runs
from tests.helpers.known_models import ACCEPTED, FOLDER, WITHOUT_A_FILE
from tests.helpers.runs import WIDTHS, make_run
from tests.helpers.workers import MODEL, ROOT, extract_here, make_streams, python, text_of, write_corpus

DOCS = ROOT / "docs"
FORMAT = (DOCS / "storage-format.md").read_text()
DTYPES = {"int64": "I64", "int32": "I32", "float64": "F64", "float32": "F32", "bfloat16": "BF16"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    storage = open_storage(str(tmp_path_factory.mktemp("run")))
    make_run(storage, [[8] * 3])
    return storage


def rows_of_cells(page: str, first_column: str) -> list[list[str]]:
    """Each row of the page's table that begins with this head."""
    table = page.partition(f"| {first_column} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def rows_of_table(page: str, first_column: str) -> list[list[list[str]]]:
    """The words in backquotes of each cell of each row of the page's table that begins with this head."""
    return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows_of_cells(page, first_column)]


def keys_of_table(first_column: str, page: str = FORMAT) -> set[str]:
    return {key for row in rows_of_table(page, first_column) for key in row[0]}


def run_examples(page: str, **names: str) -> str:
    """What the Python of a page prints, in order; a block that begins with a file's name is a quotation."""
    blocks = re.findall(r"```python\n(?!# extraction/)(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    given = [f"{name} = {value!r}" for name, value in names.items()]
    result = subprocess.run([sys.executable, "-c", "\n".join(given + blocks)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_table_of_a_commit_has_its_keys(output):
    commit = json.loads(output.read("worker-00000/commits/00000000.json"))
    assert keys_of_table("key") == commit.keys()


def test_the_table_of_a_data_object_has_its_arrays(output, tmp_path, monkeypatch):
    """Of means with scales all."""
    means = open_storage(str(tmp_path))
    monkeypatch.setattr(runs, "DTYPE", np.dtype(np.int8))
    make_run(means, [[8] * 3], selector=Selector(Selection.parse("mean")))
    shard, pooled = (decode(run.read("worker-00000/batches/00000000.safetensors")) for run in (output, means))
    named = {key.replace("<hook point>", hook) for key in keys_of_table("array") for hook in WIDTHS}
    assert named == shard.arrays.keys() | pooled.arrays.keys()
    assert list(shard.arrays)[:2] == ["record_index", "record_offsets"]
    assert {"format", "stream", "batch", "record_ids"} <= shard.metadata.keys()


def test_the_table_of_a_batch_file_has_its_dtypes_and_shapes(output):
    """`verify` expects the layout that the loop allocates; here the page says what that is."""
    arrays = decode(output.read("worker-00000/batches/00000000.safetensors")).arrays
    sizes = {"N": len(arrays["tokens"]), "R": len(arrays["record_index"])}
    assert sizes == {"N": 16, "R": 2}
    for array, form, _ in rows_of_cells(FORMAT, "array"):
        for hook, width in WIDTHS.items():
            found = arrays.get(array.strip("`").replace("<hook point>", hook))
            if found is not None:
                axes = re.search(r"\[(.*)\]", form)[1].split(", ")
                named = sizes | {"R+1": sizes["R"] + 1, "width": width}
                assert list(found.shape) == [named.get(axis) or int(axis) for axis in axes], array
                assert DTYPES[found.dtype.name] in re.findall(r"\w+", form), array


def test_run_json_has_what_the_page_says(output):
    described = FORMAT.partition("`run.json` holds ")[2].partition("\n\n")[0]
    assert json.loads(output.read(checkpoint.RUN)).keys() <= set(re.findall(r"`([^`]+)`", described))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_and_files_exist(page):
    text = (DOCS / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists(), target
    for name in re.findall(r"`((?:deploy|benchmarks|examples|extraction|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "status"])
def test_flags_that_the_pages_name_exist(command):
    shown = python("extract_activations.py", command, "--help").stdout
    flags = {
        "run": ("--idle-after", "--metrics-port", "--metrics-host", "--log-format"),
        "status": ("--watch", "--json", "--stuck-after"),
    }
    text = (DOCS / "operations.md").read_text()
    assert all(flag in shown and flag in text for flag in flags[command])


def test_the_probe_takes_a_key_that_a_dataset_writes():
    row = {"id": "a", "question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    meta = question(Located("here", row), with_answer=False).meta
    keys = set(re.findall(r'record\.meta\["(\w+)"\]', (DOCS / "reading.md").read_text()))
    assert keys and keys <= meta.keys()


@pytest.mark.slow
def test_the_recipes_of_dictionaries_learn(tmp_path):
    """Of two models over the same tokens: the second is the first with noise on its weights."""
    pytest.importorskip("torch")
    other = tmp_path / "model"
    shutil.copytree(MODEL, other)
    tensors, rng = load_file(other / "model.safetensors"), np.random.default_rng(0)
    noisy = {
        name: tensor + 0.02 * rng.standard_normal(tensor.shape).astype(tensor.dtype) for name, tensor in tensors.items()
    }
    save_file(noisy, other / "model.safetensors")
    texts = [text_of(number, 12 + number) for number in range(12)]
    streams = make_streams(write_corpus(tmp_path / "corpus", texts), tmp_path / "streams")
    for name, model, rows in (("one", MODEL, 2), ("two", other, 3)):
        flags = ("--model", model, "--hooks", "clt,transcoder", "--layers", "all", "--batch-size", rows)
        extract_here(streams, tmp_path / name, *flags)
    printed = run_examples("dictionaries.md", OUTPUT=str(tmp_path / "one"), OTHER=str(tmp_path / "two"))
    assert printed.splitlines() == ["transcoder True", "cross-layer transcoder True", "crosscoder True"]


@pytest.mark.slow
def test_the_reading_examples_run(output):
    pytest.importorskip("torch")
    assert "torch.bfloat16" in run_examples("reading.md", OUTPUT=output.location)


def test_the_settings_of_saelens_are_counted_right():
    said = re.search(r"needs (\d+) settings", (DOCS / "python.md").read_text())
    calls = [
        node for node in ast.walk(ast.parse((ROOT / "benchmarks/peers.py").read_text())) if isinstance(node, ast.Call)
    ]
    (made,) = [call for call in calls if getattr(call.func, "id", "") == "CacheActivationsRunnerConfig"]
    assert said and int(said[1]) == len(made.keywords)


@pytest.mark.slow
def test_the_examples_in_one_call_run(tmp_path):
    assert "'first': (1, 128)" in run_examples("python.md", MODEL=str(MODEL), OUTPUT=str(tmp_path / "run"))


def test_the_table_of_accelerators_has_the_figures_that_plan_uses():
    rows = rows_of_cells((DOCS / "performance.md").read_text(), "accelerator")
    chips = {name.partition("-")[0]: found.chip for name, found in SLICES.items()} | GPUS
    assert {row[0] for row in rows} == set(chips)
    for name, flops, in_float32, memory, bandwidth, link, *prices in rows:
        chip = chips[name]
        size, unit = re.fullmatch(r"(?:75% of )?(\d+) (GiB|GB)", memory).groups()
        assert chip.memory_bytes == (int(size) << 30 if unit == "GiB" else int(0.75 * int(size) * 1e9))
        assert float(in_float32) * 1e12 == pytest.approx(chip.float32_flops, rel=2e-3)
        rates = (float(flops) * 1e12, float(bandwidth.replace(",", "")) * 1e9, float(link.split(",")[0]) * 1e9)
        assert rates == (chip.flops, chip.bandwidth, chip.link)
        assert [None if price == "unknown" else float(price) for price in prices] == [chip.on_demand, chip.spot]


def test_the_table_of_hook_points_has_all_by_their_short_names():
    rows = rows_of_table((DOCS / "hook-points.md").read_text(), "name")
    named = {name: short for (name,), short, *_ in rows}
    of_blocks = {f"blocks.{{l}}.{kind.suffix}": [kind.short] for kind in HOOK_KINDS}
    assert named == of_blocks | {EMBED_HOOK: ["embed"], FINAL_HOOK: ["final"], LOSS_HOOK: ["loss"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`rope_scaling`:FutureWarning")  # a class without rotation warns of the key
def test_the_table_of_families_says_what_is_absent(tmp_path):
    absent = {}
    for name in ACCEPTED:
        (tmp_path / "config.json").write_bytes((FOLDER / f"{name}.json").read_bytes())
        config = read_model_config(tmp_path)
        absent.setdefault(config.family, set()).update(*map(config.absent_hooks, range(config.num_layers)))
        absent[config.family] -= set(OF_A_MIXTURE)
    rows = rows_of_table((DOCS / "hook-points.md").read_text(), "model types")
    assert {family: set(row[3]) for row in rows for family in row[0] if family not in WITHOUT_A_FILE} == absent
    assert absent.keys() == FAMILIES.keys() - WITHOUT_A_FILE


@pytest.mark.slow
def test_the_example_of_hook_points_runs():
    assert run_examples("hook-points.md").splitlines() == [
        "blocks.0.hook_resid_pre 128",
        "blocks.0.mlp.hook_post 384",
        "blocks.1.hook_attn_out 128",
        "blocks.1.hook_mlp_out 128",
        "blocks.3.hook_resid_pre 128",
        "blocks.3.mlp.hook_post 384",
        "ln_final.hook_normalized 128",
        "last [9]",
        "every:4 [0 4 8]",
        "0,5,-1 [0 5 9]",
        "1:-1:3 [1 4 7]",
    ]


@pytest.mark.slow
def test_the_stages_are_those_of_the_loop(output):
    page = (DOCS / "performance.md").read_text()
    _, *lines = StageTimes(step=1.0).table()
    stages = [line.split()[0] for line in lines]
    assert keys_of_table("largest", page) == set(stages)
    printed = page.partition("```\n")[2].partition("```")[0].splitlines()[1:]
    without_figures = [[re.sub(r" +[\d.]+( s|%)", "", line) for line in table] for table in (printed, lines)]
    assert without_figures[0] == without_figures[1]
    assert run_examples("performance.md", OUTPUT=output.location).startswith("0 {'step': 1.0, 'upload': ")


def test_the_table_of_a_storage_has_its_methods():
    assert keys_of_table("method", (DOCS / "adding.md").read_text()) == Storage.__abstractmethods__


BARS = rows_of_cells((DOCS / "performance.md").read_text(), "question")


@pytest.mark.parametrize("row", BARS, ids=lambda row: row[0])
def test_the_figures_of_performance_are_those_that_were_measured(row):
    _, bar, reached, where = row
    name, path = re.findall(r"`([^`]+)`", where)
    value = json.loads((ROOT / "benchmarks/results" / name).read_text())
    for key in path.split("/"):
        value = value[key]
    assert reached == str(value)
    if limit := re.fullmatch(r"at (least|most) ([\d.]+)", bar):
        assert value >= float(limit[2]) if limit[1] == "least" else value <= float(limit[2])


@pytest.mark.parametrize(
    "name, title",
    [
        ("throughput", "How fast is it next to what others do?"),
        ("capture", "What does capture cost?"),
        ("storage", "How fast is a batch stored and committed?"),
        ("pins", "What does it cost to compare a source with its manifest?"),
    ],
)
def test_the_figures_of_a_benchmark_are_those_that_were_measured(name, title):
    section = (ROOT / "benchmarks/README.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = [cell.strip() for line in section.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]]
    shown = [cell.replace(",", "") for cell in cells if re.fullmatch(r"[\d.,]+", cell)]
    results = (ROOT / "benchmarks/results").glob(f"{name}*.json")
    measured = set(re.findall(r"[\d.]+", " ".join(path.read_text() for path in results)))
    assert shown and set(shown) <= measured
