"""Both scripts of the root find an interpreter on PATH that is new enough, or say what to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.workers import ROOT

# Notes by which name and with which arguments it was called; `new` is the code of the check of its version.
FAKE = """#!/bin/sh
case "$2" in *version_info*) exit {new} ;; esac
[ "$1" = -c ] || echo "{name} $1" >> {calls}
exit 0
"""
OLD, NEW = 1, 0


@pytest.fixture
def machine(tmp_path):
    """Runs a script in a folder of its own, on a machine with these interpreters: their calls, and what was said."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for path in Path(folder).iterdir():
            if not path.name.startswith(("python", "pypy")) and not (tools / path.name).exists():
                (tools / path.name).symlink_to(path)
    project = tmp_path / "a project"
    (project / "deploy").mkdir(parents=True)
    for name in ("launch_worker.sh", "example_parallel_workflow.sh", "deploy/find_python.sh"):
        shutil.copy(ROOT / name, project / name)

    def run(script, interpreters):
        for name, new in interpreters.items():
            (tools / name).write_text(FAKE.format(name=name, new=new, calls=tmp_path / "calls"))
            (tools / name).chmod(0o755)
        environment = {"PATH": str(tools), "MODEL": "m", "STREAMS": "s", "OUTPUT": "o", "WORKER_ID": "0"}
        result = subprocess.run([project / script], env=environment, capture_output=True, text=True, timeout=60)
        calls = tmp_path / "calls"
        return calls.read_text().splitlines() if calls.exists() else [], result

    return run


CALLS = {"launch_worker.sh": f"{{}} {os.sep}", "example_parallel_workflow.sh": "{} -m"}


@pytest.mark.parametrize("script", CALLS)
@pytest.mark.parametrize(
    "interpreters, chosen",
    [
        ({"python3": NEW, "python3.13": NEW}, "python3"),
        ({"python3": OLD, "python3.12": NEW, "python3.11": NEW}, "python3.12"),
        ({"python3.13": 127, "python3.11": NEW}, "python3.11"),  # pyenv's name for what it does not offer
    ],
)
def test_the_first_that_is_new_enough_is_taken(machine, script, interpreters, chosen):
    calls, result = machine(script, interpreters)
    assert calls and calls[0].startswith(CALLS[script].format(chosen)), result.stderr


@pytest.mark.parametrize("script", CALLS)
@pytest.mark.parametrize("interpreters", [{}, {"python3": OLD, "python3.10": NEW}])
def test_where_there_is_none_one_line_says_what_to_do(machine, script, interpreters):
    calls, result = machine(script, interpreters)
    assert (result.returncode, calls) == (2, [])
    (line,) = result.stderr.splitlines()
    assert "Python 3.11 or later" in line and "uv venv --seed --python 3.12 .venv" in line
