"""A log that cannot be written ends no command, and no character of a message steers a terminal."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from extraction.core.logs import say
from extraction.storage import open_storage
from extraction.tools.status import NEEDS_A_PERSON
from tests.helpers.runs import STREAMS, make_run
from tests.helpers.workers import ROOT, arguments_for, verify

COMMAND = [sys.executable, ROOT / "extract_activations.py"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without a model, finished but for its manifest: enough for `status`."""
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return folder


def test_a_message_does_not_steer_the_terminal(capsys):
    say("a\x1b[31m b\x07\nc\x9b")
    assert capsys.readouterr().err == "a\\x1b[31m b\\x07\nc\\x9b\n"


@pytest.mark.slow
@pytest.mark.parametrize("log", ["full disk", "closed pipe", "closed"])
def test_a_worker_without_a_log_finishes(undisturbed, tmp_path, log):
    streams, batches = undisturbed
    command = [*map(str, COMMAND), *map(str, arguments_for(streams, tmp_path / "output"))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if log == "closed":
        code = subprocess.run(["bash", "-c", 'exec "$@" >&- 2>&-', "-", *command], env=environment).returncode
    elif log == "full disk":
        with open("/dev/full", "w") as full:
            code = subprocess.run(command, stdout=full, stderr=full, env=environment).returncode
    else:
        read, write = os.pipe()
        os.close(read)
        code = subprocess.run(command, stdout=write, stderr=write, env=environment).returncode
        os.close(write)
    assert code == 0
    found = verify(tmp_path / "output")
    assert found.returncode == 0 and f"{len(batches)} batches" in found.stdout


@pytest.mark.slow
def test_an_ascii_locale_shows_a_path_that_it_cannot_encode(run, tmp_path):
    (tmp_path / "läufe").symlink_to(run)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([*COMMAND, "status", tmp_path / "läufe"], env=os.environ | plain, capture_output=True)
    assert b"Traceback" not in result.stderr and b"l\\udcc3\\udca4ufe" in result.stdout, result.stderr


HOSTILE = "\\[/x] [/x] [bold]\x1b]0;owned\x07"


@pytest.mark.slow
def test_stored_text_neither_breaks_nor_steers_status(run, tmp_path):
    folder = tmp_path / "[bold]run[/x]"
    shutil.copytree(run, folder)
    os.remove(max((folder / "worker-00001/commits").iterdir()))
    note = {"format": 4, "state": "failed", "message": HOSTILE, "attempt": "a", "host": HOSTILE}
    (folder / "worker-00001/attempts").mkdir(exist_ok=True)
    (folder / "worker-00001/attempts/z.end.json").write_text(json.dumps(note))
    result = subprocess.run([*COMMAND, "status", folder], capture_output=True, text=True)
    assert result.returncode in (NEEDS_A_PERSON, 75) and result.stderr == ""
    assert "\x1b" not in result.stdout and "\\[/x] [/x] [bold]\\x1b]0;owned\\x07" in result.stdout
    assert str(folder) in result.stdout.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["progress.json", "attempts/z.end.json", "commits/00000099.json"])
def test_a_huge_object_is_not_read_whole(run, tmp_path, name):
    """3 GB, sparse: reading it would take more memory than the limit allows."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for commit in sorted((folder / "worker-00001/commits").iterdir())[1:]:
        os.remove(commit)
    path = folder / "worker-00001" / name.replace("99", "01")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 3 << 30)
    limited = ["bash", "-c", 'ulimit -v 2500000; exec "$@"', "-", *map(str, [*COMMAND, "status", folder, "--json"])]
    result = subprocess.run(limited, capture_output=True, text=True)
    assert result.returncode in (NEEDS_A_PERSON, 75) and not result.stderr, result.stderr
    assert json.loads(result.stdout)["streams"][1]["state"] == ("running" if name == "progress.json" else "failed")


def test_a_run_json_with_odd_versions_is_damage(run, tmp_path):
    from extraction.core.errors import DamagedData
    from extraction.format.run_config import read_run

    value = json.loads((run / "run.json").read_text())
    for versions in ({"jax": 1}, {"jax": "x" * 100_000}, {"jax": ["0"]}):
        (tmp_path / "run.json").write_text(json.dumps(value | {"versions": versions}))
        with pytest.raises(DamagedData, match="versions are not short texts"):
            read_run(open_storage(str(tmp_path)))
