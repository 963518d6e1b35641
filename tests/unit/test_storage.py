"""Storage: create-only, whole and checked on both backends, whatever the network or the disk does."""

import os
import subprocess
import threading

import pytest

from extraction.core.errors import (
    DamagedData,
    InvalidRequest,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    TryAgain,
)
from extraction.storage import crc32c_base64, open_storage
from extraction.storage import local as module

LARGE = os.urandom(1000) * 9000  # beyond one request
SMALL = b"some bytes"


@pytest.fixture
def bucket(gcs):
    return open_storage("gs://bucket/run")


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_is_created_is_read(storage, data):
    info = storage.create("a/b.bin", data)
    assert storage.read("a/b.bin") == data
    assert info.holds(len(data), crc32c_base64(data))
    assert storage.stat("a/b.bin").holds(len(data), crc32c_base64(data))


def test_crc32c_is_that_of_the_standard():
    assert crc32c_base64(b"123456789") == "4waSgw=="  # RFC 3720's check value e3069283


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_the_same_bytes_are_adopted_and_others_refused(storage, data):
    first = storage.create("x", data)
    assert storage.create("x", data).generation == first.generation
    with pytest.raises(ObjectExists, match="x is there with other bytes"):
        storage.create("x", data + b"!")
    assert storage.read("x") == data


def test_of_many_writers_one_wins(storage):
    won, lost = [], []

    def write(number):
        try:
            storage.create("x", b"%d" % number)
            won.append(number)
        except ObjectExists:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert storage.read("x") == b"%d" % won[0]


def test_listing_is_in_order_and_begins_where_asked(storage):
    for name in ("b/2", "b/1", "a", "b/10", "c/x/y"):
        storage.create(name, b"")
    assert [info.name for info in storage.list()] == ["a", "b/1", "b/10", "b/2", "c/x/y"]
    assert [info.name for info in storage.list("b/")] == ["b/1", "b/10", "b/2"]
    assert [info.name for info in storage.list("b/", start_after="b/1")] == ["b/10", "b/2"]
    assert list(storage.list("nothing/")) == []


def test_listing_goes_over_pages(gcs, bucket):
    for number in range(2500):
        gcs.land(f"run/{number:05d}", b"", None)
    assert [info.name for info in bucket.list()] == [f"{number:05d}" for number in range(2500)]


def test_names_with_odd_characters(storage):
    for name in ("a b?c#d%e+f&g.bin", "ä/%2e%2e/=.bin"):
        storage.create(name, name.encode())
        assert (storage.read(name), storage.stat(name).name) == (name.encode(), name)


def test_a_proxy_of_the_environment_is_used(gcs, monkeypatch):
    """The server is asked as a proxy is, for a host that only it could know."""
    monkeypatch.setenv("http_proxy", gcs.address)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.invalid")
    bucket = open_storage("gs://bucket/run")
    bucket.create("x", b"data")
    assert (bucket.read("x"), [info.name for info in bucket.list()]) == (b"data", ["x"])


def test_ranges(storage):
    storage.create("x", bytes(range(100)))
    assert storage.read("x", 10, 20) == bytes(range(10, 20))
    assert storage.read("x", 90) == bytes(range(90, 100))
    assert storage.read("x", 5, 5) == b""


def test_an_open_object_is_a_file_for_parquet(storage, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "x.parquet", row_group_size=100)
    storage.create("x.parquet", (tmp_path / "x.parquet").read_bytes())
    with storage.open("x.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7)["a"].to_pylist() == list(range(700, 800))


def test_what_is_not_there(storage):
    for act in (storage.read, storage.stat, storage.open):
        with pytest.raises(ObjectNotFound, match="nothing"):
            act("nothing")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//b", "a\\b", "a\0b", ".", ""])
def test_names_cannot_leave_the_location(storage, name):
    for act in (storage.read, storage.stat, lambda name: storage.create(name, b"")):
        with pytest.raises(DamagedData):
            act(name)


def test_replace_overwrites(storage):
    storage.replace("progress.json", b"1")
    storage.replace("progress.json", b"2")
    assert storage.read("progress.json") == b"2"


@pytest.mark.parametrize("operation, data", [("insert", SMALL), ("resumable-chunk", LARGE), ("resumable-start", LARGE)])
@pytest.mark.parametrize("action", ["land-then-break", "reset", "fail", "cut"])
def test_an_upload_survives_one_fault_and_is_stored_once(gcs, bucket, operation, data, action):
    gcs.instruct(operation, "*", action)
    info = bucket.create("x", data)
    assert gcs.instructions[0].count == 0
    assert gcs.find("run/x").data == data
    assert info.generation == gcs.find("run/x").generation


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("operation", ["insert", "get", "read", "list"])
def test_passing_errors_are_tried_again(gcs, bucket, status, operation):
    gcs.land("run/x", SMALL, None)
    gcs.instruct(operation, "*", "fail", status=status, count=2)
    acts = {
        "insert": lambda: bucket.create("y", SMALL),
        "get": lambda: bucket.stat("x"),
        "read": lambda: bucket.read("x"),
        "list": lambda: list(bucket.list()),
    }
    acts[operation]()
    assert gcs.instructions[0].count == 0


def test_a_storm_beyond_the_deadline_is_try_again_with_nothing_stored(gcs, monkeypatch):
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.5")
    gcs.instruct("*", "*", "fail", status=503, count=1000)
    with pytest.raises(TryAgain, match="gs://bucket/run/x: no success within 0.5 s"):
        open_storage("gs://bucket/run").create("x", SMALL)
    assert gcs.objects == {}


@pytest.mark.parametrize(
    "status, said",
    [
        (401, "gs://bucket: there are no Google credentials that can be used"),
        (403, "storage.objects.{} on gs://bucket"),
    ],
)
def test_a_refusal_names_the_permission_and_the_bucket(gcs, bucket, status, said):
    for operation, permission, act in (
        ("insert", "create", lambda: bucket.create("x", SMALL)),
        ("read", "get", lambda: bucket.read("x")),
        ("list", "list", lambda: list(bucket.list())),
    ):
        gcs.instructions.clear()
        gcs.instruct(operation, "*", "fail", status=status, count=10)  # the client tries a 401 again with a new token
        with pytest.raises(PermissionDenied, match=said.format(permission)):
            act()


def test_a_bucket_that_is_not_there_is_named(gcs):
    missing = open_storage("gs://missing/run")
    for act in (lambda: missing.create("x", SMALL), lambda: missing.read("x"), lambda: list(missing.list())):
        with pytest.raises(InvalidRequest, match="gs://missing"):
            act()


def test_content_that_is_corrupted_on_the_way_is_read_again_then_refused(gcs, bucket):
    bucket.create("x", SMALL)
    gcs.instruct("read", "*", "corrupt")
    assert bucket.read("x") == SMALL
    gcs.instruct("read", "*", "corrupt", count=100)
    with pytest.raises(DamagedData, match="gs://bucket/run/x"):
        bucket.read("x")


def test_a_cut_answer_is_read_again(gcs, bucket):
    bucket.create("x", SMALL * 1000)
    gcs.instruct("read", "*", "cut")
    assert bucket.read("x") == SMALL * 1000


def test_no_permission_to_overwrite_is_needed(gcs, bucket):
    gcs.permissions = frozenset({"create", "get", "list"})
    bucket.create("x", SMALL)
    bucket.create("x", SMALL)
    bucket.replace("progress.json", b"1")
    with pytest.raises(PermissionDenied):
        bucket.replace("progress.json", b"2")


@pytest.mark.slow
def test_a_full_disk_is_try_again_and_leaves_nothing(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        local = open_storage(str(tmp_path))
        with pytest.raises(TryAgain, match="disk is full"):
            local.create("x", bytes(100_000))
        assert list(tmp_path.iterdir()) == []
        local.create("y", bytes(1000))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
def test_a_read_only_folder_is_no_permission(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a read-only tmpfs needs root")
    try:
        with pytest.raises(PermissionDenied, match="Read-only"):
            open_storage(str(tmp_path)).create("x", b"")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_without_hard_links_it_is_still_create_only(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(module.errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    local = open_storage(str(tmp_path))
    local.create("x", SMALL)
    with pytest.raises(ObjectExists):
        local.create("x", b"other")
    assert local.read("x") == SMALL
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_left_over_temporary_files_are_not_listed(tmp_path):
    local = open_storage(str(tmp_path))
    local.create("x", SMALL)
    (tmp_path / f"{module._TEMPORARY}torso").write_bytes(b"torso")
    assert [info.name for info in local.list()] == ["x"]


def test_files_get_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        open_storage(str(tmp_path)).create("x", SMALL)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_folders_are_those_directly_under_the_location(storage):
    assert list(storage.folders()) == []
    for name in ("run.json", "b/1/x", "b/2", "a/1", "c/x/y"):
        storage.create(name, b"x")
    assert list(storage.folders()) == ["a", "b", "c"]


def test_a_view_is_the_bytes_of_the_object(storage):
    storage.create("x", LARGE)
    storage.create("empty", b"")
    assert storage.view("x") == LARGE
    assert storage.view("x", 5, 1000) == LARGE[5:1000]
    assert storage.view("empty") == b""
    with pytest.raises(ObjectNotFound):
        storage.view("y")


def test_a_view_of_a_file_is_in_memory_before_it_is_used(tmp_path):
    """Page faults alone would fetch it in the small steps of the disk's read-ahead."""

    def is_there(at):
        try:
            return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False

    storage, pages = open_storage(str(tmp_path)), range(0, 8 << 20, 4096)
    storage.create("x", bytes(8 << 20))
    file = os.open(tmp_path / "x", os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(is_there, pages[::64])):
        pytest.skip("this file system keeps what it was told to drop, or does not tell")
    storage.view("x", 1 << 20, 7 << 20)
    assert all(map(is_there, range(1 << 20, 7 << 20, 4096)))
    os.close(file)


def test_now_is_the_clock_of_the_timestamps(storage):
    storage.create("x", b"x")
    assert -1 <= storage.now() - storage.stat("x").updated < 20  # a bucket tells whole seconds
