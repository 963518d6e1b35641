"""Publishing: what arrives is what is committed, on the hub and in a folder, and the card describes it."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import extract_activations
from extraction.audit.verify import audit_run
from extraction.core.errors import InvalidRequest, PermissionDenied
from extraction.read.reader import ActivationReader
from extraction.storage import hub_upload, open_storage
from extraction.tools.publish import publish
from tests.helpers.fake_hub import FakeHub
from tests.helpers.stream_runs import DATA, HOOKS, NUM_WORKERS, extract, flipped, relink

pytestmark = pytest.mark.slow


@pytest.fixture
def output(tmp_path, run_streams):
    storage = open_storage(str(tmp_path / "run"))
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker)
    run = json.loads(storage.read("run.json"))
    storage.replace("run.json", json.dumps(run | {"records_per_stream": [10] * NUM_WORKERS}).encode())
    relink(storage, storage.replace)
    setting = {"setting": {"tokens": 50}, "hook_points": {"a": {"relative_error": 0.00123}}}
    storage.create("parity-1.json", json.dumps(setting).encode())
    (tmp_path / "run/worker-00000/batches/.tmp-x").write_text("an orphaned file")
    return str(tmp_path / "run")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub(tmp_path) as server:
        server.uploads = tmp_path / "hub"
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


def rows_of(location):
    reader = ActivationReader(location)
    name = reader.hook_points[0]
    return [(r.tokens.tolist(), r.record.tolist(), r.activations.tolist()) for r in reader.rows(name)]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_published_run_is_read_in_place(output, hub, monkeypatch, slash):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + slash)
    monkeypatch.setattr(hub_upload, "FILES_AT_A_TIME", 3)
    target = "hf://datasets/org/acts"
    result = CliRunner().invoke(extract_activations.cli, ["publish", output, target, "--licence", "mit"])
    assert result.exit_code == 0, result.output
    assert rows_of(target) == rows_of(output)
    assert hub.sent[-1] == "README.md" and not any(".tmp-" in name or "attempts" in name for name in hub.sent)
    text = (hub.uploads / "org/acts/README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "mit"
    assert all(f"`{name}` | 4 |" in text for name in HOOKS) and "1.23e-03 (50 tokens)" in text and "Fill in" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})


def test_a_published_run_is_proven_in_place_and_damage_is_named(output, hub):
    """The hub has no checksums: the batch files are read for them, and an answer that was cut is asked for again."""
    publish(output, "hf://datasets/org/acts", "safetensors", "other")
    hub.trouble = [("/stored/org/acts/*.safetensors", "cut", 2)]
    assert audit_run("hf://datasets/org/acts").verdict == "proven" and hub.trouble[0][2] == 0
    batch_file = hub.uploads / "org/acts" / DATA
    batch_file.write_bytes(flipped(batch_file.read_bytes()))
    (problem,) = audit_run("hf://datasets/org/acts").problems
    assert re.match(rf"{DATA}: \d+ bytes with crc32c .+==, but \d+ bytes with .+== were committed; restore it", problem)


def test_an_interrupted_upload_continues_without_sending_twice(output, hub, monkeypatch):
    monkeypatch.setattr(hub_upload, "FILES_AT_A_TIME", 2)
    hub.trouble = [("/api/datasets/org/acts/commit/*", "503", 1)]
    publish(output, "hf://datasets/org/acts", "safetensors", "other")
    before = len(hub.sent)
    publish(output, "hf://datasets/org/acts", "safetensors", "other")
    assert len(hub.sent) == before and rows_of("hf://datasets/org/acts") == rows_of(output)


def test_a_token_that_may_only_read_is_told_from_one_that_may_write(output, hub):
    hub.trouble = [("/api/datasets/org/acts/commit/*", "403", 1)]
    with pytest.raises(PermissionDenied, match="set HF_TOKEN to a token that may write to it"):
        publish(output, "hf://datasets/org/acts", "safetensors", "other")


def test_rows_as_parquet_in_a_folder(output, tmp_path):
    count = publish(output, str(tmp_path / "out"), "parquet", "other")
    reader, name = ActivationReader(output), list(HOOKS)[0]
    files = sorted((tmp_path / "out/data").iterdir())
    assert len(files) + 1 == count
    table = pq.read_table(tmp_path / "out/data")
    assert table.num_rows == reader.num_rows()
    values = np.concatenate([np.array(pq.read_table(file)[name].to_pylist(), np.float32) for file in files])
    assert np.array_equal(values, np.concatenate([rows.activations for rows in reader.rows(name)]))
    ids = [record for file in files for record in pq.read_table(file)["record_id"].to_pylist()]
    assert ids == [record.id for record in reader.records([name]) for _ in record.tokens]
    text = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["configs"][0]["data_files"][0]["path"] == "data/*.parquet"
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(code, found)
    assert found["rows"].count_rows() == reader.num_rows()


def test_a_run_that_is_not_finished_and_a_place_that_is_none_are_refused(tmp_path, run_streams, output):
    storage = open_storage(str(tmp_path / "half"))
    extract(storage, run_streams, 0, 1, max_records=None)
    run = json.loads(storage.read("run.json"))
    storage.replace("run.json", json.dumps(run | {"records_per_stream": [10] * NUM_WORKERS}).encode())
    relink(storage, storage.replace)
    with pytest.raises(InvalidRequest, match="0 of 2 streams finished"):
        publish(str(tmp_path / "half"), str(tmp_path / "x"), "safetensors", "other")
    for target in ("hf://org/acts", "hf://datasets/org/acts@main"):
        with pytest.raises(InvalidRequest, match="give hf://datasets/OWNER/NAME"):
            publish(output, target, "safetensors", "other")
