"""deploy/keep_fleet.sh against a stand-in for gcloud: preemptions, shrinking, refusals, two at once."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.workers import ROOT

ZONE = "us-central1-a"
MACHINE = ("--accelerator-type", "v5litepod-8", "--runtime-version", "v2-alpha-tpuv5-lite", "--spot")
METADATA = ("--metadata", "^;^model=m;layers=6,12;settings=A=1 B=2")


class Cloud:
    """The stand-in, and the script that uses it."""

    def __init__(self, folder: Path):
        self.folder, self.resources = folder, folder / "state" / ZONE
        self.resources.mkdir(parents=True)
        (folder / "bin").mkdir()
        path = folder / "bin/gcloud"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/helpers/fake_gcloud.py "$@"\n')
        path.chmod(0o755)

    def keep(self, *arguments: object, zone: str = ZONE) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "FAKE_GCLOUD": str(self.folder / "state")}
        environment |= {"ZONE": zone, "TMPDIR": str(self.folder)}
        words = [ROOT / "deploy/keep_fleet.sh", *map(str, arguments)]
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    def become(self, **states: str) -> None:
        for name, state in states.items():
            (self.resources / name.replace("_", "-")).write_text(state)

    @property
    def states(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.resources.iterdir())}

    def calls(self) -> list[str]:
        path = self.folder / "state/calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_what_is_suspended_comes_back_and_nothing_else_is_touched(cloud):
    assert cloud.keep(4, *MACHINE, *METADATA).returncode == 0
    assert cloud.states == {f"extraction-{number}": "WAITING_FOR_RESOURCES" for number in range(4)}
    cloud.become(extraction_0="ACTIVE", extraction_1="SUSPENDED", extraction_2="FAILED", extraction_3="SUSPENDING")
    cloud.become(another_1="SUSPENDED", extraction_old_1="SUSPENDED", extraction="FAILED")
    cloud.calls()
    result = cloud.keep(5, *MACHINE, *METADATA)
    assert result.returncode == 0, result.stderr
    found = {name.removeprefix("extraction-"): state for name, state in cloud.states.items()}
    waiting = dict.fromkeys("124", "WAITING_FOR_RESOURCES")
    untouched = {"another-1": "SUSPENDED", "old-1": "SUSPENDED", "extraction": "FAILED"}
    assert found == {"0": "ACTIVE", "3": "SUSPENDING"} | waiting | untouched
    calls = cloud.calls()
    assert [call.split()[:2] for call in calls if call.startswith("create extraction-4 ")] == [
        ["create", "extraction-4"]
    ]
    (created,) = [call for call in calls if call.startswith("create extraction-1 ")]
    assert created.split(" --node-id ")[1].startswith("extraction-1 ") and " ".join(METADATA) in created
    assert not any("--force" in call for call in calls)


def test_again_with_nothing_to_do_only_lists(cloud):
    cloud.keep(2, *MACHINE)
    cloud.calls()
    assert cloud.keep(2, *MACHINE).returncode == 0
    assert {call.split()[0] for call in cloud.calls()} == {"list"}


def test_a_smaller_fleet_and_none(cloud):
    cloud.keep(12, *MACHINE)
    cloud.become(**{f"extraction_{number}": "ACTIVE" for number in range(12)})
    assert cloud.keep(2, *MACHINE).returncode == 0
    assert cloud.states == {"extraction-0": "ACTIVE", "extraction-1": "ACTIVE"}
    assert cloud.keep(0).returncode == 0
    assert cloud.states == {}


@pytest.mark.parametrize("command", ["list", "create", "delete"])
def test_a_refusal_is_75_and_the_next_run_completes_it(cloud, command):
    cloud.become(extraction_0="SUSPENDED")
    (cloud.folder / "state/refuse").write_text(command)
    result = cloud.keep(2, *MACHINE)
    assert (result.returncode, "Quota limit exceeded" in result.stderr) == (75, True), result.stderr
    if command == "list":
        assert cloud.states == {"extraction-0": "SUSPENDED"}
    (cloud.folder / "state/refuse").unlink()
    assert cloud.keep(2, *MACHINE).returncode == 0
    assert set(cloud.states.values()) == {"WAITING_FOR_RESOURCES"} and len(cloud.states) == 2


def test_two_at_once(cloud):
    with (cloud.folder / f"keep_fleet-{os.getuid()}-extraction-{ZONE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = cloud.keep(2, *MACHINE)
    assert (result.returncode, cloud.calls()) == (75, [])


@pytest.mark.parametrize(
    "arguments, zone, words", [((), ZONE, "how many"), (("-1",), ZONE, "how many"), ((1,), "", "ZONE")]
)
def test_usage(cloud, arguments, zone, words):
    result = cloud.keep(*arguments, zone=zone)
    assert (result.returncode, words in result.stderr, cloud.calls()) == (2, True, [])
