"""Storage for tests: a folder, and a bucket on a server of our own."""

import pytest

from extraction.storage import open_storage
from tests.fake_gcs import FakeGcs


@pytest.fixture
def gcs(monkeypatch):
    """A running GCS server with the bucket `bucket`; this process and its children are pointed at it."""
    with FakeGcs() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


@pytest.fixture(params=["local", "gcs"])
def storage(request, tmp_path):
    """Both backends."""
    if request.param == "local":
        return open_storage(str(tmp_path / "output"))
    request.getfixturevalue("gcs")
    return open_storage("gs://bucket/some/run")
