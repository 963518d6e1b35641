"""What storage makes of a file system that fails, refuses or cannot do what others can."""

import errno
import os

import pytest

from checkpoint import CommitChain
from extraction.core.errors import DamagedData, InvalidRequest, ObjectNotFound, PermissionDenied, TryAgain
from extraction.storage import open_storage
from tests.helpers.batches import extract_all
from tests.helpers.workers import committed, extract_here

pytestmark = pytest.mark.slow

SMALL = b"some bytes"


def failing(code):
    def fail(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["fsync", "mkdir", "link"])
@pytest.mark.parametrize(
    "code, error",
    [
        (errno.ENOSPC, TryAgain),
        (errno.EDQUOT, TryAgain),
        (errno.EIO, TryAgain),
        (errno.ESTALE, TryAgain),
        (errno.EROFS, PermissionDenied),
        (errno.EACCES, PermissionDenied),
        (errno.ENAMETOOLONG, InvalidRequest),
    ],
)
def test_a_disk_that_fails_leaves_nothing_and_the_next_try_goes_through(tmp_path, monkeypatch, call, code, error):
    local = open_storage(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(code))
        with pytest.raises(error, match=str(tmp_path)):
            local.create("folder/x", SMALL)
    assert list(local.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    local.create("folder/x", SMALL)
    assert local.read("folder/x") == SMALL


@pytest.mark.parametrize("call", ["fsync", "link", "mkdir", "unlink"])
def test_a_disk_that_fails_at_any_call_loses_nothing(tmp_path, monkeypatch, call):
    """Every call of a whole run fails once, the worker ends, and the next start goes on."""
    calm = open_storage(str(tmp_path / "calm"))
    extract_all(CommitChain.load(calm, 0, "sha256:f"))
    expected, real, ends = committed(calm), getattr(os, call), 0
    for failing_call in range(1000):
        storage, calls = open_storage(str(tmp_path / str(failing_call))), iter(range(1000))

        def full(*arguments, number=failing_call, calls=calls, **keywords):
            if next(calls) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                extract_all(CommitChain.load(storage, 0, "sha256:f"))
                break  # the run has no call of this number
            except TryAgain:
                ends += 1
        assert committed(storage) == expected[: len(committed(storage))]
        extract_all(CommitChain.load(storage, 0, "sha256:f"))
        assert committed(storage) == expected
    assert ends >= 3


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    open_storage(str(tmp_path)).create("commits/0.json", SMALL)
    monkeypatch.setattr(os, "scandir", failing(errno.EACCES))
    with pytest.raises(PermissionDenied, match="commits"):
        list(open_storage(str(tmp_path)).list("commits/"))


@pytest.fixture
def synced(monkeypatch):
    """The paths that were synced so far."""
    paths, real = [], os.fsync

    def fsync(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_new_folder_is_durable_in_the_one_that_holds_it(tmp_path, synced):
    open_storage(str(tmp_path / "run")).create("worker/commits/0.json", SMALL)
    assert {str(tmp_path / part) for part in ("", "run", "run/worker", "run/worker/commits")} <= set(
        path.rstrip("/") for path in synced
    )


def test_adopted_data_is_made_durable_before_it_counts(tmp_path, synced):
    local = open_storage(str(tmp_path))
    (tmp_path / "x").write_bytes(SMALL)  # as of a worker that was killed before it could sync the folder
    local.create("x", SMALL)
    assert {str(tmp_path), str(tmp_path / "x")} <= set(synced)


@pytest.mark.parametrize("name", ["taken/x", "taken/deeper/x"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, name):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="taken"):
        open_storage(str(tmp_path)).create(name, SMALL)


def test_a_place_where_no_folder_can_be_made_is_named():
    with pytest.raises(InvalidRequest, match="/proc/run: no folder can be made in /proc"):
        open_storage("/proc/run").create("worker/x", SMALL)


@pytest.fixture
def no_links(monkeypatch):
    """A file system that can neither link nor rename without replacing."""
    import ctypes

    class NoRename(ctypes.CDLL):
        renameat2 = None

    monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))
    monkeypatch.setattr(ctypes, "CDLL", NoRename)


def test_a_file_system_that_can_do_neither_is_refused_in_words(no_links, tmp_path):
    with pytest.raises(InvalidRequest, match="neither link nor rename"):
        open_storage(str(tmp_path)).create("x", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["../", "a/../../", "/etc/"])
def test_a_listing_cannot_leave_the_location(tmp_path, prefix):
    with pytest.raises(DamagedData):
        list(open_storage(str(tmp_path)).list(prefix))


def test_a_name_that_no_store_can_spell_is_damage(storage):
    with pytest.raises(DamagedData):
        storage.read("\ud800")
    with pytest.raises(ObjectNotFound):
        storage.read("ä")


def test_a_folder_without_links_is_refused_before_an_attempt_begins(no_links, undisturbed, tmp_path, capsys):
    with pytest.raises(InvalidRequest, match="can neither link nor rename without replacing"):
        extract_here(undisturbed[0], tmp_path / "output")
    assert os.listdir(tmp_path / "output") == []
    assert "is not written" not in capsys.readouterr().err  # the note of an attempt, before the model is loaded


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "mine").touch()
    open_storage(str(tmp_path)).check_writable()
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("act", [
    lambda s: s.read("pipe"), lambda s: s.read_small("pipe", 9), lambda s: s.view("pipe"), lambda s: s.stat("pipe"),
    lambda s: s.open("pipe"),
])  # fmt: skip
def test_a_pipe_is_no_object_and_nobody_waits_for_its_writer(tmp_path, act):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedData, match="pipe or a device"):
        act(open_storage(str(tmp_path)))
