"""Storage for tests: a folder, and a bucket on a server of our own. Tiny models, each made once. All on the CPU."""

import os
from importlib.metadata import version

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # with libtpu installed jax would look for a TPU first
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"  # in this process and in its children
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Steps of tiny models are compiled more often than they are run: the least work for the compiler halves the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1")
if version("jaxlib").startswith("0.10."):  # newer ones lack this flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: tests run beside each other
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each child would compile what it imports again

from extraction.storage import open_storage
from tests.helpers.fake_gcs import FakeGcs
from tests.helpers.shared import built_once

settings.register_profile("no-deadline", deadline=None)  # a busy machine makes no test wrong
settings.load_profile("no-deadline")


def pytest_ignore_collect(collection_path, config):
    """Without slow tests, do not import the files that have no others: they bring torch and jax."""
    if config.option.markexpr == "not slow" and collection_path.name.startswith("test_"):
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
    return None


@pytest.fixture
def gcs(monkeypatch):
    """A running GCS server with the bucket `bucket`; this process and its children are pointed at it."""
    with FakeGcs() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


@pytest.fixture
def s3(monkeypatch):
    """A running S3 server with the bucket `bucket`; this process and its children are pointed at it."""
    from tests.helpers.fake_s3 import ENVIRONMENT, FakeS3

    with FakeS3() as server:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL_S3": server.address}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "5")
        yield server


@pytest.fixture(params=["local", "gcs"])
def storage(request, tmp_path):
    """Both backends."""
    if request.param == "local":
        return open_storage(str(tmp_path / "output"))
    request.getfixturevalue("gcs")
    return open_storage("gs://bucket/some/run")


@pytest.fixture(scope="session")
def run_streams(tmp_path_factory):
    """The streams of the runs below."""
    from tests.helpers.stream_runs import make_streams

    return make_streams(tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, run_streams):
    """The objects of a finished run, {name: bytes}."""
    from tests.helpers.stream_runs import NUM_WORKERS, extract

    storage = open_storage(str(tmp_path_factory.mktemp("finished")))
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker)
    return {info.name: storage.read(info.name) for info in storage.list()}


@pytest.fixture
def empty(request, storage, run_streams):
    """An empty output, on both backends, and the means to change its objects."""
    from tests.helpers.stream_runs import Store

    gcs = request.getfixturevalue("gcs") if storage.location.startswith("gs://") else None
    return Store(storage, gcs, run_streams)


@pytest.fixture
def store(empty, finished_run):
    """The same with a finished run in it."""
    for name, data in finished_run.items():
        empty.put(name, data)
    return empty


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Streams, and what a real worker that nothing disturbs commits from them."""
    from tests.helpers.workers import committed, extract, make_streams, text_of, write_corpus

    def build(folder):
        corpus = write_corpus(folder / "corpus", [text_of(i, 5 + i * 4) for i in range(14)])
        result = extract(make_streams(corpus, folder / "streams"), folder / "output")
        assert result.returncode == 0, result.stderr

    folder = built_once(tmp_path_factory, "undisturbed", build)
    batches = committed(open_storage(str(folder / "output")))
    assert len(batches) > 4
    return folder / "streams", batches


@pytest.fixture
def tamper(storage, request, tmp_path):
    """Changes an object behind everybody's back: `tamper(name, change)`, where `change` maps its bytes to others or to
    None, which removes it; an object that is not there has no bytes."""

    def on_disk(name, change):
        path = tmp_path / "output" / name
        data = change(path.read_bytes() if path.exists() else b"")
        path.unlink() if data is None else path.write_bytes(data)

    def in_bucket(name, change):
        server, key = request.getfixturevalue("gcs"), f"some/run/{name}"
        data = change(server.objects[key].data if key in server.objects else b"")
        server.remove(key) if data is None else server.land(key, data, None)

    return in_bucket if storage.location.startswith("gs://") else on_disk


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Tiny models by name. Imported late, since it brings jax and torch."""
    from tests.helpers.tiny_models import Zoo

    return Zoo(tmp_path_factory.mktemp("models"))
