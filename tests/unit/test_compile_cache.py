"""Compiled steps shared through a bucket: a worker on another machine does not compile again."""

import pytest

from extraction.storage import open_storage
from extraction.worker.compile_cache import CompileCache
from tests.helpers.workers import extract, make_streams, text_of, write_corpus

pytestmark = pytest.mark.slow

SHARED = "gs://bucket/compiled"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A machine with nothing on it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_a_second_machine_gets_the_step_from_the_bucket(gcs, tmp_path):
    """Seen by the worker from what compiling added, and here from the objects in the bucket."""
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(i, 9) for i in range(4)]), tmp_path / "streams")
    said = []
    for machine in ("one", "two"):
        output = tmp_path / machine
        result = extract(streams, output, 0, "--compile-cache", SHARED, HOME=str(output / "home"))
        assert result.returncode == 0, result.stderr
        said.append(result.stderr)
        entries = {info.name for info in open_storage(SHARED).list()}
        assert any(name.startswith("jit_step-") for name in entries)
    assert "step compiled" in said[0] and "step from the cache" in said[1]


def test_only_entries_travel_and_nothing_is_overwritten(gcs, tmp_path):
    bucket = open_storage(SHARED)
    bucket.create("jit_step-a-cache", b"a")
    bucket.create("notes", b"not ours")
    with CompileCache(SHARED) as cache:
        local = open_storage(cache.folder)
        assert [info.name for info in local.list()] == ["jit_step-a-cache"]
        local.create("jit_step-b-cache", b"b")
        local.create("jit_step-b-atime", b"now")
    assert not cache.held_step
    assert [info.name for info in bucket.list()] == ["jit_step-a-cache", "jit_step-b-cache", "notes"]
    with CompileCache(SHARED) as cache:
        pass
    assert cache.held_step


def test_a_bucket_that_is_not_there_costs_a_compilation_only(gcs, capsys):
    with CompileCache("gs://no-such-bucket/compiled") as cache:
        open_storage(cache.folder).create("jit_step-a-cache", b"a")
    assert "compiled steps are not shared" in capsys.readouterr().err
    assert not cache.held_step


@pytest.mark.parametrize("location, folder", [("", None), ("some/folder", "some/folder")])
def test_a_folder_is_jax_own(location, folder):
    with CompileCache(location) as cache:
        assert cache.folder == folder
