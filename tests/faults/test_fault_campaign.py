"""The fault campaign in its shortest form: a few kills, stopped and continued; and that it sees what it looks for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHORT = ("--kills", "4", "--streams", "1", "--records", "100", "--window", "0.7", "--seed", "7", "--exec-share", "0")


def campaign(state, *arguments):
    return subprocess.Popen(
        [sys.executable, ROOT / "benchmarks/fault_campaign.py", "--state", state, "--output", state / "results.json",
         *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONWARNINGS": "error"},
    )  # fmt: skip


def starts_of(state):
    """How many starts are on record."""
    path = state / "state.json"
    if not path.exists():
        return 0
    content = json.loads(path.read_text())
    return sum(one["starts"] for one in [*content["rounds"], content["open"] or {"starts": 0}])


def forge(state):
    """Alter what is expected of the server's rounds: two objects that a faultless campaign has to name."""
    (path,) = state.glob("reference-*-gcs.json")
    expected = json.loads(path.read_text())
    expected["worker-00000/batches/00000001.safetensors"] = "other"
    del expected["worker-00000/commits/00000002.json"]
    path.write_text(json.dumps(expected))
    return {"worker-00000/batches/00000001.safetensors: other bytes", "worker-00000/commits/00000002.json: unexpected"}


def test_it_is_stopped_goes_on_and_finds_what_differs(tmp_path):
    first = campaign(tmp_path, *SHORT)
    while starts_of(tmp_path) < 2 and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "seed 7" in output
    before, forged = starts_of(tmp_path), forge(tmp_path)

    second = campaign(tmp_path, *SHORT)
    output, _ = second.communicate(timeout=120)
    results = json.loads((tmp_path / "results.json").read_text())
    assert starts_of(tmp_path) > before
    assert results["kills"] == sum(sum(kills.values()) for kills in results["kills_by_phase"].values()) >= 4
    assert (per_round := results["batches"] // results["rounds"]) > 2
    assert all(found["batches"] and found["batches"] % per_round == 0 for found in results["by_backend"].values())
    assert results["by_backend"]["local"]["mismatches"] == 0
    assert {problem.partition(": ")[2] for problem in results["problems"]} == forged, output
    assert second.returncode == 1
