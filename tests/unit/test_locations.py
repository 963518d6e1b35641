"""Locations: one that looks like a URL and is none is refused, and never becomes a folder."""

import os

import pytest

from extraction.core.errors import InvalidRequest
from extraction.datasets.token_counter import TokenCounter
from extraction.storage import open_storage
from extraction.streams.build.sources import find_source
from extraction.worker.resolve import absolute


@pytest.mark.parametrize(
    "location",
    [
        "gs:/bucket/run", "gs:bucket/run", "gs//bucket/run", "GS://bucket/run", " gs://bucket/run", "gcs://bucket/run",
        "ftp://bucket/run", "s3:/bucket", "https:/host/run", "HTTP://host", "file:/tmp/run", "file:run", "hf:/datasets/a/b",
        "abfs:/container/run", "gs:\\bucket",
    ],
)  # fmt: skip
def test_a_look_alike_of_a_url_is_refused(location, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="give gs://"):
        open_storage(location)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bucket", ["", "a", "A-Bucket", "my bucket", "bucket?x", "-bucket", "bücket", "a" * 300])
def test_a_bad_bucket_name_is_one_sentence(bucket, gcs):
    with pytest.raises(InvalidRequest, match="give gs://bucket/prefix"):
        open_storage(f"gs://{bucket}/run")


@pytest.mark.parametrize("name", ["run", "./gs:/bucket", "a:b", "2026-01-01T10:00/run", "/tmp/gs:/x", "gs", "gsx/run"])
def test_other_names_are_folders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_storage(name if not name.startswith("/") else f"{tmp_path}{name}").create("object", b"x")
    assert [path.read_bytes() for path in tmp_path.rglob("object")] == [b"x"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    open_storage("~/run").create("object", b"x")
    assert os.listdir(tmp_path) == ["home"] and absolute("~/run") == str(tmp_path / "home/run")


def test_a_name_that_is_not_unicode_is_refused():
    """run.json could not be read again."""
    with pytest.raises(InvalidRequest, match=r"donn.udce9es: the name is not UTF-8"):
        absolute("streams/donn\udce9es")


def test_a_home_that_nobody_has_is_no_folder():
    for use in (lambda name: TokenCounter(name, 9), find_source):
        with pytest.raises(InvalidRequest, match="~nobodyofthisname/x"):
            use("~nobodyofthisname/x")
