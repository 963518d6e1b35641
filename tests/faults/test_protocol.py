"""The protocol of the commit chain, every interleaving of it: see protocol_model.py for what is modelled.

Two workers on one stream, each killed at any step and started again, over a store that delays requests, loses answers
and lets what was delayed land at any later moment, in any order.
"""

import json

import pytest

from checkpoint import CommitChain
from extraction.storage import open_storage
from tests.helpers.batches import batches_from, data_of, extract_all
from tests.helpers.protocol_model import ALIVE, Model, State, Worker, WrongState


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Model(),
        Model(same_bytes=False, max_delayed=1),
        Model(same_bytes=False, num_batches=1),
        Model(same_bytes=False, num_starts=1),
        Model(num_workers=1, num_batches=3, num_starts=3, max_delayed=3),
    ],
    ids=["two workers", "on other hardware", "one batch, more delays", "nobody is killed", "one worker, killed often"],
)
def test_every_interleaving_ends_in_a_correct_chain(model):
    assert model.explore() > 5_000  # states: hundreds would mean that something is not modelled


@pytest.mark.parametrize(
    "broken, what",
    [
        (Model(create_only=False), "a commit was replaced"),
        (
            Model(create_only=False, same_bytes=False),
            "a commit was replaced|names data that are not there or are others",
        ),
        (Model(data_before_commit=False), "names data that are not there"),
        (Model(waits_for_its_commit=False), "the chain has a gap|done before the stream is"),
        (Model(knows_its_own=False), "fenced by itself"),
    ],
    ids=lambda value: None if isinstance(value, str) else "broken",
)
def test_the_model_notices_when_a_rule_is_broken(broken, what):
    with pytest.raises(WrongState, match=what) as caught:
        broken.explore()
    assert caught.value.way


def alone(worker: Worker, state: State, model: Model) -> list[str]:
    """The steps of a worker that meets no fault, as the test server tells of them."""
    steps = []
    while worker.at in ALIVE:
        step, state = next(model.worker_steps(state, worker))
        if worker.at in ("list", "check"):
            steps.append(worker.at)
        else:
            name = model.request(worker)[0]
            steps.append(f"{name[0]} {name[1]}" + (" own" if len(name) > 2 else ""))
        (worker,) = state.workers
    return steps


def told(gcs, attempt: str) -> list[str]:
    """What a real chain asked of the server, in the words of the model."""
    steps = []
    for what in (entry[2] for entry in gcs.history):
        operation, _, name = what.partition(" ")
        number = name.rpartition("/")[2].partition(".")[0].partition("-")[0]
        if operation == "list":
            steps.append("list")
        elif operation == "get" and steps[-1] == "list read":
            steps[-1:] = ["list", "check"]
        elif operation == "read":
            steps[-1] = "list read"
        elif operation == "insert":
            kind = "commit" if "/commits/" in name else "data"
            steps.append(f"{kind} {int(number)}" + (" own" if attempt in name else ""))
    return steps


@pytest.mark.parametrize("stopped_after", [0, 2])
@pytest.mark.parametrize("other_bytes", [False, True])
def test_the_steps_of_the_model_are_those_of_the_chain(gcs, stopped_after, other_bytes):
    storage = open_storage("gs://bucket/run")
    first = CommitChain.load(storage, 0, "sha256:f")
    for _ in range(stopped_after):
        batch = batches_from(first.cursor)[0]
        first.commit(batch, data_of(batch, first.next_batch), {})
    num_batches = stopped_after + len(batches_from(first.cursor))
    store = {(("data", n), (n, 0)) for n in range(stopped_after)}
    store |= {(("commit", n), (n, (9, 9), ("data", n), (n, 0))) for n in range(stopped_after)}
    if other_bytes:
        storage.create(f"worker-00000/batches/{stopped_after:08d}.safetensors", b"of another")
        store |= {(("data", stopped_after), (stopped_after, "of another"))}
    gcs.history.clear()
    chain = CommitChain.load(storage, 0, "sha256:f")
    extract_all(chain)
    model = Model(num_workers=1, num_batches=num_batches)
    state = State((Worker(0),), frozenset(store))
    expected = alone(state.workers[0], state, model)
    if not stopped_after:
        expected.remove("check")  # of a chain without commits there is nothing to check
    assert told(gcs, chain.attempt.id) == expected
    assert json.loads(storage.read(f"worker-00000/commits/{num_batches - 1:08d}.json"))["end_of_stream"]
