"""`kill -9` of a real worker at every named point, at every batch boundary. Then it goes on as if nothing was."""

import signal

import pytest

from tests.helpers.workers import committed, extract

pytestmark = pytest.mark.slow

ROUND = ["before-data", "after-commit", "after-data", "before-commit"]  # at the batches, in turn


def test_killed_at_each_point_and_batch_it_ends_with_the_same_bytes(storage, undisturbed):
    """One output, whose worker resumes at every batch, the last included; in a bucket each point is passed once."""
    streams, expected = undisturbed
    batches = len(ROUND) if storage.location.startswith("gs://") else len(expected)
    kills = [("before-run", 0), ("after-run", 0), *((ROUND[batch % 4], batch) for batch in range(batches))]
    for point, batch in kills:
        killed = extract(streams, storage.location, EXTRACT_KILL_AT=f"{point}:{batch}")
        assert killed.returncode == -signal.SIGKILL, (point, batch, killed.stderr)
        assert committed(storage) == expected[: batch + (point == "after-commit")]
    last = extract(streams, storage.location)
    assert last.returncode == 0, last.stderr
    assert committed(storage) == expected
