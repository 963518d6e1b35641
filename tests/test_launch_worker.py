"""launch_worker.sh: what it checks, what it restarts and what it passes on, with a stub in place of the interpreter."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch_worker.sh"
# Stands for `python`: a version or import check passes; a worker notes its arguments and exits with the next code.
STUB = """#!/bin/sh
case "$1" in -c) exec {python} "$@";; esac
shift
echo "$@" >> {folder}/starts
code=$(head -n 1 {folder}/codes); sed -i 1d {folder}/codes
case "$code" in
  kill) kill -KILL $$ ;;
  wait) trap 'echo TERM >> {folder}/signals; exit 75' TERM; while :; do sleep 0.05; done ;;
  *) exit "$code" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the script with workers that exit with the given codes; `launch.starts()` are their arguments."""

    class Launch:
        def __init__(self):
            self.stub = tmp_path / "python"
            self.stub.write_text(STUB.format(python=sys.executable, folder=tmp_path))
            self.stub.chmod(self.stub.stat().st_mode | stat.S_IXUSR)
            self.environment = {
                "PATH": os.environ["PATH"], "PYTHON": str(self.stub), "MODEL": "a model", "STREAMS": "streams",
                "OUTPUT": "output", "LAUNCH_FIRST_PAUSE": "0.01", "LAUNCH_LONGEST_PAUSE": "0.05",
            }

        def start(self, codes, *arguments, script=SCRIPT, cwd=tmp_path, **environment):
            (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
            merged = {key: value for key, value in (self.environment | environment).items() if value is not None}
            return subprocess.Popen([script, *arguments], env=merged, cwd=cwd, stderr=subprocess.PIPE, text=True)

        def __call__(self, codes, *arguments, **settings):
            process = self.start(codes, *arguments, **settings)
            _, stderr = process.communicate(timeout=30)
            return process.returncode, stderr

        def starts(self):
            path = tmp_path / "starts"
            return path.read_text().splitlines() if path.exists() else []

    return Launch()


@pytest.mark.parametrize("code", [0, 1, 2, 65, 73, 77, 78])
def test_a_final_exit_code_is_its_own(launch, code):
    assert launch([code], "3")[0] == code
    assert launch.starts() == ["run --model a model --streams streams --output output --worker-id 3"]


def test_it_restarts_after_try_again_and_after_a_kill(launch):
    code, stderr = launch([75, "kill", 75, 0], "3")
    assert code == 0
    assert len(launch.starts()) == 4
    assert "ended with 137" in stderr


@pytest.mark.parametrize("name", ["WORKER_ID", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID",
                                  "SKYPILOT_JOB_RANK"])
def test_the_worker_id_comes_from_the_scheduler(launch, name):
    assert launch([0], **{name: "7"})[0] == 0
    assert launch.starts()[0].endswith("--worker-id 7")


def test_further_arguments_and_settings_reach_the_worker(launch):
    assert launch([0], "3", "--seq-len", "8", LAYERS="1,2", HOOKS="z")[0] == 0
    assert launch.starts()[0].endswith("--worker-id 3 --layers 1,2 --hooks z --seq-len 8")


@pytest.mark.parametrize("arguments, environment, message", [
    ([], {}, "which worker"),
    (["x"], {}, "'x' is not a number"),
    (["1"], {"MODEL": None}, "MODEL is not set"),
    (["1"], {"STREAMS": None}, "STREAMS is not set"),
    (["1"], {"OUTPUT": None}, "OUTPUT is not set"),
    (["1"], {"PYTHON": "/nowhere/python"}, "no interpreter"),
])
def test_what_is_missing_is_said_before_python_starts(launch, arguments, environment, message):
    code, stderr = launch([0], *arguments, **environment)
    assert (code, launch.starts()) == (2, [])
    assert message in stderr


def test_it_works_through_a_symlink_from_any_folder(launch, tmp_path):
    (tmp_path / "link").symlink_to(SCRIPT)
    assert launch([0], "3", script=tmp_path / "link", cwd="/")[0] == 0


def test_a_signal_is_passed_on_and_nothing_is_started_again(launch, tmp_path):
    process = launch.start(["wait", 0], "3")
    deadline = time.monotonic() + 20
    while not launch.starts() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len(launch.starts()) == 1
