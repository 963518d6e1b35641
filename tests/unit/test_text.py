"""Rows of any files: what becomes of them, and what is said when they cannot be read."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.datasets import text
from extraction.datasets.text import TextOptions
from extraction.storage import open_storage
from extraction.streams.build import materialize as materialised
from tests.helpers.corpora import contents, read_all
from tests.helpers.fake_hub import COMMIT, FakeHub
from tests.helpers.workers import ROOT

ROWS = [{"body": f"text {n}", "key": 100 + n} for n in range(7)]
BOTH = {"text_column": "body", "id_column": "key"}


def create(source, output, num_streams=2, **options):
    return text.create(open_storage(str(output)), str(source), num_streams, TextOptions(**options)).manifest


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("body,key\n" + "".join(f"{row['body']},{row['key']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv", "folder/x.jsonl"])
def test_the_rows_of_local_files(tmp_path, name):
    path = write(tmp_path / name)
    source = path if path.parent == tmp_path else path.parent
    manifest = create(source, tmp_path / "out", text_column="body", id_column="key")
    assert (manifest.dataset, manifest.source, manifest.revision, manifest.num_records) == (
        "text",
        str(source),
        None,
        7,
    )
    expected = [(str(row["key"]), row["body"]) for row in ROWS]
    assert read_all(str(tmp_path / "out")) == [expected[:3], expected[3:]]


def test_without_an_id_column_the_number_of_the_row_is_the_id(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\nthree\n")
    create(tmp_path / "x.txt", tmp_path / "out", 1, max_records=2)
    assert read_all(str(tmp_path / "out")) == [[("0", "one"), ("1", "two")]]


@pytest.mark.slow
def test_a_hub_dataset_is_read_at_a_commit(tmp_path):
    """In a process of its own, since the library reads its settings when it is imported."""
    write(tmp_path / "set/data.jsonl")
    with FakeHub(tmp_path, datasets={"lab/set": tmp_path / "set"}) as hub:
        flags = ["text", "--source", "lab/set", "--num-streams", "2", "--output", tmp_path / "out"]
        flags += ["--text-column", "body"]
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, ROOT / "create_dataset_streams.py", *flags]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        lost = subprocess.run(
            [*command[:4], "lab/none", *command[5:]], env=environment, capture_output=True, text=True, check=False
        )
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1) and "lab/none: no such repository" in lost.stderr
    assert json.loads((tmp_path / "out/manifest.json").read_bytes())["revision"] == COMMIT
    assert [name for stream in read_all(str(tmp_path / "out")) for name, _ in stream] == list("0123456")


def test_large_streams_go_on_in_further_files_and_are_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(materialised, "ROWS_PER_GROUP", 2)
    monkeypatch.setattr(materialised, "PART_BYTES", 40)
    source = write(tmp_path / "x.jsonl", [{"text": "x" * 20 + str(n)} for n in range(9)])
    create(source, tmp_path / "out", 2)
    whole = contents(tmp_path / "out")
    parts = ["00000-00001", "00000", "00001-00001", "00001-00002", "00001"]
    assert list(whole) == ["manifest.json", *(f"stream-{part}.parquet" for part in parts)]
    assert [len(stream) for stream in read_all(str(tmp_path / "out"))] == [4, 5]
    for lost in (
        ["manifest.json", "stream-00001-00001.parquet"],
        ["manifest.json"],
        ["manifest.json", "stream-00000.parquet"],
    ):
        for name in lost:
            (tmp_path / "out" / name).unlink()
        create(source, tmp_path / "out", 2)
        assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("rows, options, error, said", [
    (ROWS, {}, InvalidRequest, "no column 'text'; it has body, key"),
    (ROWS, {"text_column": "body", "id_column": "n"}, InvalidRequest, "no column 'n'"),
    (ROWS, {"text_column": "key"}, DamagedData, "x.jsonl: line 1: key is not a string"),
    ([*ROWS, {"body": None, "key": 1}], {"text_column": "body"}, DamagedData, "line 8: body is null"),
    ([*ROWS, {"body": "x", "key": None}], BOTH, DamagedData, "line 8: its key is null"),
    ([*ROWS, ROWS[2]], BOTH, DamagedData, "the id '102' is in two records: record 2 and record 7"),
    (ROWS, {"text_column": "body", "split": "test"}, InvalidRequest, "--split test: .* no such split; its files are in no split"),
    (ROWS, {"text_column": "body", "revision": "main"}, InvalidRequest, "--revision main"),
])  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(tmp_path, rows, options, error, said):
    with pytest.raises(error, match=said):
        create(write(tmp_path / "x.jsonl", rows), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source, said",
    [("./nowhere", "no such file"), ("nowhere", "is named OWNER/NAME"), ("x.bin", "this kind of file is not read")],
)
def test_a_source_that_is_none(tmp_path, source, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=said):
        create(source, tmp_path / "out")


def test_a_line_that_is_no_json_is_damage(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DamagedData, match="x.jsonl: line 2 is not valid JSON"):
        create(tmp_path / "x.jsonl", tmp_path / "out")
