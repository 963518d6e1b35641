"""Real workers where they must not be, or with no more than they need: rivals, a stopped process, least permissions."""

import json
import signal
import time

import pytest

from extraction.storage import open_storage
from tests.helpers.workers import committed, extract, start

pytestmark = pytest.mark.slow

FENCED, TRY_AGAIN = 73, 75
OUTPUT = "gs://bucket/run"
TOKEN = "ya29.c0ASRK0Ga-a_token_that_must_stay_where_it_is-0123456789"


def winner_of(batch):
    """Attempt, host and start of the worker that committed a batch."""
    commit = json.loads(open_storage(OUTPUT).read(f"worker-00000/commits/{batch:08d}.json"))
    return f"attempt {commit['attempt']} on host {commit['host']}, started {commit['started']}"


def test_of_two_that_start_together_the_loser_names_the_winner_and_exits_73(undisturbed, gcs):
    streams, expected = undisturbed
    first, second = (gcs.instruct("insert", "*/commits/00000000.json", "hold") for _ in range(2))
    workers = [start(streams, OUTPUT) for _ in range(2)]
    assert first.entered.wait(60) and second.entered.wait(60)  # both have computed batch 0 and want to commit it
    first.release.set()
    second.release.set()
    errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert sorted(worker.returncode for worker in workers) == [0, FENCED], errors
    (error,) = (error for worker, error in zip(workers, errors, strict=True) if worker.returncode)
    assert f"commits/00000000.json was committed by another worker: {winner_of(0)}" in error
    assert committed(open_storage(OUTPUT)) == expected


def test_a_worker_that_was_stopped_for_a_while_finds_itself_fenced(undisturbed, gcs):
    """As a machine that is suspended: its request lands and it goes on after another has finished the stream."""
    streams, expected = undisturbed
    told = gcs.instruct("insert", "*/commits/00000002.json", "hold")
    stopped = start(streams, OUTPUT)
    assert told.entered.wait(60)
    stopped.send_signal(signal.SIGSTOP)
    assert extract(streams, OUTPUT).returncode == 0
    told.release.set()
    stopped.send_signal(signal.SIGCONT)
    error = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == FENCED, error
    assert f"commits/00000002.json was committed by another worker: {winner_of(2)}" in error
    assert committed(open_storage(OUTPUT)) == expected


def test_create_get_and_list_are_enough_and_no_secret_leaves_the_worker(undisturbed, gcs, tmp_path):
    """Killed once and started again; credentials of every kind are in the environment and in a file."""
    streams, expected = undisturbed
    gcs.permissions = frozenset({"create", "get", "list"})
    (tmp_path / "credentials.json").write_text(json.dumps({"type": "authorized_user", "refresh_token": TOKEN}))
    secrets = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "credentials.json"),
        "HF_TOKEN": TOKEN,
        "CLOUDSDK_AUTH_ACCESS_TOKEN": TOKEN,
    }
    killed = extract(streams, OUTPUT, EXTRACT_KILL_AT="before-commit:3", **secrets)
    again = extract(streams, OUTPUT, **secrets)
    assert (killed.returncode, again.returncode) == (-signal.SIGKILL, 0), again.stderr
    assert committed(open_storage(OUTPUT)) == expected
    assert {method for _, method, _, _ in gcs.history} == {"GET", "POST"}
    told = [killed.stderr, again.stderr, *(stored.data.decode(errors="replace") for stored in gcs.objects.values())]
    assert not any(TOKEN[5:] in text for text in told)
    (refused,) = (line for line in again.stderr.splitlines() if "refused" in line)  # the one object to be overwritten
    assert "progress.json is not written" in refused


@pytest.mark.parametrize("is_ours, code", [(True, TRY_AGAIN), (False, FENCED)])
def test_a_commit_of_its_killed_predecessor_that_lands_late_is_no_rivals(undisturbed, gcs, tmp_path, is_ours, code):
    """The successor has listed the commits by then. Only who started both can tell that the first one is dead."""
    streams, expected = undisturbed
    attempts = {"LAUNCH_ATTEMPTS_FILE": str(tmp_path / "attempts")}
    late, own = (gcs.instruct("insert", "*/commits/00000002.json", "hold") for _ in range(2))
    killed = start(streams, OUTPUT, **attempts)
    assert late.entered.wait(60)
    killed.kill()
    killed.communicate()
    if not is_ours:
        (tmp_path / "attempts").write_text("0123456789abcdef\n")
    successor = start(streams, OUTPUT, **attempts)
    assert own.entered.wait(60)
    late.release.set()
    wait_until(lambda: "run/worker-00000/commits/00000002.json" in gcs.objects)
    own.release.set()
    error = successor.communicate(timeout=60)[1]
    assert successor.returncode == code, error
    assert ("whose last request arrived late" in error) == is_ours
    assert extract(streams, OUTPUT, **attempts).returncode == 0
    assert committed(open_storage(OUTPUT)) == expected


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
