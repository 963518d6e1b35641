"""Being told to stop: at every moment of a worker's life it is gone within 10 s, with 75, and nothing is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from extraction.storage import open_storage
from tests.helpers.fake_metadata import FakeMetadata
from tests.helpers.shared import built_once
from tests.helpers.workers import (
    ROOT,
    committed,
    extract,
    make_streams,
    start,
    start_interpreter,
    text_of,
    write_corpus,
)

pytestmark = pytest.mark.slow

GONE_WITHIN = 10
TRY_AGAIN = 75
# Data objects of which few fit into the queue, so that some of the stream is not computed while an upload hangs.
WIDE = ("--layers", "all", "--hooks", "resid_post,post,z", "--store-dtype", "float32", "--queue-mib", "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Streams, and what a worker that nobody stops commits from them."""

    def build(folder):
        corpus = write_corpus(folder / "corpus", [text_of(i, 5 + i * 4) for i in range(14)])
        result = extract(make_streams(corpus, folder / "streams"), folder / "output", 0, *WIDE)
        assert result.returncode == 0, result.stderr

    folder = built_once(tmp_path_factory, "undisturbed-wide", build)
    return folder / "streams", committed(open_storage(str(folder / "output")))


def stop(worker, times=1):
    """Tell a worker to stop. Returns what it wrote; it ended as it must."""
    begin = time.monotonic()
    for _ in range(times):
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    return ends(worker, begin)


def ends(worker, begin):
    _, stderr = worker.communicate(timeout=60)
    assert worker.returncode == TRY_AGAIN, stderr
    assert time.monotonic() - begin < GONE_WITHIN
    assert "Traceback" not in stderr
    return stderr


def wait_for_line(worker, word):
    for line in worker.stderr:
        if word in line:
            return
    raise AssertionError(f"no line with {word!r}")


def test_while_it_starts(undisturbed, tmp_path):
    for module in ("click", "numpy", "jax"):
        worker = start_interpreter(undisturbed[0], tmp_path / "output", verbose="1")
        wait_for_line(worker, f"import '{module}' #")
        assert "finishing what is in flight" not in stop(worker, times=2)
    assert committed(open_storage(str(tmp_path / "output"))) == []


@pytest.mark.parametrize(
    "words, code", [(["run"], 75), (["--no-progress"], 75), (["verify"], -15), (["status"], -15), (["repair"], -15)]
)
def test_only_a_killed_run_says_try_again(words, code):
    command = [sys.executable, "-v", ROOT / "extract_activations.py", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_line(process, "import 'click' #")
    process.terminate()
    process.communicate()
    assert process.returncode == code


def test_while_it_compiles(undisturbed, tmp_path):
    worker = start(undisturbed[0], tmp_path / "output", 0, "--compile-cache", "", JAX_LOG_COMPILES="1")
    wait_for_line(worker, "Compiling jit(step)")
    assert "nothing is in flight" in stop(worker)


@pytest.mark.parametrize("name, times", [("*/batches/00000001*", 1), ("*/commits/00000001*", 2)])
def test_while_an_upload_hangs_and_the_rest_waits(undisturbed, gcs, name, times):
    """All batches are computed and wait; the grace passes without an answer."""
    streams, expected = undisturbed
    told = gcs.instruct("insert", name, "hold")
    worker = start(streams, "gs://bucket/run", 0, *WIDE)
    assert told.entered.wait(60)
    assert "finishing what is in flight" in stop(worker, times)
    storage = open_storage("gs://bucket/run")
    assert committed(storage) == expected[:1]
    told.release.set()
    assert extract(streams, "gs://bucket/run", 0, *WIDE).returncode == 0
    assert committed(storage) == expected


def test_what_is_in_flight_is_committed_in_the_grace(undisturbed, gcs):
    streams, expected = undisturbed
    told = gcs.instruct("insert", "*/commits/00000001*", "hold")
    worker = start(streams, "gs://bucket/run", 0, *WIDE)
    assert told.entered.wait(60)
    begin = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    wait_for_line(worker, "finishing what is in flight")
    told.release.set()
    ends(worker, begin)
    done = committed(open_storage("gs://bucket/run"))
    assert len(done) >= 2 and done == expected[: len(done)]


def test_a_preemption_notice_stops_a_worker_and_it_goes_on_elsewhere(undisturbed, gcs):
    streams, expected = undisturbed
    told = gcs.instruct("insert", "*/commits/00000002*", "hold")
    with FakeMetadata() as metadata:
        worker = start(streams, "gs://bucket/run", 0, *WIDE, GCE_METADATA_HOST=metadata.host)
        assert told.entered.wait(60)
        begin = time.monotonic()
        metadata.preempt()
        wait_for_line(worker, "preemption notice: finishing what is in flight")
        told.release.set()
        ends(worker, begin)
    assert extract(streams, "gs://bucket/run", 0, *WIDE).returncode == 0
    assert committed(open_storage("gs://bucket/run")) == expected


# ------------------------------------------------------------------------------------- the notice, without a worker

WAITING = """
import sys
from extraction.worker.shutdown import watch_for_shutdown
stop = watch_for_shutdown()
print("ready", flush=True)
stop.wait(float(sys.argv[1]))
"""


def waiting(host, seconds=30):
    """A process that waits to be told, and ends with 0 if it is not."""
    return subprocess.Popen(
        [sys.executable, "-c", WAITING, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GCE_METADATA_HOST": host},
    )


@pytest.mark.parametrize("failures", [(), (503,)])
def test_a_notice_is_heard_through_trouble(failures):
    with FakeMetadata(failures) as metadata, waiting(metadata.host) as process:
        assert metadata.asked.wait(30)
        metadata.preempt()
        assert "preemption notice" in ends(process, time.monotonic())


def test_a_notice_that_was_there_before_the_worker_is_heard():
    with FakeMetadata() as metadata:
        metadata.preempt()
        with waiting(metadata.host) as process:
            assert "preemption notice" in ends(process, time.monotonic())


@pytest.mark.parametrize("failures, flavor", [((404,), "Google"), ((403,), "Google"), ((), "another server")])
def test_a_server_without_the_notice_is_no_reason_to_fail(failures, flavor):
    with FakeMetadata(failures, flavor) as metadata, waiting(metadata.host, 0.5) as process:
        assert metadata.asked.wait(30)
        metadata.preempt()
        assert (process.communicate(timeout=30)[1], process.returncode) == ("", 0)


def test_no_server_at_all_is_no_reason_to_fail():
    with waiting("127.0.0.1:9", 0.5) as process:
        assert (process.communicate(timeout=30)[1], process.returncode) == ("", 0)


def test_a_log_that_nobody_reads_does_not_keep_it_alive():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen([sys.executable, "-c", WAITING, "30"], cwd=ROOT, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == TRY_AGAIN


def test_a_log_that_is_full_does_not_keep_it_alive():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen([sys.executable, "-c", WAITING, "30"], cwd=ROOT, stdout=subprocess.PIPE, stderr=writer)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    os.close(reader)
    os.close(writer)
    assert process.returncode == TRY_AGAIN


def test_an_interpreter_behind_a_script_is_no_orphan():
    """PYTHON of the launcher may be a script that starts the interpreter without `exec`."""
    words = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", WAITING, "0.5"]
    environment = os.environ | {"LAUNCH_PID": str(os.getpid())}
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=30)
    assert result.returncode == 0 and "let the script `exec` the interpreter" in result.stderr
