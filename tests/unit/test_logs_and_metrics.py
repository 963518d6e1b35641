"""What a worker tells the world: log lines for Google Cloud Logging, counters for Prometheus."""

import json
import re
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest

import checkpoint
from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.core import logs
from extraction.core.count_of import count_of
from extraction.core.errors import InvalidRequest
from extraction.format.commit import parse_commit
from extraction.format.records import Cursor, TokenizedRecord
from extraction.format.stream_state import read_stream_state
from extraction.storage import open_storage
from extraction.worker import progress_writer as progress_module
from extraction.worker.metrics import Metrics
from tests.helpers.runs import make_run
from tests.helpers.workers import MODEL, python


@pytest.fixture
def as_json():
    logs.use_format("json")
    yield
    logs.use_format("text")


def test_a_json_line_has_what_cloud_logging_reads(capsys, as_json):
    logs.say('with "quotes"\nand lines', "WARNING", worker=3)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("time")).tzinfo is not None
    assert found == {"severity": "WARNING", "message": 'with "quotes"\nand lines', "worker": 3}


@pytest.mark.parametrize("severity, text", [("INFO", "worker 3: x\n"), ("ERROR", "worker 3: error: x\n")])
def test_a_line_for_people(capsys, severity, text):
    logs.say("x", severity, worker=3)
    assert capsys.readouterr().err == text


@pytest.mark.slow
def test_an_error_at_the_command_line_is_a_json_line_too():
    result = python(
        "extract_activations.py",
        "run",
        "--model",
        MODEL,
        "--streams",
        "/nowhere",
        "--output",
        "/nowhere",
        "--log-format",
        "json",
    )
    found = json.loads(result.stderr)
    assert (result.returncode, found["severity"]) == (2, "ERROR")
    assert "--worker-id is missing" in found["message"]


def test_the_pace_is_of_tokens_that_were_read(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(progress_module, "time", clock)
    storage = open_storage(str(tmp_path))
    make_run(storage, [[8] * 6], selector=Selector(Selection.parse("last")))
    name = checkpoint.list_commits(storage, 0)[-1]
    progress = progress_module.ProgressWriter(storage, 0, 6, 0, visible=False, peak_rate=32.0)
    clock.monotonic = lambda: 102.0
    progress.on_commit(parse_commit(storage.read(name), name))
    assert json.loads(storage.read("worker-00000/progress.json"))["tokens_per_second"] == 8.0
    assert read_stream_state(storage, 0).mfu == 8 / 32


def test_the_first_step_tells_the_pace_and_the_time_left(tmp_path, monkeypatch, capsys):
    """A batch may take minutes; later lines come every 30 s."""
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(progress_module, "time", clock)
    records = [TokenizedRecord(i, str(i), np.arange(8)) for i in range(10)]
    (batch,) = pack_batches(records, Cursor(0, 0), BatchShape(5, 1, 16), "split", Selector(Selection.parse("all")))
    progress = progress_module.ProgressWriter(open_storage(str(tmp_path)), 7, 20, 0, visible=True)
    for now, share in ((104.0, 0.2), (108.0, 0.4), (135.0, 1.0)):
        clock.monotonic = lambda now=now: now
        progress.on_step(batch, share)
    assert capsys.readouterr().err.splitlines() == [
        "worker 7: 2 of 20 records computed, 4 tokens/s, 36 s left",
        "worker 7: 10 of 20 records computed, 2 tokens/s, 35 s left",
    ]


def test_metrics_count_what_is_committed(tmp_path):
    storage = open_storage(str(tmp_path))
    make_run(storage, [[8] * 6], selector=Selector(Selection.parse("last")))
    commits = [parse_commit(storage.read(name), name) for name in checkpoint.list_commits(storage, 0)]
    commits[0] = replace(commits[0], not_finite={"x": {"nan": 2, "inf": 3}, "y": {"nan": 4, "inf": 0}})
    metrics = Metrics(0)
    try:
        for commit in commits:
            metrics.on_commit(commit)
        assert metrics.address == "127.0.0.1"  # others than this machine do not see it unless told to
        text = urlopen(f"http://127.0.0.1:{metrics.port}/metrics").read().decode()
        with pytest.raises(InvalidRequest, match=f"--metrics-port {metrics.port}"):
            Metrics(metrics.port)
    finally:
        metrics.close()
    values = dict(re.findall(r"^extraction_(\S+) (\S+)$", text, re.MULTILINE))
    assert float(values['tokens_total{stream="0"}']) == 48
    assert float(values['stored_rows_total{stream="0"}']) == 6
    assert float(values['batches_total{stream="0"}']) == len(commits)
    assert float(values['not_finite_values_total{stream="0"}']) == 9
    assert float(values['records_committed{stream="0"}']) == 6
    assert float(values['stream_finished{stream="0"}']) == 1
    assert float(values['stored_bytes_total{stream="0"}']) == commits[-1].totals.bytes
    assert float(values['stage_seconds_total{stage="step",stream="0"}']) == pytest.approx(0.5 * len(commits))


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [(0, ["file"], "0 files"), (1, ["file"], "1 file"), (1234, ["batch", "batches"], "1,234 batches"),
     (1, ["record was", "records were"], "1 record was")],
)  # fmt: skip
def test_counts_are_singular_for_one(number, words, said):
    assert count_of(number, *words) == said
