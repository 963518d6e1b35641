"""What storage makes of rarer trouble with a bucket: forgotten sessions, corrupted content, refused tokens."""

import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from extraction.core.errors import DamagedData, InvalidRequest, ObjectExists, PermissionDenied, TryAgain
from extraction.storage import crc32c_base64, open_storage
from extraction.storage.retries import Passing, RetryPolicy
from tests.helpers.fake_gcs import PERMISSIONS
from tests.helpers.workers import python

pytestmark = pytest.mark.slow

SMALL = b"some bytes"
LARGE = os.urandom(1000) * 9000  # beyond one request
SECRET = "ya29.a0AfH6SMBx-secret-token-of-the-worker_0123456789"


@pytest.fixture
def bucket(gcs):
    return open_storage("gs://bucket/run")


# ---------------------------------------------------------------------------------------------- uploads


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_session_that_the_service_forgot_is_begun_anew(gcs, bucket, status):
    gcs.instruct("resumable-chunk", "*", "fail", status=status)
    bucket.create("x", LARGE)
    assert gcs.find("run/x").data == LARGE
    assert len(gcs.operations("resumable-start")) == 2


@pytest.mark.parametrize("operation, data", [("insert", SMALL), ("resumable-chunk", LARGE)])
def test_content_corrupted_on_the_way_there_never_appears_and_nothing_is_deleted(gcs, bucket, operation, data):
    gcs.instruct(operation, "*", "corrupt", count=2)
    assert bucket.create("x", data).crc32c == crc32c_base64(data)
    assert gcs.find("run/x").data == data
    assert [status for _, _, what, status in gcs.history if what == f"{operation} run/x"] == [400, 400, 200]
    assert "DELETE" not in {method for _, method, _, _ in gcs.history}


@pytest.mark.parametrize("operation, data", [("insert", SMALL), ("resumable-chunk", LARGE)])
def test_an_answer_that_tells_another_checksum_is_looked_into_and_nothing_is_deleted(gcs, bucket, operation, data):
    gcs.instruct(operation, "*", "misreport")
    assert bucket.create("x", data).generation == gcs.find("run/x").generation
    assert gcs.instructions[0].count == 0
    assert "DELETE" not in {method for _, method, _, _ in gcs.history}


def test_when_the_answer_is_lost_and_looking_fails_too_the_object_is_still_adopted(gcs, bucket):
    gcs.instruct("insert", "*", "land-then-break")
    gcs.instruct("get", "*", "fail", count=2)
    assert bucket.create("x", SMALL).generation == gcs.find("run/x").generation
    with pytest.raises(ObjectExists):
        bucket.create("x", b"other")


def test_a_precondition_that_fails_over_nothing_is_try_again(gcs, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    gcs.instruct("insert", "*", "fail", status=412, count=100)
    with pytest.raises(TryAgain, match="the upload left nothing"):
        open_storage("gs://bucket/run").create("x", SMALL)


def test_what_the_service_will_never_accept_is_one_line_and_not_tried_again(gcs, bucket):
    gcs.instruct("insert", "*", "fail", status=400, count=100)
    with pytest.raises(InvalidRequest, match="gs://bucket/run/x: the service refused: 400"):
        bucket.create("x", SMALL)
    assert gcs.instructions[0].count == 99


def test_overwriting_is_tried_once_so_that_commits_need_not_wait(gcs, bucket):
    gcs.one_write_a_second = True
    bucket.replace("progress.json", b"1")
    with pytest.raises(TryAgain, match="only try.*rate limit"):
        bucket.replace("progress.json", b"2")
    bucket.create("x", SMALL)


@pytest.mark.parametrize(
    "missing, act",
    [
        ("create", lambda bucket: bucket.create("new", SMALL)),
        ("get", lambda bucket: bucket.stat("x")),
        ("get", lambda bucket: bucket.create("x", SMALL)),
        ("list", lambda bucket: list(bucket.list())),
    ],
)
def test_the_permission_that_is_missing_is_the_one_that_is_named(gcs, bucket, missing, act):
    bucket.create("x", SMALL)
    gcs.permissions = PERMISSIONS - {missing, "delete"}
    with pytest.raises(PermissionDenied, match=f"storage.objects.{missing} on gs://bucket was refused"):
        act(bucket)


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("change", [lambda gcs: gcs.land("run/x", LARGE, None), lambda gcs: gcs.remove("run/x")])
def test_an_open_object_that_is_replaced_or_removed_is_noticed(gcs, bucket, change):
    bucket.create("x", LARGE)
    with bucket.open("x") as file:
        assert file.read(10) == LARGE[:10]
        change(gcs)
        file.seek(5_000_000)
        with pytest.raises(DamagedData, match="gs://bucket/run/x: it was replaced or removed"):
            file.read(10)


def test_a_service_that_gives_all_for_a_part_is_not_believed(gcs, bucket):
    bucket.create("x", LARGE)
    gcs.instruct("read", "*", "whole")
    with pytest.raises(InvalidRequest, match="does not give parts"):
        bucket.read("x", 10, 20)


def test_arrow_hands_on_that_its_file_was_replaced(gcs, bucket):
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(pa.table({"a": [os.urandom(1000) for _ in range(4000)]}), content, row_group_size=1000)
    bucket.create("x", content.getvalue())
    with bucket.open("x") as file:
        parquet = pq.ParquetFile(file)
        gcs.land("run/x", content.getvalue(), None)
        with pytest.raises(DamagedData, match="it was replaced"):
            parquet.read_row_group(1)


# ---------------------------------------------------------------------------------------------- credentials


@pytest.fixture
def token_server():
    """A token server that answers every request with `answer = (status, body)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def credentials(monkeypatch, tmp_path, token_server):
    """Credentials whose tokens come from `token_server`, in a file that holds a secret."""
    (tmp_path / "subject").write_text(SECRET)
    (tmp_path / "credentials.json").write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": "//iam.googleapis.com/pool",
                "client_secret": SECRET,
                "client_id": "id",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"http://127.0.0.1:{token_server.server_address[1]}/token",
                "credential_source": {"file": str(tmp_path / "subject")},
            }
        )
    )
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials.json"))
    return tmp_path / "credentials.json"


@pytest.mark.parametrize(
    "answer",
    [
        (400, json.dumps({"error": "invalid_grant", "error_description": f"bad subject token {SECRET}"})),
        (401, SECRET),
        (403, json.dumps({"unexpected": SECRET, "refresh_token": "1//0" + SECRET})),
    ],
)
def test_a_token_that_is_refused_is_no_permission_and_is_not_told(credentials, token_server, answer):
    token_server.answer = answer
    with pytest.raises(PermissionDenied, match="gs://bucket") as caught:
        open_storage("gs://bucket/run").create("x", SMALL)
    assert SECRET[5:] not in str(caught.value)


def test_a_token_server_that_is_away_is_try_again(credentials, token_server):
    token_server.server_close()
    with pytest.raises(TryAgain, match="gs://bucket"):
        open_storage("gs://bucket/run").stat("x")


def test_a_metadata_server_that_gives_no_token_is_try_again(monkeypatch):
    """On a machine of Google's the token comes from there; it is away for moments, and then that is no refusal."""
    from google.auth.exceptions import RefreshError, TransportError

    from extraction.storage.gcs_errors import is_passing

    try:
        try:
            raise TransportError("Compute Engine Metadata server unavailable")
        except TransportError as cause:
            raise RefreshError(cause) from cause  # as google.auth.compute_engine.Credentials.refresh does
    except RefreshError as error:
        assert is_passing(error)
    assert not is_passing(RefreshError("invalid_grant"))


def test_an_answer_without_content_is_retried_and_a_mistake_is_not():
    """The client hands on the bytes of an empty answer with status 200, and fails to read a field of them."""
    from extraction.storage.gcs_errors import is_passing

    for value, is_answer in ((b"", True), (None, False)):
        with pytest.raises(AttributeError) as caught:
            value.get("items")
        assert is_passing(caught.value) == is_answer


@pytest.mark.parametrize("content", [None, "", "{}", json.dumps({"type": "service_account", "private_key": SECRET})])
def test_credentials_that_cannot_be_used_are_no_permission_and_are_not_told(credentials, content):
    credentials.unlink() if content is None else credentials.write_text(content)
    with pytest.raises(PermissionDenied, match="gs://bucket") as caught:
        open_storage("gs://bucket/run").create("x", SMALL)
    assert SECRET[5:] not in str(caught.value)


def test_without_credentials_that_is_what_is_said(tmp_path):
    nowhere = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    nowhere |= {"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": ""}
    result = python("extract_activations.py", "status", "gs://bucket/run", **nowhere)
    assert result.returncode == 77, result.stderr
    said = "error: gs://bucket: there are no Google credentials that can be used: Your default credentials were not"
    assert result.stderr.startswith(said)
    assert "gcloud auth application-default login" in result.stderr
    assert "refused" not in result.stderr and "storage.objects" not in result.stderr


@pytest.mark.parametrize("location", ["gs://bucket/run", "hf://datasets/lab/web"])
def test_a_retry_deadline_that_is_no_number_is_named(monkeypatch, location):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "soon")
    with pytest.raises(InvalidRequest, match="EXTRACT_RETRY_DEADLINE=soon"):
        open_storage(location)


def test_the_retry_deadline_counts_from_the_first_failure(monkeypatch):
    """A request that takes longer than the deadline before it fails has another try."""
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    results = iter([ConnectionError("cut"), "done"])

    def attempt():
        time.sleep(0.4)
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    assert RetryPolicy().call("x", attempt, lambda error: Passing(str(error))) == "done"


@pytest.mark.parametrize("location", ["gs://", "gs:///", "gs:///run"])
def test_a_location_without_a_bucket_is_refused(gcs, location):
    with pytest.raises(InvalidRequest, match="give gs://bucket/prefix"):
        open_storage(location)
