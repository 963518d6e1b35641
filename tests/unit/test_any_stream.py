"""Workers without numbers: every stream is finished although workers come and go, and rivals do no harm."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import checkpoint
from extraction.core.errors import DamagedData, Fenced, InvalidRequest, Stopped, TryAgain
from extraction.format.stream_state import Ending, parse_ending, read_stream_state
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from extraction.tools.status import read_status
from extraction.worker.attempts import note_begin, note_failure
from extraction.worker.claims import StreamChooser, work_all
from tests.helpers.runs import FINGERPRINT, WIDTHS, extract, make_run, tokens_of
from tests.helpers.workers import MODEL, ROOT, SMALL, make_streams, text_of, verify, write_corpus

STREAMS = [[5, 3, 20, 0, 8], [40, 1, 2, 30], [], [9] * 7, [16, 16], [1] * 30]
HOOK = next(iter(WIDTHS))


@pytest.fixture
def output(tmp_path):
    storage = open_storage(str(tmp_path / "run"))
    make_run(storage, [])
    return storage


def load(output, number):
    return checkpoint.CommitChain.load(output, number, FINGERPRINT, checkpoint.read_run(output).digest)


def worker(output, idle_after, stop_after=None, log=None, streams=STREAMS):
    """One worker without a number; `log` gets what it says, and the error that ended it."""
    log = [] if log is None else log

    def work(number, attempt):
        chain = load(output, number)
        chain.attempt = attempt
        if not chain.end_of_stream:
            extract(chain, streams[number], stop_after)

    try:
        work_all(StreamChooser(output, len(streams), idle_after), work, log.append, threading.Event())
    except Exception as error:
        log.append(error)
    return log


def assert_complete(output, streams=STREAMS):
    for number in range(len(streams)):
        assert read_stream_state(output, number).finished
    found = np.concatenate([rows.tokens for rows in ActivationReader(output.location).rows(HOOK)])
    wanted = [tokens_of(w, i, n) for w, lengths in enumerate(streams) for i, n in enumerate(lengths)]
    assert np.array_equal(found, np.concatenate(wanted))


def test_one_worker_does_all_streams(output):
    assert worker(output, 1000.0) == []
    assert_complete(output)


@pytest.mark.parametrize("idle_after", [0.0, 0.4])
def test_several_workers_do_all_streams_together(output, idle_after):
    """With 0 every stream always looks free, so that workers meet on one all the time."""
    logs = [[] for _ in range(5)]
    threads = [threading.Thread(target=worker, args=(output, idle_after, None, log)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    said = sum(logs, [])
    assert all("left stream" in text and "to another worker" in text for text in said)
    assert_complete(output)


def test_a_loser_leaves_the_stream_and_takes_another(output):
    """A rival commits between the moment when a worker loads its chain and its first commit."""
    said, worked = [], []

    def work(number, attempt):
        worked.append(number)
        chain = load(output, number)
        if len(worked) == 1:
            extract(load(output, number), STREAMS[0])
        extract(chain, STREAMS[0])

    work_all(StreamChooser(output, 2, 1000.0), work, said.append, threading.Event())
    assert sorted(worked) == [0, 1]
    (line,) = said
    assert line.startswith(f"left stream {worked[0]} to another worker: ")


def test_a_stream_that_was_left_in_the_middle_is_taken_up_when_idle(output):
    chain = load(output, 3)
    extract(chain, STREAMS[3], stop_after=2)
    assert StreamChooser(output, 4, 1000.0).choose() in (0, 1, 2)
    assert {StreamChooser(output, 4, 0.0).choose() for _ in range(60)} == {0, 1, 2, 3}


def test_a_stream_that_was_begun_counts_as_busy_before_its_first_commit(output):
    note_begin(output, 0, checkpoint.Attempt())
    assert StreamChooser(output, 1, 1000.0).choose() is None
    assert StreamChooser(output, 2, 1000.0).choose() == 1


def test_of_those_that_choose_one_stream_at_once_the_first_takes_it(output):
    choosers = [StreamChooser(output, 1, 1000.0) for _ in range(3)]
    assert [chooser.choose() for chooser in choosers] == [0] * 3
    first, *others = [chooser.take(0) for chooser in choosers]
    assert (first is not None, others) == (True, [None, None])
    assert StreamChooser(output, 1, 0.0).take(0)  # what was noted before the stream was free counts no more


def test_a_stream_whose_worker_was_told_to_stop_is_free_at_once(output):
    attempt = checkpoint.Attempt()
    note_begin(output, 0, attempt)
    assert StreamChooser(output, 1, 1000.0).choose() is None
    with pytest.raises(Stopped), note_failure(output, 0, attempt):
        raise Stopped("told to stop")
    choosers = [StreamChooser(output, 1, 1000.0) for _ in range(2)]
    assert [chooser.choose() for chooser in choosers] == [0, 0]
    assert [chooser.take(0) is not None for chooser in choosers] == [True, False]
    assert StreamChooser(output, 1, 1000.0).choose() is None


def test_streams_that_others_work_on_are_not_looked_at_all_the_time(gcs):
    storage = open_storage("gs://bucket/run")
    for number in range(20):
        note_begin(storage, number, checkpoint.Attempt())
    chooser = StreamChooser(storage, 20, 1000.0)
    assert chooser.choose() is None
    gcs.history.clear()
    assert chooser.choose() is None
    looked_at = {what.split("/")[1] for _, _, what, _ in gcs.history if "/worker-" in what}
    assert len(looked_at) == 1


def test_waiting_ends_when_told_to_stop_and_when_all_are_finished(output):
    note_begin(output, 0, checkpoint.Attempt())
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(TryAgain):
        StreamChooser(output, 1, 1000.0).wait_for_one(stop)
    extract(load(output, 0), STREAMS[0])
    assert StreamChooser(output, 1, 1000.0).wait_for_one(threading.Event()) is None


def test_a_damaged_stream_stops_no_other(output, tmp_path):
    (tmp_path / "run/worker-00001/commits").mkdir(parents=True)
    (tmp_path / "run/worker-00001/commits/00000000.json").write_text("{}")
    said, error = worker(output, 0.0)
    assert said.startswith("left stream 1: ")
    assert isinstance(error, DamagedData)
    assert [n for n in range(len(STREAMS)) if read_stream_state(output, n).finished] == [0, 2, 3, 4, 5]


def test_a_stream_whose_first_commit_is_missing_stops_no_other(output, tmp_path):
    streams = [[8] * 120, [8]]
    extract(load(output, 0), streams[0])
    (tmp_path / "run/worker-00000/commits/00000000.json").unlink()
    said, error = worker(output, 0.0, streams=streams)
    assert "left stream 0: worker-00000/commits/00000000.json is missing" in said and isinstance(error, DamagedData)
    assert read_stream_state(output, 1).finished


@pytest.mark.parametrize(
    "error, state",
    [
        (Fenced("lost"), "fenced"),
        (Stopped("told"), "stopped"),
        (DamagedData("bad"), "failed"),
        (KeyError("x"), "failed"),
        (TryAgain("later"), None),
    ],
)
def test_how_an_attempt_ended_is_noted(output, error, state):
    attempt = checkpoint.Attempt()
    with pytest.raises(type(error)), note_failure(output, 7, attempt):
        raise error
    ending = read_stream_state(output, 7).ending
    assert (ending and ending.state) == state
    assert ending is None or (ending.attempt == attempt.id and str(error) in ending.message)


@pytest.mark.parametrize("error, lines", [(InvalidRequest("a file is there"), 0), (DamagedData("bad"), 1)])
def test_a_place_that_takes_no_note_either_is_told_of_once(tmp_path, capfd, error, lines):
    (tmp_path / "file").touch()
    with pytest.raises(type(error)), note_failure(open_storage(str(tmp_path / "file")), 0, checkpoint.Attempt()):
        raise error
    assert capfd.readouterr().err.count("is not written") == lines


def test_a_commit_after_an_ending_outdates_it(output):
    with pytest.raises(DamagedData), note_failure(output, 0, checkpoint.Attempt()):
        raise DamagedData("bad")
    extract(load(output, 0), STREAMS[0], stop_after=1)
    assert read_stream_state(output, 0).ending is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"state": "x", "message": "", "attempt": "", "host": ""}',
        b'{"state": 1}',
    ],
)
def test_a_note_that_cannot_be_read_says_so(data):
    assert parse_ending(data) == Ending("failed", "(the note of its ending is not readable)", "", "")


def test_of_a_long_chain_only_the_end_is_listed(gcs):
    """`progress.json` is not believed when it leads to a commit that is not there; then the end is looked for."""
    storage = open_storage("gs://bucket/run")
    make_run(storage, [[8] * 460])
    whole = read_stream_state(storage, 0)
    assert whole.num_batches == 230
    assert whole.begun == storage.stat("worker-00000/commits/00000000.json").updated
    for batch, seen in ((229, 20), (226, 23), (5, None), (10**6, None), ('"x"', None)):
        storage.replace("worker-00000/progress.json", f'{{"batch": {batch}, "begun": {whole.begun}}}'.encode())
        found = read_stream_state(storage, 0)
        assert (found.last, found.begun) == (whole.last, whole.begun)
        assert len(found.commit_times) == seen or (seen is None and 20 <= len(found.commit_times) < 40)


@pytest.mark.parametrize("length", [2, 19, 20, 21, 39, 40, 41, 42, 60, 61, 1000, 1999, 5020])
def test_the_end_of_a_chain_of_any_length_is_found(tmp_path, length):
    """With `progress.json` that is old, or none."""
    storage = open_storage(str(tmp_path))
    make_run(storage, [[8] * 4])
    template = storage.read("worker-00000/commits/00000000.json").replace(b'"batch": 0', b'"batch": %d')
    template = template.replace(b"00000000.safetensors", b"%08d.safetensors")
    folder = tmp_path / "worker-00000/commits"
    for batch in range(length):
        (folder / f"{batch:08d}.json").touch()
    (folder / f"{length - 1:08d}.json").write_bytes(template % (length - 1, length - 1))
    for hint in (None, 30, length - 2):
        if hint is not None:
            storage.replace("worker-00000/progress.json", f'{{"batch": {hint}, "begun": 1.0}}'.encode())
        found = read_stream_state(storage, 0)
        assert found.last.batch == length - 1
        believed = hint is not None and hint < length
        assert found.begun == (1.0 if believed else storage.stat("worker-00000/commits/00000000.json").updated)
        assert min(length, 20) <= len(found.commit_times) <= 40 and found.damage is None


@pytest.mark.slow
def test_a_real_worker_from_the_shell_does_all_streams_with_one_compiled_step(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 9) for i in range(12)])
    streams = make_streams(corpus, tmp_path / "streams", 3)
    settings = {
        "STREAM": "any",
        "MODEL": str(MODEL),
        "STREAMS": str(streams),
        "JAX_PLATFORMS": "cpu",
        "OUTPUT": str(tmp_path / "run"),
        "PYTHON": sys.executable,
    }
    command = [ROOT / "launch_worker.sh", *SMALL]
    result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("ready on") == 1
    assert "all streams are finished" in result.stderr
    assert verify(tmp_path / "run").returncode == 0
    assert read_status(str(tmp_path / "run")).exit_code == 0
