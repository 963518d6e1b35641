"""The one call for a machine with a GPU: all its parts in their small form, on this machine's CPU."""

import subprocess
import sys

import pytest

from benchmarks import device
from tests.helpers.shared import built_once
from tests.helpers.workers import ROOT

NAMES = [part.name for part in device.PARTS]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder with the results of all parts, from one process."""

    def build(folder):
        parts = [word for name in NAMES for word in ("--part", name)]
        command = [sys.executable, ROOT / "benchmarks/device.py", "--tiny", *parts, "--output", folder]
        subprocess.run(command, check=True, timeout=280)

    return built_once(tmp_path_factory, "device-results", build)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_part_runs(results, name):
    found = device.read(results)[name]
    assert "error" not in found and len(found) > 1, found


def test_a_part_that_fails_leaves_its_traceback_and_what_it_knew(tmp_path, monkeypatch):
    def ceilings(setting):
        setting.save({"known": 1})
        raise RuntimeError("no more")

    monkeypatch.setattr("benchmarks.on_device.ceilings.ceilings", ceilings)
    device.run_part(device.PARTS[0], True, tmp_path)
    found = device.read(tmp_path)["ceilings"]
    assert found["known"] == 1 and "no more" in found["error"]


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    found = device.start_part(device.PARTS[0], ["--tiny"], tmp_path, 0.01)
    assert found["reason"] == "stopped after 0 s" and found["log"] == ""
    assert not list(tmp_path.iterdir())


def test_parts_together_take_at_most_eight_minutes(tmp_path):
    """The last ones get what the first ones leave."""
    assert sum(part.seconds for part in device.PARTS[:6]) < 470 == device.main.params[2].default
