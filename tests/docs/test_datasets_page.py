"""What docs/datasets.md says to type works, on small repositories of the names and columns of the real ones."""

import json
import re
import shlex
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import extract_activations
from create_dataset_streams import cli
from extraction.datasets import DATASETS
from extraction.streams.extensions import load_manifest
from extraction.streams.where_conditions import Condition
from tests.helpers.chat_templates import CHATML
from tests.helpers.fake_hub import FakeHub
from tests.helpers.workers import MODEL, ROOT

PAGE = (ROOT / "docs/datasets.md").read_text()
SOURCES = PAGE.partition("\n## Sources\n")[2].partition("\n## ")[0]  # test_readme.py runs its commands, in a bucket
BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", PAGE.replace(SOURCES, ""), re.DOTALL)).replace("\\\n", " ")
TALK = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]


def hub(folder):
    """{repository: its folder}."""

    def parquet(name, rows, row_group_size=2):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=row_group_size)

    chats = [{"prompt": "a", "prompt_id": str(n), "messages": TALK} for n in range(100)]
    parquet("HuggingFaceH4/ultrachat_200k/data/train_sft-00000-of-00001.parquet", chats)
    parquet("HuggingFaceH4/ultrachat_200k/data/test_sft-00000-of-00001.parquet", chats)
    packed = [{"input_ids": [5, 6, 50256, 7, 50256]}] * 4
    parquet("apollo-research/Skylion007-openwebtext-tokenizer-gpt2/data/train-00000-of-00001.parquet", packed)
    edu = [{"text": f"t{n}", "id": f"<urn:{n}>", "int_score": n % 5, "url": "a.org"} for n in range(20)]
    parquet("HuggingFaceFW/fineweb-edu/sample/10BT/000_00000.parquet", edu)
    for split in ("train", "test"):
        rows = [{"text": f"t{n}", "label": n % 2} for n in range(100)]
        parquet(f"stanfordnlp/imdb/plain_text/{split}-00000-of-00001.parquet", rows)
    return {f"{owner.name}/{name.name}": name for owner in folder.iterdir() for name in owner.iterdir()}


@pytest.fixture
def model(tmp_path):
    shutil.copytree(MODEL, tmp_path / "MODEL")
    settings = json.loads((MODEL / "tokenizer_config.json").read_bytes()) | {"chat_template": CHATML}
    (tmp_path / "MODEL/tokenizer_config.json").write_text(json.dumps(settings))


RECORDS = {
    "chat": 100,
    "tokens": 8,
    "imdb": 100,
    "edu": 8,
    "imdb-train": 98,
    "imdb-test": 2,
    "imdb-half": 58,
    "mixed": 26,
}


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = {}
    with FakeHub(tmp_path, datasets=hub(tmp_path / "hub")) as server:
        for command in re.findall(r"^python create_dataset_streams.py (.*)$", BLOCKS, re.MULTILINE):
            words = shlex.split(command)
            result = CliRunner().invoke(cli, words, env={"HF_ENDPOINT": server.endpoint, "EXTRACT_FOOTER_CACHE": ""})
            assert result.exit_code == 0, (command, result.output)
            if "--output" in words:
                output = words[words.index("--output") + 1]
                records[output.removeprefix("streams/")] = load_manifest(output).num_records
    assert records == RECORDS


def test_the_flags_of_the_workers_commands_exist():
    for command in re.findall(r"^python extract_activations.py (.*)$", BLOCKS, re.MULTILINE):
        name, *words = shlex.split(command)
        assert extract_activations.cli.get_command(None, name).make_context(name, words)


def test_the_first_table_has_every_command():
    table = PAGE.partition("| you have |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`([\w-]+)` \|$", table, re.MULTILINE)) == sorted(DATASETS)


def test_the_commands_of_the_table_of_data_sets_are_commands():
    table = PAGE.partition("| data set | command |")[2].partition("\n\n")[0]
    commands = re.findall(r"\| `(.*)` \|$", table, re.MULTILINE)
    assert len(commands) >= 20
    for command in commands:
        name, *words = shlex.split(command)
        context = cli.get_command(None, name).make_context(name, [*words, "--num-streams", "1", "--output", "out"])
        if where := context.params.get("where"):
            assert Condition(where)


def test_the_help_shows_the_data_sets_by_what_a_person_has():
    shown = " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    for have in ("chats", "text files", "FineWeb", "token ids", "ARC-AGI tasks", "questions of AI2 ARC"):
        assert have in shown.partition("What you have")[2]
