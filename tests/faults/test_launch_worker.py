"""launch_worker.sh: what it checks, restarts and passes on, with a stub in place of the interpreter; once for real."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extraction.worker.flags import WORKER_ID_VARIABLES
from tests.helpers.fake_gcs import FakeGcs
from tests.helpers.workers import MODEL, SMALL, make_streams, text_of, verify, write_corpus

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "launch_worker.sh"
# Stands for `python`: a version or import check passes; a worker notes its arguments and exits with the next code.
STUB = """#!/bin/sh
case "$1" in -c) exec {python} "$@";; esac
shift
code=$(head -n 1 {folder}/codes); sed -i 1d {folder}/codes
case "$code" in
  commit*) echo a commit > "$LAUNCH_COMMIT_FILE" ;;
  swept*) rm -r "$(dirname "$LAUNCH_COMMIT_FILE")" ;;
esac
case "$code" in
  *kill) end='kill -KILL $$' ;;
  *term) end='kill -TERM $$' ;;
  *crash) end='kill -SEGV $$' ;;
  wait*) trap "echo TERM >> {folder}/signals; exit ${{code#wait}}" TERM; end='while :; do sleep 0.05; done' ;;
  *) end="exit ${{code#swept}}" ;;
esac
(IFS='|'; echo "$*") >> {folder}/starts
eval "$end"
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
                "PATH": os.environ["PATH"],
                "PYTHON": str(self.stub),
                "MODEL": "a model",
                "STREAMS": "streams",
                "OUTPUT": "output",
                "LAUNCH_FIRST_PAUSE": "0.01",
                "LAUNCH_LONGEST_PAUSE": "0.05",
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
    assert launch.starts() == ["run|--model|a model|--streams|streams|--output|output|--worker-id|3"]


@pytest.mark.parametrize(
    "codes, settings",
    [
        ([75] * 12, {}),  # storage may be away for as long as it likes
        (["kill", "term"] * 6, {"LAUNCH_QUICK": "0"}),  # so may machines
        (["kill", "term", "commit kill", "kill"], {"LAUNCH_KILLS": "3"}),  # a commit starts the count anew
        (["crash", "crash", "commit crash", "crash"], {"LAUNCH_FAILURES": "3"}),
        # The budgets are apart.
        (["crash", 75, "kill", 75, "crash", 75, "kill"], {"LAUNCH_FAILURES": "3", "LAUNCH_KILLS": "3"}),
    ],
)
def test_it_starts_again_for_as_long_as_that_can_help(launch, codes, settings):
    code, stderr = launch([*codes, 0], "3", **settings)
    assert code == 0, stderr
    assert len(launch.starts()) == len(codes) + 1
    assert stderr.count("again in") == len(codes)


def test_no_permission_after_a_commit_is_tried_again_for_a_while(launch):
    assert launch(["commit kill", 77, 77, "commit kill", 77, 0], "3", LAUNCH_FAILURES="3")[0] == 0
    code, stderr = launch(["commit kill", 77, 77, 77, 0], "3", LAUNCH_FAILURES="3")
    assert code == 77 and "no permission 3 times in a row without a new commit" in stderr


def test_a_launcher_whose_log_is_gone_starts_again(launch, tmp_path):
    (tmp_path / "codes").write_text("75\n75\n0\n")
    read, write = os.pipe()
    os.close(read)
    assert subprocess.run([SCRIPT, "3"], env=launch.environment, cwd=tmp_path, stderr=write).returncode == 0
    with open("/dev/full", "w") as full:
        (tmp_path / "codes").write_text("75\n0\n")
        assert subprocess.run([SCRIPT, "3"], env=launch.environment, cwd=tmp_path, stderr=full).returncode == 0
    assert len(launch.starts()) == 5


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_worker_ends_with_its_launcher(undisturbed, tmp_path, number):
    """Held by a bucket that does not answer, as one that is busy would be."""
    streams, _ = undisturbed
    with FakeGcs() as server:
        told = server.instruct("list", "*/commits/", "hold", seconds=120)
        environment = {
            "PYTHON": sys.executable, "MODEL": str(MODEL), "STREAMS": str(streams), "OUTPUT": "gs://bucket/run",
            "WORKER_ID": "0", "JAX_PLATFORMS": "cpu", "STORAGE_EMULATOR_HOST": server.address,
        }  # fmt: skip
        launcher = subprocess.Popen([SCRIPT, *SMALL], env=os.environ | environment, stderr=subprocess.PIPE)
        assert told.entered.wait(60)
        launcher.send_signal(number)
        launcher.communicate(timeout=60)  # until nobody has its stderr: the worker has it, too
        told.release.set()
    assert launcher.returncode == (-9 if number == signal.SIGKILL else 75)


@pytest.mark.parametrize(
    "codes, code, message",
    [
        (["kill"], 137, "killed 4 times in a row, soon after the start and without a new commit"),
        (["term", 75], 143, "killed 4 times in a row"),
        (["crash", 75], 139, "4 crashes in a row, the last by signal 11, without a new commit"),
    ],
)
def test_a_crash_loop_ends_with_what_to_look_at(launch, codes, code, message):
    ended, stderr = launch(codes * 10, "3", LAUNCH_KILLS="4", LAUNCH_FAILURES="4")
    assert ended == code
    assert message in stderr
    assert "dmesg" in stderr
    assert len(launch.starts()) == 4 * len(codes) - (len(codes) - 1)


def test_pauses_grow_up_to_the_longest_and_start_anew_after_a_commit(launch):
    codes = [75, 75, 75, 75, "commit kill", 0]
    _, stderr = launch(codes, "3", LAUNCH_FIRST_PAUSE="0.02", LAUNCH_LONGEST_PAUSE="0.08")
    pauses = map(float, re.findall(r"again in (\S+) s", stderr))
    for pause, whole in zip(pauses, [0.02, 0.04, 0.08, 0.08, 0.02], strict=True):
        assert whole / 2 <= pause <= whole


def test_a_temporary_folder_that_was_cleaned_up_is_made_again(launch):
    assert launch(["swept75", "swept0"], "3")[0] == 0
    assert len(launch.starts()) == 2


IDS = ["WORKER_ID", "EXTRACT_WORKER_ID", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID",
       "SKYPILOT_JOB_RANK"]  # fmt: skip


def test_the_launcher_and_the_worker_prefer_the_same_variable():
    assert list(WORKER_ID_VARIABLES) == IDS


@pytest.mark.parametrize("name", IDS)
def test_the_worker_id_comes_from_the_scheduler(launch, name):
    assert launch([0], **{name: "7"})[0] == 0
    assert launch.starts()[0].endswith("--worker-id|7")
    later = IDS[IDS.index(name) + 1 :]
    assert launch([0], **{name: "7"} | dict.fromkeys(later, "0"))[0] == 0
    assert launch.starts()[1].endswith("--worker-id|7")


def test_any_stream_may_be_named_as_the_flag_is(launch):
    assert launch([0], EXTRACT_STREAM="any")[0] == 0
    assert launch.starts()[0].endswith("--stream|any")


def test_a_signal_while_the_interpreter_is_checked_is_try_again(launch, tmp_path):
    launch.stub.write_text(f"#!/bin/sh\ntouch {tmp_path}/checked; sleep 0.3; exit 0\n")
    process = launch.start([], "3")
    wait_for((tmp_path / "checked").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert (process.returncode, launch.starts()) == (75, [])


def test_further_arguments_and_settings_reach_the_worker(launch):
    assert launch([0], "3", "--seq-len", "8", LAYERS="1,2", HOOKS="z")[0] == 0
    assert launch.starts()[0].endswith("--worker-id|3|--layers|1,2|--hooks|z|--seq-len|8")


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        ([], {}, "no worker id"),
        (["x"], {}, "'x' is not a number"),
        (["1"], {"MODEL": None}, "MODEL is not set"),
        (["1"], {"STREAMS": None}, "STREAMS is not set"),
        (["1"], {"OUTPUT": None}, "OUTPUT is not set"),
        (["1"], {"PYTHON": "/nowhere/python"}, "no interpreter '/nowhere/python'; make one: uv venv --seed "),
    ],
)
def test_what_is_missing_is_said_before_python_starts(launch, arguments, environment, message):
    code, stderr = launch([0], *arguments, **environment)
    assert (code, launch.starts()) == (2, [])
    assert message in stderr


def test_it_works_through_a_symlink_from_any_folder(launch, tmp_path):
    (tmp_path / "link").symlink_to(SCRIPT)
    assert launch([0], "3", script=tmp_path / "link", cwd="/")[0] == 0


def test_paths_may_have_spaces(launch, tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    shutil.copy(launch.stub, folder / "an interpreter")
    interpreter = str(folder / "an interpreter")
    code, stderr = launch([75, 0], "3", script=folder / SCRIPT.name, PYTHON=interpreter, OUTPUT="an output")
    assert code == 0, stderr
    assert launch.starts()[1] == "run|--model|a model|--streams|streams|--output|an output|--worker-id|3"


def test_its_lines_are_json_where_the_workers_are(launch):
    code, stderr = launch(["kill", "crash", 65], "3", EXTRACT_LOG_FORMAT="json", LAUNCH_KILLS="2")
    entries = [json.loads(line) for line in stderr.splitlines()]
    assert (code, [entry["severity"] for entry in entries]) == (65, ["WARNING", "WARNING"])
    code, stderr = launch([], 'no \\ "number"', EXTRACT_LOG_FORMAT="json")
    entry = json.loads(stderr)
    assert (code, entry["severity"]) == (2, "ERROR")
    assert entry["message"] == "launch_worker: worker id 'no \\ \"number\"' is not a number"


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [75, 0, 73])
def test_a_signal_is_passed_on_and_nothing_is_started_again(launch, tmp_path, number, code):
    process = launch.start([f"wait{code}", 0], "3")
    wait_for(launch.starts)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len(launch.starts()) == 1


def test_a_signal_ends_a_pause_at_once(launch):
    process = launch.start([75, 0], "3", LAUNCH_FIRST_PAUSE="600", LAUNCH_LONGEST_PAUSE="600")
    assert "again in" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert len(launch.starts()) == 1


def test_a_real_worker_killed_in_mid_stream_is_started_again_to_the_end(tmp_path):
    texts = [text_of(i, 5 + i * 4) for i in range(14)]
    streams, output = make_streams(write_corpus(tmp_path / "corpus", texts), tmp_path / "streams"), tmp_path / "output"
    places = {"PYTHON": sys.executable, "MODEL": str(MODEL), "STREAMS": str(streams), "OUTPUT": str(output)}
    settings = {"JAX_PLATFORMS": "cpu", "LAUNCH_FIRST_PAUSE": "0.01", "LAUNCH_KILLS": "2"}
    environment = os.environ | places | settings | {"EXTRACT_KILL_AT": "after-commit:2"}
    result = subprocess.run([SCRIPT, "0", *SMALL], env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "worker ended with 137" in result.stderr
    assert result.stderr.count("at record") == 2
    assert "stream complete, 14 records" in result.stderr
    assert f"{output}: proven" in verify(output).stdout
