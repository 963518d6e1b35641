"""A chain over a store that fails: after every fault the committed data are, byte for byte, those of a calm run."""

import threading

import pytest

from checkpoint import CommitChain
from extraction.core.errors import Fenced, TryAgain
from extraction.storage import open_storage
from tests.helpers.batches import batches_from, data_of, extract_all
from tests.helpers.workers import committed

pytestmark = pytest.mark.slow

FINGERPRINT = "sha256:f"
DATA, COMMITS = "*/batches/*", "*/commits/*"
PASSING = [("fail", {"status": status}) for status in (408, 429, 500, 502, 503, 504)]
PASSING += [(action, {}) for action in ("reset", "cut", "corrupt", "land-then-break")]


def load(location="gs://bucket/run"):
    return CommitChain.load(open_storage(location), 0, FINGERPRINT)


def commit_next(chain, other_bytes=False, seconds=0.0):
    batch = batches_from(chain.cursor)[0]
    data = data_of(batch, chain.next_batch)
    data = memoryview(bytes(data) + b" of other hardware") if other_bytes else data
    return chain.commit(batch, data, {"step": seconds})


@pytest.fixture
def calm(gcs):
    """What a run without faults commits."""
    extract_all(load("gs://bucket/calm"))
    return committed(open_storage("gs://bucket/calm"))


def result():
    return committed(open_storage("gs://bucket/run"))


def in_background(act, *arguments):
    """A thread, and where what it raised will be."""
    raised = []

    def run():
        try:
            act(*arguments)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


# ---------------------------------------------------------------------------------------------- answers and storms


@pytest.mark.parametrize("action, settings", PASSING, ids=lambda value: str(value))
@pytest.mark.parametrize("name", [DATA, COMMITS])
def test_a_fault_under_the_deadline_is_not_noticed(gcs, calm, name, action, settings):
    told = gcs.instruct("insert", f"run/{name}", action, count=2, **settings)
    extract_all(load())
    assert told.count == 0
    assert result() == calm


@pytest.mark.parametrize("action, settings", [*PASSING, ("fail", {"status": 410})], ids=lambda value: str(value))
def test_a_large_upload_that_breaks_in_its_last_chunk_is_stored_once(gcs, action, settings):
    data = memoryview(bytes(range(256)) * (40 << 12))  # 40 MiB: two chunks
    gcs.instruct("resumable-chunk", "*", "throttle", rate=1e12)  # the first chunk goes through
    told = gcs.instruct("resumable-chunk", "*", action, **settings)
    chain = load()
    commit = chain.commit(batches_from(chain.cursor)[0], data, {})
    assert told.count == 0
    assert gcs.find("run/worker-00000/batches/00000000.safetensors").data == data
    assert gcs.find("run/worker-00000/batches/00000000.safetensors").generation == commit.data.generation
    assert load().cursor == chain.cursor


@pytest.mark.parametrize(
    "operation, name", [("insert", DATA), ("insert", COMMITS), ("list", "*"), ("read", COMMITS), ("get", DATA)]
)
@pytest.mark.parametrize("action, settings", [("fail", {"status": 503}), ("fail", {"status": 429}), ("reset", {})])
def test_a_storm_beyond_the_deadline_loses_nothing(gcs, calm, monkeypatch, operation, name, action, settings):
    chain = load()
    commit_next(chain)
    commit_next(chain)
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.2")
    told = gcs.instruct(operation, f"run/{name}", action, count=10_000, **settings)
    with pytest.raises(TryAgain, match="gs://bucket/run/.*no success within 0.2 s"):
        extract_all(load())
    assert chain.next_batch == 2
    told.count = 0
    assert result() == calm[:2]
    extract_all(load())
    assert result() == calm


@pytest.mark.parametrize("last", ["reset", "land-then-break"])
def test_a_store_that_goes_away_at_any_request_loses_nothing(gcs, calm, monkeypatch, last):
    """Every request of a whole run is the last one that gets through, or lands without an answer."""
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.05")
    ends = 0
    for number in range(1000):
        location = f"gs://bucket/away-{number}"
        told = [
            gcs.instruct("*", "away-*", "throttle", rate=1e12, count=number),
            gcs.instruct("*", "away-*", last),
            gcs.instruct("*", "away-*", "fail", count=10_000),
        ]
        try:
            extract_all(load(location))
        except TryAgain:
            ends += 1
        unused = told[1].count
        for instruction in told:
            instruction.count = 0
        done = committed(open_storage(location))
        assert done == calm[: len(done)]
        extract_all(load(location))
        assert committed(open_storage(location)) == calm
        if unused:
            break  # the run has no request of this number
    assert ends == number >= 2 * len(calm)


def test_a_landed_commit_whose_answer_never_came_is_known_by_its_attempt(gcs, calm, monkeypatch):
    """The answer is lost, then the service is away: the caller gets TryAgain, and may try again."""
    monkeypatch.setenv("EXTRACT_RETRY_DEADLINE", "0.2")
    chain = load()
    gcs.instruct("insert", COMMITS, "land-then-break")
    storm = gcs.instruct("*", COMMITS, "fail", count=10_000)
    with pytest.raises(TryAgain):
        commit_next(chain)
    assert chain.next_batch == 0
    storm.count = 0
    assert commit_next(chain, seconds=1.0).seconds["step"] == 0.0  # the first one's, which has landed
    extract_all(chain)
    assert result() == calm


# ---------------------------------------------------------------------------------------------- zombies and rivals


@pytest.mark.parametrize("name, other_bytes", [(COMMITS, False), (DATA, False), (DATA, True)])
def test_a_request_that_lands_after_a_rival_went_on_changes_nothing(gcs, calm, name, other_bytes):
    commit_next(load())
    slow, told = load(), gcs.instruct("insert", name, "hold")
    thread, raised = in_background(commit_next, slow, other_bytes)
    assert told.entered.wait(10)
    rival = load()
    extract_all(rival)
    told.release.set()
    thread.join()
    (error,) = raised
    assert isinstance(error, Fenced)
    winner = rival.attempt
    assert f"attempt {winner.id} on host {winner.host}, started {winner.started}" in str(error)
    assert result() == calm


def test_a_request_that_lands_before_the_rival_commits_wins(gcs, calm):
    slow, told = load(), gcs.instruct("insert", COMMITS, "hold")
    thread, raised = in_background(commit_next, slow)
    assert told.entered.wait(10)
    rival = load()
    told.release.set()
    thread.join()
    assert raised == []
    with pytest.raises(Fenced, match=slow.attempt.id):
        commit_next(rival)
    extract_all(slow)
    assert result() == calm


def test_a_request_of_a_killed_start_lands_after_the_next_start_has_looked(gcs, calm):
    """To the next start that is a rival's commit like any other; the start after it goes on."""
    told = gcs.instruct("insert", COMMITS, "hold")
    thread, _ = in_background(commit_next, load())
    assert told.entered.wait(10)
    second = load()
    told.release.set()
    thread.join()
    with pytest.raises(Fenced):
        extract_all(second)
    extract_all(load())
    assert result() == calm


def test_a_fenced_chain_has_written_nothing_after_the_lost_commit(gcs):
    winner, loser = load(), load()
    commit_next(winner)
    before = dict(gcs.objects)
    with pytest.raises(Fenced):
        extract_all(loser)
    assert dict(gcs.objects) == before


@pytest.mark.parametrize("other_bytes", [False, True])
def test_of_rivals_that_run_together_one_ends_the_stream_and_the_others_are_fenced(storage, tmp_path, other_bytes):
    together, ended = threading.Barrier(3), []

    def run(number):
        chain = CommitChain.load(storage, 0, FINGERPRINT)
        together.wait()
        while not chain.end_of_stream:
            commit_next(chain, other_bytes and number == 1)
        ended.append(number)

    rivals = [in_background(run, number) for number in range(3)]
    for thread, _ in rivals:
        thread.join()
    assert len(ended) == 1
    assert [type(error) for _, raised in rivals for error in raised] == [Fenced, Fenced]
    if not other_bytes:
        calm = open_storage(str(tmp_path / "calm"))
        extract_all(CommitChain.load(calm, 0, FINGERPRINT))
        assert committed(storage) == committed(calm)
    assert CommitChain.load(storage, 0, FINGERPRINT).end_of_stream
