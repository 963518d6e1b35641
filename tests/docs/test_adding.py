"""The page on adding, followed to the letter: its files and lines go into a copy of the project, whose commands run."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers.workers import MODEL, ROOT, SMALL, text_of, write_corpus

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/adding.md").read_text()
KINDS = {"A model family": "FAMILIES", "A dataset": "DATASETS", "A storage backend": "BACKENDS"}  # section -> registry


def written(kind):
    """What the section of the page adds: {path: text} of new files, and the line for each registry, by its path."""
    section = PAGE.partition(f"## {kind}\n")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL))
    files = {path: text for path, text in blocks.items() if not (ROOT / path).exists()}
    return files, {path: text for path, text in blocks.items() if path not in files}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of the project with all that the page adds."""
    project = tmp_path_factory.mktemp("project")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, project)
    shutil.copytree(ROOT / "extraction", project / "extraction", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in KINDS:
        files, lines = written(kind)
        for path, text in files.items():
            (project / path).write_text(text)
        for path, text in lines.items():
            before, opened, after = (project / path).read_text().partition(f"{KINDS[kind]} = {{\n")
            (project / path).write_text(before + opened + text + after)
    return project


@pytest.fixture
def command(grown, tmp_path):
    """A function that runs a command of the copy, in a folder of its own, and returns what it printed."""

    def run(script, *arguments):
        words = [sys.executable, grown / script, *map(str, arguments)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_file_and_one_line(kind):
    files, lines = written(kind)
    assert (len(files), [text.count("\n") for text in lines.values()]) == (1, [1])


def test_a_dataset(command, tmp_path):
    (tmp_path / "file.txt").write_text("zero\none\ntwo\nthree\n")
    assert "  lines    Streams of the lines of a file.\n" in command("create_dataset_streams.py", "--help")
    assert "EXTRACT_SKIP" in command("create_dataset_streams.py", "lines", "--help")
    made = command(
        "create_dataset_streams.py",
        "lines",
        "--skip",
        1,
        "--source",
        "file.txt",
        "--num-streams",
        2,
        "--output",
        "streams",
    )
    assert made == "streams/manifest.json: 2 streams, 3 records, 2 Parquet files\n"
    assert "disjoint, complete, unchanged by content (2 files), every id once" in command(
        "create_dataset_streams.py", "check", "streams"
    )


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory):
    """A tiny random model of the family that the page adds."""
    torch = pytest.importorskip("torch")
    import transformers

    folder = tmp_path_factory.mktemp("starcoder")
    config = transformers.Starcoder2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=256,
        sliding_window=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    return folder


def test_a_family(command, starcoder, tmp_path):
    (tmp_path / "file.txt").write_text("\n\n".join(text_of(i, 40) for i in range(3)))
    exact = ("--seq-len", 48, "--compute-dtype", "float32", "--store-dtype", "float32", "--max-error", "1e-5")
    table = command("extract_activations.py", "parity", "--model", starcoder, "--text", "file.txt", *exact)
    assert (
        len(table.splitlines()) == 1 + 1 + 2 * 15 + 2 + 1
    )  # header, embedding, blocks, final norm and loss, token ids


UPLOAD = """
import sys
from pathlib import Path
from extraction.storage import open_storage

for place, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    for path in Path(folder).iterdir():
        open_storage(place).create(path.name, path.read_bytes())
"""


def test_a_storage_that_holds_model_source_streams_and_output(command, grown, starcoder, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 9 + i) for i in range(6)])
    (grown / "upload.py").write_text(UPLOAD)
    command("upload.py", "sqlite://store/model", starcoder, "sqlite://store/corpus", corpus)
    made = command(
        "create_dataset_streams.py",
        "fineweb",
        "--source",
        "sqlite://store/corpus",
        "--num-streams",
        1,
        "--output",
        "sqlite://store/streams",
    )
    assert made == "sqlite://store/streams/manifest.json: 1 stream, 6 records, 1 Parquet file\n"
    run = ("--streams", "sqlite://store/streams", "--output", "sqlite://store/run", "--worker-id", 0, *SMALL)
    command("extract_activations.py", "--model", "sqlite://store/model", *run)
    assert "proven. 1 stream, " in command("extract_activations.py", "verify", "sqlite://store/run", "--deep")


CONTRACT = """
from concurrent.futures import ThreadPoolExecutor
from extraction.core.errors import ObjectExists
from extraction.storage import open_storage

storage = open_storage("sqlite://other/a")

def attempt(number):
    try:
        return storage.create("b/x", bytes([number]) * 10).name
    except ObjectExists:
        return None

with ThreadPoolExecutor(8) as pool:
    print(list(pool.map(attempt, range(8))).count("b/x"))
winner = storage.read("b/x")
print(storage.create("b/x", winner) == storage.stat("b/x"), storage.read("b/x", 2, 5) == winner[2:5])
for name in ("c", "b/y"):
    storage.create(name, b"1")
print([info.name for info in storage.list()], [info.name for info in storage.list("b/", "b/x")], storage.folders())
"""


def test_the_storage_keeps_what_was_there_first(command, grown):
    (grown / "contract.py").write_text(CONTRACT)
    assert command("contract.py").splitlines() == ["1", "True True", "['b/x', 'b/y', 'c'] ['b/y'] ['b']"]
