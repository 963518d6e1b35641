"""The background writer: order, bound, and errors that reach the caller."""

import threading

import pytest

from extraction.core.errors import TryAgain
from extraction.worker.uploader import Uploader


def commit_into(list_of_batches):
    def commit(batch, data, seconds):
        list_of_batches.append(batch)
        return batch

    return commit


def test_everything_submitted_is_committed_in_order_before_close_returns():
    committed, seen = [], []
    with Uploader(commit_into(committed), 10, seen.append) as writer:
        for number in range(50):
            writer.submit(number, memoryview(b"1234"), {})
    assert committed == seen == list(range(50))


def test_submit_waits_while_the_queue_is_full():
    released, committed = threading.Event(), []

    def commit(batch, data, seconds):
        released.wait(10)
        committed.append(batch)

    with Uploader(commit, 10, lambda commit: None) as writer:
        writer.submit(0, memoryview(bytes(6)), {})
        third = threading.Thread(target=writer.submit, args=(1, memoryview(bytes(6)), {}))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        released.set()
        third.join(10)
    assert committed == [0, 1]


def test_one_batch_larger_than_the_bound_still_goes_through():
    committed = []
    with Uploader(commit_into(committed), 10, lambda commit: None) as writer:
        writer.submit(0, memoryview(bytes(100)), {})
    assert committed == [0]


def test_an_error_reaches_the_caller_and_nothing_is_written_after_it():
    committed = []

    def commit(batch, data, seconds):
        if batch == 1:
            raise TryAgain("storage is away")
        committed.append(batch)

    with (
        pytest.raises(TryAgain, match="storage is away"),
        Uploader(commit, 100, lambda commit: None) as writer,
    ):
        for number in range(10):
            writer.submit(number, memoryview(b""), {})
    assert committed == [0]


def test_a_failed_pipeline_is_not_hidden_by_the_writer():
    with (
        pytest.raises(ValueError, match="in the loop"),
        Uploader(commit_into([]), 100, lambda commit: None),
    ):
        raise ValueError("in the loop")
