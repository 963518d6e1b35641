"""Refusals that pass: what was granted is sought again for a while, and a machine of Google's waits for its server."""

import time

import pytest

from extraction.core.errors import BucketDenied, TryAgain
from extraction.storage import open_storage
from tests.helpers.fake_metadata import FakeMetadata
from tests.helpers.workers import extract, verify

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(gcs):
    return open_storage("gs://bucket/run")


ACTS = {
    "insert": lambda bucket, number: bucket.create(f"new-{number}", b"x"),
    "read": lambda bucket, number: bucket.read("x"),
    "list": lambda bucket, number: list(bucket.list()),
    "get": lambda bucket, number: bucket.stat("x"),
}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("operation", ACTS)
def test_what_was_granted_once_is_tried_again(gcs, bucket, operation, status):
    bucket.create("x", b"x")
    for number in range(2):
        act = ACTS[operation]
        act(bucket, number)
        told = gcs.instruct(operation, "*", "fail", status=status, count=3)
        act(bucket, number + 2)
        assert told.count == 0


def test_a_refusal_of_everything_is_waited_for_by_a_second_storage_too(gcs, bucket):
    bucket.create("x", b"x")
    bucket.read("x")
    gcs.instruct("*", "*", "fail", status=403, count=5)
    assert open_storage("gs://bucket/other").create("y", b"y").size == 1


def test_what_is_refused_for_good_is_no_permission_in_the_end(gcs, bucket, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    bucket = open_storage("gs://bucket/run")
    bucket.create("x", b"x")
    gcs.permissions = frozenset({"get", "list"})
    with pytest.raises(BucketDenied, match="storage.objects.create on gs://bucket"):
        bucket.create("y", b"y")


def test_what_was_never_granted_is_no_permission_at_once(gcs, bucket):
    told = gcs.instruct("insert", "*", "fail", status=403, count=9)
    with pytest.raises(BucketDenied):
        bucket.create("x", b"x")
    assert told.count == 8


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"])
def test_a_limit_of_the_rate_is_no_refusal(gcs, bucket, reason):
    gcs.instruct("insert", "*", "fail", status=403, reason=reason, count=2)
    assert bucket.create("x", b"x").size == 1


def test_a_limit_of_the_rate_is_no_refusal_when_looking_for_an_object_either(gcs, bucket):
    gcs.instruct("insert", "*", "fail", status=503)
    told = gcs.instruct("get", "*", "fail", status=403, reason="rateLimitExceeded")
    assert bucket.create("x", b"x").size == 1
    assert told.count == 0


@pytest.mark.parametrize("trouble", [{"action": "undated"}, {"action": "fail", "status": 503}, {"action": "reset"}])
def test_the_clock_of_the_bucket_is_asked_again(gcs, bucket, trouble):
    gcs.instruct("list", "", count=2, **trouble)
    assert bucket.now() == pytest.approx(time.time(), abs=5)


def test_a_clock_that_never_answers_is_try_again(gcs, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    bucket = open_storage("gs://bucket/run")
    gcs.instruct("list", "", "undated", count=99)
    with pytest.raises(TryAgain, match="the answer has no Date"):
        bucket.now()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of Google's without credentials of its own; `machine(server)` starts it."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "NO_GCE_CHECK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))

    def begin(host: str, deadline: str) -> None:
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        monkeypatch.setenv("GCE_METADATA_IP", host)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", deadline)

    return begin


def test_a_metadata_server_that_is_not_ready_is_waited_for(machine):
    with FakeMetadata(failures=(503,) * 4) as server:
        machine(server.host, "20")
        assert open_storage("gs://bucket/run").location == "gs://bucket/run"
        assert server.failures == []


def test_a_metadata_server_that_is_never_ready_is_try_again(machine):
    with FakeMetadata(failures=(503,) * 99) as server:
        machine(server.host, "0.3")
        with pytest.raises(TryAgain):
            open_storage("gs://bucket/run")


def test_a_worker_whose_uploads_are_refused_for_a_while_finishes(gcs, undisturbed):
    streams, batches = undisturbed
    told = gcs.instruct("insert", "*/batches/*", "fail", status=403, count=4)
    result = extract(streams, "gs://bucket/run")
    assert (result.returncode, told.count) == (0, 0), result.stderr
    assert f"{len(batches)} batches" in verify("gs://bucket/run").stdout
