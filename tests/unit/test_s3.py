"""S3: whole, create-only objects on moto's server, and what becomes of lost answers, cut uploads and refusals."""

import contextlib
import os
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from extraction.audit.verify import audit_run
from extraction.core.errors import DamagedData, InvalidRequest, ObjectExists, ObjectNotFound, PermissionDenied, TryAgain
from extraction.format.commit import Attempt
from extraction.storage import crc32c_base64, open_storage, retries
from extraction.storage import s3 as library
from extraction.storage.s3_errors import reason
from extraction.streams.build.materialize import Row, publish_rows
from extraction.streams.build.publish import Origin
from extraction.worker.attempts import note_begin
from tests.helpers.fake_s3 import ENVIRONMENT
from tests.helpers.stream_runs import DATA, NUM_WORKERS, assert_found, extract, flipped

pytestmark = pytest.mark.slow

SMALL = b"some bytes"
LARGE = os.urandom(1000) * 6000


@pytest.fixture
def bucket(s3, monkeypatch):
    monkeypatch.setattr(library, "_SINGLE_REQUEST", 1 << 20)
    monkeypatch.setattr(library, "_PART", 5 << 20)  # the least that the service takes
    return open_storage("s3://bucket/run")


def test_the_server_honours_the_condition_of_a_create(s3):
    """Or nothing below would prove anything."""
    s3.client.put_object(Bucket="bucket", Key="x", Body=b"one", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.client.put_object(Bucket="bucket", Key="x", Body=b"two", IfNoneMatch="*")
    upload = s3.client.create_multipart_upload(Bucket="bucket", Key="x")["UploadId"]
    tag = s3.client.upload_part(Bucket="bucket", Key="x", UploadId=upload, PartNumber=1, Body=b"three")["ETag"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.client.complete_multipart_upload(
            Bucket="bucket", Key="x", UploadId=upload, IfNoneMatch="*",
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]},
        )  # fmt: skip
    assert s3.data("x") == b"one"


@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
def test_an_object_is_created_once_whole_with_its_checksum(s3, bucket, data):
    info = bucket.create("a/x", data)
    assert info.holds(len(data), crc32c_base64(data)) and bucket.stat("a/x").crc32c == info.crc32c
    assert bucket.create("a/x", data).holds(len(data), crc32c_base64(data))
    with pytest.raises(ObjectExists, match="s3://bucket/run/a/x is there with other bytes"):
        bucket.create("a/x", data + b"!")
    assert bucket.read("a/x") == data == bytes(bucket.view("a/x")) == bucket.open("a/x").read()
    assert bucket.read("a/x", 3, 7) == data[3:7] and bucket.read("a/x", len(data)) == b""
    assert bytes(bucket.view("a/x", 1, 5)) == data[1:5]
    assert [(one.name, one.size) for one in bucket.list()] == [("a/x", len(data))]
    assert bucket.folders() == ["a"]
    with pytest.raises(ObjectNotFound):
        bucket.read("b")


def test_listing_goes_over_pages_and_begins_behind_a_name(s3, bucket):
    for number in range(1005):
        s3.put(f"run/{number:05d}", b"")
    assert [one.name for one in bucket.list()] == [f"{number:05d}" for number in range(1005)]
    assert [one.name for one in bucket.list("01", "01002")] == ["01003", "01004"]
    assert abs(bucket.now() - bucket.stat("00000").updated) < 60


@pytest.mark.parametrize("action", ["fail", "break", "land-then-break"])
@pytest.mark.parametrize(
    "operation, data",
    [("put", SMALL), ("multipart-start", LARGE), ("part", LARGE), ("complete", LARGE)],
)
def test_an_upload_survives_one_fault_and_is_stored_once(s3, bucket, operation, data, action):
    s3.instruct(operation, action, status=503, code="SlowDown")
    assert bucket.create("x", data).holds(len(data), crc32c_base64(data))
    assert s3.instructions[0].count == 0 and s3.data("run/x") == data and s3.keys() == ["run/x"]


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_after_a_lost_answer_the_bytes_of_a_rival_are_seen(s3, bucket, data):
    s3.client.put_object(Bucket="bucket", Key="run/x", Body=b"a rival's")
    s3.instruct("put", "break")
    s3.instruct("complete", "break")
    with pytest.raises(ObjectExists):
        bucket.create("x", data)
    assert s3.data("run/x") == b"a rival's"


def test_when_the_answer_is_lost_and_looking_fails_too_the_object_is_still_adopted(s3, bucket):
    s3.instruct("put", "land-then-break")
    s3.instruct("stat", "fail", status=503, count=2)
    assert bucket.create("x", SMALL).holds(len(SMALL), crc32c_base64(SMALL)) and s3.keys() == ["run/x"]


def test_a_conflict_of_two_conditional_writes_passes(s3, bucket):
    s3.instruct("put", "fail", status=409, code="ConditionalRequestConflict")
    bucket.create("x", SMALL)
    assert s3.data("run/x") == SMALL


@pytest.mark.parametrize("operation", ["put", "complete"])
def test_a_service_that_ignores_the_condition_is_refused_at_the_first_create(s3, bucket, operation):
    s3.instruct(operation, "ignore-condition", count=2)
    with pytest.raises(InvalidRequest, match="the service ignores If-None-Match"):
        bucket.create("x", SMALL)
    assert s3.data("run/x") == SMALL


def test_a_service_that_ignores_the_condition_ends_the_attempt_at_its_note(s3, bucket):
    """The next write may be a batch file, which is too large to be written again as a proof."""
    s3.instruct("put", "ignore-condition", count=2)
    with pytest.raises(InvalidRequest, match="the service ignores If-None-Match"):
        note_begin(bucket, 0, Attempt())


def test_a_service_that_nobody_reaches_is_tried_again(s3, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match="Could not connect"):
        open_storage("s3://bucket/run").stat("x")


@pytest.mark.parametrize("status, code", [(400, "ExpiredToken"), (403, "InvalidToken")])
def test_expired_credentials_are_named(s3, bucket, status, code):
    for operation in ("put", "stat"):
        s3.instruct(operation, "fail", status=status, code=code, count=10)
    with pytest.raises(PermissionDenied, match="no AWS credentials that can be used|was refused"):
        bucket.create("x", SMALL)


def test_a_permission_that_was_granted_is_sought_again(s3, bucket):
    bucket.create("x", SMALL)
    assert bucket.read("x") == SMALL
    s3.instruct("read", "fail", status=403, code="AccessDenied", count=2)
    assert bucket.read("x") == SMALL and s3.instructions[-1].count == 0


def test_a_small_object_is_read_with_its_checksum(s3, bucket):
    bucket.create("x", SMALL)
    s3.instruct("read", "corrupt")
    assert bucket.read_small("x", 1000) == SMALL
    s3.instruct("read", "corrupt", count=100)
    with pytest.raises(DamagedData, match="do not match its crc32c"):
        bucket.read_small("x", 1000)


def copy_without_checksums(s3, prefix):
    """Make each object one that another tool has put there."""
    for key in [key for key in s3.keys() if key.startswith(prefix)]:  # noqa: SIM118 - a list
        s3.client.put_object(Bucket="bucket", Key=key, Body=s3.data(key))
    s3.history.clear()


def num_reads(s3, name):
    return sum(operation == "read" and name in key for operation, key, _ in s3.history)


def test_a_run_that_another_tool_copied_is_proven_and_continued(s3, run_streams):
    storage = open_storage("s3://bucket/run")
    extract(storage, run_streams, 1)
    extract(storage, run_streams, 0, 2)
    s3.history.clear()
    assert audit_run("s3://bucket/run").verdict == "in progress" and not num_reads(s3, "/batches/")
    copy_without_checksums(s3, "run/")
    s3.instruct("read", "cut")
    assert not audit_run("s3://bucket/run").problems and num_reads(s3, DATA) == 1
    extract(storage, run_streams, 0)
    assert audit_run("s3://bucket/run").verdict == "proven"
    s3.client.put_object(Bucket="bucket", Key=f"run/{DATA}", Body=flipped(s3.data(f"run/{DATA}")))
    assert_found(audit_run("s3://bucket/run").problems, rf"{DATA}: .* were committed; restore it")


@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
def test_an_object_that_another_tool_copied_is_adopted(s3, bucket, data):
    s3.client.put_object(Bucket="bucket", Key="run/x", Body=data)
    assert bucket.stat("x").crc32c == ""
    assert bucket.create("x", data).holds(len(data), crc32c_base64(data))
    with pytest.raises(ObjectExists):
        bucket.create("x", flipped(data) if data else b"!")


def test_streams_that_another_tool_copied_are_finished(s3):
    rows = [Row(str(number), "some words") for number in range(10)]
    storage, origin = open_storage("s3://bucket/streams"), Origin("text", "rows", None, {})
    made = publish_rows(storage, origin, rows, 2).manifest
    s3.client.delete_object(Bucket="bucket", Key="streams/manifest.json")
    copy_without_checksums(s3, "streams/")
    assert publish_rows(storage, origin, rows, 2).manifest == made


@pytest.mark.parametrize("location", ["s3://", "s3://My_Bucket!/run"])
def test_a_location_without_a_bucket_is_named(s3, location):
    with pytest.raises(InvalidRequest, match=f"{location}: give s3://bucket/prefix"):
        open_storage(location)


def test_an_endpoint_without_a_scheme_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio.local:9000")
    with pytest.raises(InvalidRequest, match="Invalid endpoint: minio.local:9000"):
        open_storage("s3://bucket/run")


@pytest.mark.parametrize(
    "operation, act",
    [("read", lambda b: b.read("x")), ("stat", lambda b: b.stat("x")), ("list", lambda b: list(b.list()))],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_tried_again(s3, bucket, operation, act, status):
    bucket.create("x", SMALL)
    s3.instruct(operation, "fail", status=status, count=2)
    act(bucket)
    assert s3.instructions[0].count == 0


@pytest.mark.parametrize("status, code", [(501, "NotImplemented"), (505, "HttpVersionNotSupported")])
def test_what_the_service_does_not_have_is_not_tried_again(s3, bucket, status, code):
    told = s3.instruct("put", "fail", status=status, code=code, count=9)
    with pytest.raises(InvalidRequest, match=rf"s3://bucket/run/x: the service refused: .*\({code}\).*: injected"):
        bucket.create("x", SMALL)
    assert told.count == 8


@pytest.mark.parametrize("status, code", [(403, "RequestTimeTooSkewed"), (503, "SlowDown")])
def test_a_first_create_is_tried_again_when_looking_for_it_is_refused_too(s3, bucket, monkeypatch, status, code):
    monkeypatch.setattr(retries, "_GRANTED", set())
    told = [s3.instruct(operation, "fail", status=status, code=code, count=2) for operation in ("put", "stat")]
    told[1].status = 403
    assert bucket.create("x", SMALL).size == len(SMALL)
    assert [one.count for one in told] == [0, 0]


@pytest.fixture
def endpoint(monkeypatch):
    """A server at an https endpoint that gives each connection to the function it is started with."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def start(meet):
            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        with connection, contextlib.suppress(OSError):
                            meet(connection)

            threading.Thread(target=serve, daemon=True).start()

        for name, value in (
            ENVIRONMENT | {"AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{server.getsockname()[1]}"}
        ).items():
            monkeypatch.setenv(name, value)
        yield start


def test_a_handshake_that_breaks_is_tried_again(endpoint, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    endpoint(lambda connection: connection.recv(4096))
    with pytest.raises(TryAgain, match="SSL"):
        open_storage("s3://bucket/run").stat("x")


def test_a_certificate_of_someone_else_is_not_tried_again(endpoint, tmp_path):
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name, end = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")]), now + timedelta(1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, end)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both").write_bytes(secret + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both")
    endpoint(lambda connection: context.wrap_socket(connection, server_side=True).close())
    with pytest.raises(InvalidRequest, match="s3://bucket/run/x: .*certificate verify failed"):
        open_storage("s3://bucket/run").stat("x")


def test_a_storm_beyond_the_deadline_is_try_again_with_nothing_stored(s3, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.3")
    bucket = open_storage("s3://bucket/run")
    for operation in ("put", "stat"):
        s3.instruct(operation, "fail", status=503, count=1000)
    with pytest.raises(TryAgain, match="s3://bucket/run/x"):
        bucket.create("x", SMALL)
    assert s3.keys() == []


@pytest.mark.parametrize("action", ["cut", "corrupt"])
def test_what_is_read_is_whole_and_right(s3, bucket, action):
    bucket.create("x", LARGE)
    s3.instruct("read", action)
    assert bucket.read("x") == LARGE
    s3.instruct("read", "corrupt", count=100)
    with pytest.raises(DamagedData, match="do not match its crc32c, 6 times"):
        bucket.read("x")


@pytest.mark.parametrize("permission, operation, act", [
    ("PutObject", "put", lambda b: b.create("new", SMALL)), ("GetObject", "read", lambda b: b.read("x")),
    ("ListBucket", "list", lambda b: list(b.list())),
])  # fmt: skip
def test_the_permission_that_is_missing_is_named(s3, bucket, monkeypatch, permission, operation, act):
    monkeypatch.setattr(retries, "_GRANTED", set())
    s3.put("run/x", SMALL)
    s3.instruct(operation, "fail", status=403, code="AccessDenied", count=10)
    with pytest.raises(PermissionDenied, match=f"s3:{permission} on s3://bucket was refused"):
        act(bucket)


def test_an_open_object_that_is_replaced_is_noticed(s3, bucket):
    bucket.create("x", LARGE)
    with bucket.open("x") as file:
        assert file.read(10) == LARGE[:10]
        s3.client.put_object(Bucket="bucket", Key="run/x", Body=LARGE[::-1])
        file.seek(5_000_000)
        with pytest.raises(DamagedData, match="s3://bucket/run/x: it was replaced or removed"):
            file.read(10)


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(InvalidRequest, match="s3://nowhere: there is no such bucket"):
        open_storage("s3://nowhere/run").create("x", SMALL)


def test_without_credentials_that_is_what_is_said_and_no_secret_is_told(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(PermissionDenied, match="s3://bucket: there are no AWS credentials"):
        open_storage("s3://bucket/run").stat("x")
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in reason(ValueError(f"bad {ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}"))


def test_overwriting_is_tried_once(s3, bucket):
    bucket.replace("progress.json", b"1")
    bucket.replace("progress.json", b"2")
    s3.instruct("put", "fail", status=503)
    with pytest.raises(TryAgain, match="only try"):
        bucket.replace("progress.json", b"3")
    assert s3.data("run/progress.json") == b"2"


def test_a_run_in_a_bucket_is_proven(s3, run_streams):
    """Commit chains with a lost answer for every seventh write."""
    storage = open_storage("s3://bucket/proven")
    for _ in range(3):
        s3.instruct("put", "land-then-break")
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker)
    audit = audit_run("s3://bucket/proven", deep=True)
    assert (audit.exit_code, list(audit.problems)) == (0, [])
    assert s3.instructions[-1].count == 0
