"""A clock that is wrong, or jumps: nothing that is stored or decided depends on it.

A library in front of the C library's clock, built with the compiler that is here, stands for a machine whose clock is
off. Only `started`, for people, shows it.
"""

import ast
import datetime
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from extraction.storage import open_storage
from tests.helpers.workers import ROOT, committed, extract

pytestmark = pytest.mark.slow

DAY = 86_400
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <sys/time.h>

/* Seconds that the wall clock is off; with CLOCK_JUMPS each look finds it on the other side. */
static long offset(void) {
    static long looks;
    const char *text = getenv("CLOCK_OFFSET");
    long seconds = text ? atol(text) : 0;
    return getenv("CLOCK_JUMPS") && __atomic_fetch_add(&looks, 1, __ATOMIC_RELAXED) % 2 ? -seconds : seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """The environment of a process whose clock is off by `CLOCK_OFFSET` seconds."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler (cc) is missing, which builds the wrong clock")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", folder / "clock.so", folder / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(folder / "clock.so")}


def days_off(commit):
    started = datetime.datetime.strptime(commit["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    return round((started - datetime.datetime.now(datetime.UTC)).total_seconds() / DAY)


def test_a_clock_ahead_behind_and_jumping_changes_nothing(undisturbed, tmp_path, clock):
    streams, expected = undisturbed
    output = tmp_path / "output"
    for settings, ending in [
        ({"CLOCK_OFFSET": str(DAY), "EXTRACT_KILL_AT": "before-commit:2"}, -signal.SIGKILL),
        ({"CLOCK_OFFSET": str(-DAY), "EXTRACT_KILL_AT": "before-commit:4"}, -signal.SIGKILL),
        ({"CLOCK_OFFSET": str(DAY), "CLOCK_JUMPS": "1"}, 0),
    ]:
        result = extract(streams, output, **clock, **settings)
        assert result.returncode == ending, result.stderr
    assert committed(open_storage(str(output))) == expected
    commits = [json.loads(path.read_text()) for path in sorted((output / "worker-00000/commits").iterdir())]
    assert [days_off(commit) for commit in commits[:4]] == [1, 1, -1, -1]
    assert {abs(days_off(commit)) for commit in commits[4:]} == {1}


def test_what_a_worker_stores_or_decides_asks_no_wall_clock():
    """Where the wall clock is read at all: for people to read, and to tell how old an object is."""
    asked = set()
    for path in [ROOT / "checkpoint.py", *sorted((ROOT / "extraction").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "time.time_ns",
                "time.gmtime",
                "time.localtime",
                "datetime.now",
                "datetime.utcnow",
            ):
                asked.add(str(Path(os.path.relpath(path, ROOT))))
    assert asked <= {"extraction/format/commit.py", "extraction/core/logs.py", "extraction/storage/local.py"}, asked
