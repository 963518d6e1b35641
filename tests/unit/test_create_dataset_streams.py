"""The command that makes streams: what it writes, that doing it again is harmless, and what it says about mistakes."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from create_dataset_streams import cli
from extraction.storage import open_storage
from extraction.streams.extensions import load_manifest
from tests.helpers.corpora import contents, documents, read_all, snapshot, write_corpus, write_parquet
from tests.helpers.fake_hub import FakeHub
from tests.helpers.workers import MODEL

ROOT = Path(__file__).parents[2]
TASK = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}, {"input": [[4]]}]}


def create(dataset, source, num_streams, output, *flags, **environment):
    always = ["--source", str(source), "--num-streams", str(num_streams), "--output", str(output)]
    return CliRunner().invoke(cli, [dataset, *always, *map(str, flags)], env=environment)


def assert_refused(result, exit_code, *said):
    """One line on stderr that says all this, behind those that name the files; the exit code; no traceback."""
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
    assert isinstance(result.exception, SystemExit)
    *before, line = result.stderr.splitlines()
    assert line.startswith("error: ") and all(other.startswith(("reading ", "not reading ")) for other in before)
    for words in said:
        assert words in line


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus", [[3, 2], [4]])
    return tmp_path / "corpus"


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in "abcd":
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(TASK))
    return tmp_path / "tasks"


# ---------------------------------------------------------------------------------------------- what it makes


def test_fineweb_is_referred_to_and_not_copied(corpus, tmp_path):
    result = create("fineweb", corpus, 2, tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/out/manifest.json: 2 streams, 9 records, 2 Parquet files\n"
    assert list(contents(tmp_path / "out")) == ["manifest.json"]
    assert list(chain(*read_all(str(tmp_path / "out")))) == documents(range(9))


def test_arc_agi_is_rendered(tasks, tmp_path):
    result = create("arc-agi", tasks, 3, tmp_path / "out")
    assert result.stdout == f"{tmp_path}/out/manifest.json: 3 streams, 8 records, 3 Parquet files\n"
    assert [[name for name, _ in stream] for stream in read_all(str(tmp_path / "out"))] == [
        ["a/0/0", "a/1/0"], ["b/0/0", "b/1/0", "c/0/0"], ["c/1/0", "d/0/0", "d/1/0"],
    ]  # fmt: skip


def test_into_a_bucket(tasks, gcs):
    result = create("arc-agi", tasks, 2, "gs://bucket/streams")
    assert result.exit_code == 0, result.stderr
    assert sum(map(len, read_all("gs://bucket/streams"))) == 8
    assert "nothing to do" in create("arc-agi", tasks, 2, "gs://bucket/streams").stdout
    assert_refused(create("arc-agi", tasks, 3, "gs://bucket/streams"), 2, "num_streams 2 there, 3 requested")


def test_flags_come_from_the_environment_too(corpus, tmp_path):
    environment = {"EXTRACT_SOURCE": str(corpus), "EXTRACT_NUM_STREAMS": "3", "EXTRACT_OUTPUT": str(tmp_path / "out")}
    assert CliRunner().invoke(cli, ["fineweb"], env=environment).exit_code == 0
    assert load_manifest(str(tmp_path / "out")).num_streams == 3


def test_a_part_of_fineweb_is_asked_for_by_flags_or_the_environment(corpus, tmp_path):
    flags = ["--max-records", 7, "--max-tokens", 10, "--meta-columns", "token_count", "--footer-cache", ""]
    assert create("fineweb", corpus, 1, tmp_path / "out", *flags).exit_code == 0
    assert read_all(str(tmp_path / "out")) == [documents(range(5))]  # 0 + 1 + 2 + 3 + 4 tokens
    environment = {"EXTRACT_MAX_RECORDS": "7", "EXTRACT_MAX_TOKENS": "10", "EXTRACT_META_COLUMNS": "token_count"}
    assert "nothing to do" in create("fineweb", corpus, 1, tmp_path / "out", **environment).stdout
    refused = create("fineweb", corpus, 1, tmp_path / "out", "--max-records", 2)
    assert_refused(refused, 2, "options", '"max_tokens": 10', "choose another --output")
    assert_refused(
        create("fineweb", corpus, 1, tmp_path / "x", "--dump", "CC"), 2, "no single column 'dump'; it has text, id"
    )


def test_prompts_are_asked_for_by_flags(tasks, tmp_path):
    flags = ["--grid-encoding", "fenced(minimal)", "--template", "instructed", "--predictions-per-task", 2, "--seed", 7,
             "--permute-background", "--model", MODEL, "--seq-len", 20]  # fmt: skip
    result = create("arc-agi", tasks, 1, tmp_path / "out", *flags)
    assert result.exit_code == 0 and result.stdout.endswith("1 stream, 0 records, 1 Parquet file\n")
    warnings = result.stderr.splitlines()[1:]
    assert warnings[0] == "warning: a/0/0: its test input alone takes more than 20 tokens: left out"
    assert warnings[-2] == "warning: 16 records were left out; a larger --seq-len takes more"
    options = load_manifest(str(tmp_path / "out")).options
    assert {
        "seed": 7,
        "permute_background": True,
        "predictions_per_task": 2,
        "left_out": 16,
        "seq_len": 20,
    }.items() <= options.items()
    assert_refused(create("arc-agi", tasks, 1, tmp_path / "x", "--grid-encoding", "tiny"), 2, "--grid-encoding 'tiny'")
    assert_refused(create("arc-agi", tasks, 1, tmp_path / "x", "--seq-len", 9), 2, "--seq-len needs --model")


def test_questions_and_any_rows_are_materialised(tmp_path):
    question = {"id": "q", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    (tmp_path / "x.jsonl").write_text(json.dumps(question))
    assert create("ai2-arc", tmp_path / "x.jsonl", 1, tmp_path / "out", "--with-answer").exit_code == 0
    assert read_all(str(tmp_path / "out")) == [[("q", "Question: Why?\nA. a\nB. b\nAnswer: B")]]
    flags = ["--text-column", "question", "--id-column", "id"]
    assert create("text", tmp_path / "x.jsonl", 1, tmp_path / "text", *flags).exit_code == 0
    assert read_all(str(tmp_path / "text")) == [[("q", "Why?")]]


@pytest.mark.parametrize("refuse, code, said", [
    ((403, "GatedRepo"), 77, "set HF_TOKEN"), ((404, "RepoNotFound"), 2, "no such repository"),
    ((503, ""), 75, "start the same command again"),
])  # fmt: skip
@pytest.mark.parametrize("dataset", ["fineweb", "ai2-arc", "arc-agi"])
def test_what_the_hub_refuses_has_its_exit_code(tmp_path, dataset, refuse, code, said):
    with FakeHub(tmp_path) as hub:
        hub.refuse = refuse
        environment = {"HF_ENDPOINT": hub.endpoint, "EXTRACT_RETRY_DEADLINE": "0.2"}
        result = create(dataset, "hf://datasets/lab/web", 1, tmp_path / "out", **environment)
    assert_refused(result, code, "hf://datasets/lab/web", said)


def test_more_streams_than_row_groups_are_empty_and_said_so(corpus, tmp_path):
    result = create("fineweb", corpus, 5, tmp_path / "out")
    assert result.exit_code == 0
    why = "a stream is made of whole Parquet row groups, and the source has 3 with records"
    assert result.stderr.splitlines()[-1] == f"warning: 2 of 5 streams are empty: {why}"
    assert sorted(map(len, read_all(str(tmp_path / "out")))) == [0, 0, 2, 3, 4]


@pytest.mark.parametrize("folder", ["{0}/", "{0}/../corpus", "corpus", "./corpus", "link"])
@pytest.mark.parametrize("files", ["", "/000.parquet", "/0*.parquet"])
def test_a_source_gives_the_same_bytes_however_it_is_spelled(corpus, tmp_path, folder, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(corpus)
    create("fineweb", f"{corpus}{files}", 2, tmp_path / "out")
    assert create("fineweb", folder.format(corpus) + files, 2, tmp_path / "other").exit_code == 0
    assert contents(tmp_path / "other") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    "source, names", [("000.parquet", ["000"]), ("0*.parquet", ["000", "001"]), ("**/*", ["000", "001", "x"])]
)
def test_a_file_or_a_glob(corpus, tmp_path, source, names):
    write_parquet(corpus / "sub/x.parquet", [range(9, 12)])
    assert create("fineweb", corpus / source, 1, tmp_path / "out").exit_code == 0
    assert [Path(file.name).stem for file in load_manifest(str(tmp_path / "out")).files] == names


def test_a_folder_is_searched_in_the_order_of_names_without_what_is_hidden(corpus, tmp_path):
    for name in ("sub/a.parquet", "z.parquet", ".cache/x.parquet", "_tmp.parquet"):
        write_parquet(corpus / name, [range(9, 12)])
    (corpus / "README.md").write_text("not Parquet")
    create("fineweb", corpus, 1, tmp_path / "out")
    names = [file.name for file in load_manifest(str(tmp_path / "out")).files]
    assert names == [f"{corpus}/{name}" for name in ("000.parquet", "001.parquet", "sub/a.parquet", "z.parquet")]


def test_links_in_a_download_cache_keep_their_names(corpus, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for name, blob in (("b.parquet", "000.parquet"), ("a.parquet", "001.parquet")):
        (tmp_path / "snapshot" / name).symlink_to(corpus / blob)
    create("fineweb", tmp_path / "snapshot", 1, tmp_path / "out")
    assert read_all(str(tmp_path / "out")) == [documents([5, 6, 7, 8, 0, 1, 2, 3, 4])]


# ---------------------------------------------------------------------------------------------- again


@pytest.mark.parametrize("dataset", ["fineweb", "arc-agi"])
def test_the_same_again_does_nothing(corpus, tasks, tmp_path, dataset):
    source, output = {"fineweb": corpus, "arc-agi": tasks}[dataset], tmp_path / "out"
    create(dataset, source, 2, output)
    before = snapshot(output)
    result = create(dataset, source, 2, output)
    assert result.exit_code == 0 and "is the same" in result.stdout and "nothing to do" in result.stdout
    assert snapshot(output) == before


@pytest.mark.parametrize("dataset", ["fineweb", "arc-agi"])
def test_something_else_is_refused_and_nothing_touched(corpus, tasks, tmp_path, dataset):
    source, output = {"fineweb": corpus, "arc-agi": tasks}[dataset], tmp_path / "out"
    create(dataset, source, 4, output)
    before = snapshot(output)
    result = create(dataset, source, 8, output)
    assert_refused(result, 2, "num_streams 4 there, 8 requested", "choose another --output")
    assert snapshot(output) == before


def test_another_dataset_is_refused(corpus, tasks, tmp_path):
    create("fineweb", corpus, 2, tmp_path / "out")
    result = create("arc-agi", tasks, 2, tmp_path / "out")
    assert_refused(
        result, 2, 'dataset "fineweb" there, "arc-agi" requested', f'source "{corpus}" there, "{tasks}" requested'
    )


def test_a_source_that_changed_is_refused_naming_the_file(corpus, tmp_path):
    create("fineweb", corpus, 2, tmp_path / "out")
    write_parquet(corpus / "001.parquet", [range(20, 24)])
    assert_refused(create("fineweb", corpus, 2, tmp_path / "out"), 2, f"the file {corpus}/001.parquet differs")


def test_a_task_that_changed_is_refused(tasks, tmp_path):
    create("arc-agi", tasks, 2, tmp_path / "out")
    (tasks / "a.json").write_text(json.dumps(TASK | {"test": [{"input": [[5]]}, {"input": [[4]]}]}))
    assert_refused(create("arc-agi", tasks, 2, tmp_path / "out"), 2, "stream-00000.parquet differs")


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "stream-00001.parquet"],
                                  ["manifest.json", "stream-00000.parquet", "stream-00001.parquet"]])  # fmt: skip
def test_what_was_interrupted_is_completed(tasks, tmp_path, lost):
    create("arc-agi", tasks, 3, tmp_path / "out")
    whole = contents(tmp_path / "out")
    for name in lost:
        (tmp_path / "out" / name).unlink()
    kept = snapshot(tmp_path / "out")
    assert create("arc-agi", tasks, 3, tmp_path / "out").exit_code == 0
    after = snapshot(tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert {name: after[name] for name in kept} == kept


def test_stream_files_in_a_bucket_are_neither_read_nor_sent_again(tasks, gcs):
    assert create("arc-agi", tasks, 3, "gs://bucket/out").exit_code == 0
    whole = {name: stored.data for name, stored in gcs.objects.items()}
    for name in ("out/manifest.json", "out/stream-00002.parquet"):
        del gcs.objects[name]
    gcs.history.clear()
    assert create("arc-agi", tasks, 3, "gs://bucket/out").exit_code == 0
    assert {name: stored.data for name, stored in gcs.objects.items()} == whole
    asked = [what for _, _, what, _ in gcs.history]
    assert not any("stream-00000" in what or "stream-00001" in what for what in asked), asked
    assert sum("stream-00002" in what for what in asked) >= 1


@pytest.mark.parametrize("num_streams, name", [(2, "stream-00000.parquet"), (4, "stream-00001.parquet")])
def test_what_others_left_unfinished_is_refused_and_not_touched(tasks, tmp_path, num_streams, name):
    create("arc-agi", tasks, 3, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    before = snapshot(tmp_path / "out")
    assert_refused(
        create("arc-agi", tasks, num_streams, tmp_path / "out"), 2, name, "left by another unfinished command"
    )
    assert snapshot(tmp_path / "out") == before


def test_a_stream_file_beyond_those_asked_is_refused(tasks, tmp_path):
    open_storage(str(tmp_path / "out")).create("stream-00002.parquet", b"of somebody else")
    assert_refused(create("arc-agi", tasks, 2, tmp_path / "out"), 2, "stream-00002.parquet")
    assert list(contents(tmp_path / "out")) == ["stream-00002.parquet"]


def test_a_damaged_manifest_is_not_replaced(corpus, tmp_path):
    create("fineweb", corpus, 2, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    assert_refused(create("fineweb", corpus, 2, tmp_path / "out"), 65, "manifest.json is not JSON")


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "source, said",
    [("nowhere", "no such file or folder"), ("*.nothing", "no such file or folder"), (".", "no file in this folder"),
     ("ftp://bucket/fineweb", "or a local folder"), ("hf://fineweb", "give hf://datasets/OWNER/NAME")],
)  # fmt: skip
def test_no_files(tmp_path, source, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(create("fineweb", source, 2, tmp_path / "out"), 2, source, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "columns, said",
    [({"id": ["a"], "content": ["b"]}, "no single column 'text'; it has id, content"),
     ({"text": ["a"], "url": ["b"]}, "no single column 'id'; it has text, url"),
     ({"text": [1], "id": ["b"]}, "column 'text' is int64, not a string"),
     ({"text": ["a"], "id": [1.0]}, "column 'id' is double, not a string or a whole number")],
)  # fmt: skip
def test_columns_that_do_not_fit(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert_refused(create("fineweb", tmp_path, 2, tmp_path / "out"), 2, f"{tmp_path}/x.parquet", said)


@pytest.mark.parametrize("column", ["text", "id"])
def test_nulls_that_the_footer_tells_of_are_named_at_once(tmp_path, column):
    table = pa.table({"text": ["a", "b", None, "d"], "id": ["1", "2", "3", "4"]})
    table = table if column == "text" else table.rename_columns(["id", "text"])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    said = f"x.parquet: row 0 of row group 1: {column} is null"
    assert_refused(create("fineweb", tmp_path, 1, tmp_path / "out"), 65, said)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_other_spellings_of_string_columns_are_read(tmp_path, kind):
    columns = [pa.array(["x", "y", "x"]).cast(kind), pa.array(["1", "2", "3"]).cast(kind)]
    pq.write_table(pa.table(columns, names=["text", "id"]), tmp_path / "x.parquet")
    assert create("fineweb", tmp_path, 1, tmp_path / "out").exit_code == 0
    assert read_all(str(tmp_path / "out")) == [[("1", "x"), ("2", "y"), ("3", "x")]]


def test_a_cut_file_is_named(corpus, tmp_path):
    data = (corpus / "001.parquet").read_bytes()
    (corpus / "001.parquet").write_bytes(data[: len(data) // 2])
    assert_refused(create("fineweb", corpus, 2, tmp_path / "out"), 65, f"{corpus}/001.parquet")
    assert not (tmp_path / "out").exists()


def test_a_link_to_nothing_is_not_passed_over(corpus, tmp_path):
    (corpus / "002.parquet").symlink_to(tmp_path / "gone")
    assert_refused(create("fineweb", corpus, 2, tmp_path / "out"), 65, f"{corpus}/002.parquet: the file is missing")


def test_an_output_that_is_a_file(corpus, tmp_path):
    (tmp_path / "out").write_text("")
    assert_refused(create("fineweb", corpus, 2, tmp_path / "out"), 2, f"{tmp_path}/out")


@pytest.mark.parametrize("num_streams", [0, -1, "many", 100_001])
def test_a_number_of_streams_that_cannot_be(corpus, tmp_path, num_streams):
    result = create("fineweb", corpus, num_streams, tmp_path / "out")
    assert result.exit_code == 2 and "--num-streams" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_a_process_it_ends_with_one_line_and_the_exit_code(corpus, tmp_path):
    (corpus / "001.parquet").write_bytes(b"")
    command = [sys.executable, ROOT / "create_dataset_streams.py", "fineweb", "--source", corpus]
    command += ["--num-streams", "2", "--output", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 65 and result.stdout == ""
    reading, line = result.stderr.splitlines()
    assert reading.startswith("reading 2 files, ") and line.startswith("error: ")


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    code = (
        "import sys, create_dataset_streams as c\n"
        "for words in (['--help'], *([name, '--help'] for name in c.cli.list_commands(None))):\n"
        "    c.cli(words, standalone_mode=False)\n"
        "print('loaded', {name.partition('.')[0] for name in sys.modules} & {'pyarrow', 'numpy', 'google', 'jax', 'datasets'})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("loaded set()\n"), result.stdout + result.stderr


# ---------------------------------------------------------------------------------------------- the example corpus


@pytest.mark.slow
def test_the_example_corpus_has_the_shape_of_fineweb_and_is_the_same_again(tmp_path):
    for name in ("one", "two"):
        command = [sys.executable, ROOT / "examples/make_corpus.py", "--output", tmp_path / name]
        subprocess.run([*command, "--max-records", "250", "--files", "2"], check=True, capture_output=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    files = [pq.ParquetFile(path) for path in sorted((tmp_path / "one").glob("*.parquet"))]
    assert [file.metadata.num_row_groups for file in files] == [2, 2]
    table = pa.concat_tables([file.read() for file in files])
    assert table.column_names == [
        "text",
        "id",
        "dump",
        "url",
        "date",
        "file_path",
        "language",
        "language_score",
        "token_count",
    ]
    for column in ("text", "id"):
        assert len(set(table[column].to_pylist())) == table.num_rows == 250
    lengths = sorted(table["token_count"].to_pylist())
    assert lengths[25] < 100
    assert lengths[-5] > 1000
