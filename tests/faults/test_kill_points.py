"""`kill -9` of a real worker at each named point, and again one batch later; or after every batch.

Then it goes on as if nothing was.
"""

import signal

import pytest

from extraction.core.fault_points import KILL_POINTS
from extraction.storage import open_storage
from tests.helpers.workers import committed, extract

pytestmark = pytest.mark.slow

# Points around run.json are passed at every start, the others at each batch.
POINTS = [f"{point}:0" if "run" in point else f"{point}:2" for point in KILL_POINTS]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_it_ends_with_the_same_bytes(storage, undisturbed, point):
    streams, expected = undisturbed
    location = storage.location
    assert extract(streams, location, EXTRACT_KILL_AT=point).returncode == -signal.SIGKILL
    again = "before-commit:0" if "run" in point else point.replace(":2", ":3")
    assert extract(streams, location, EXTRACT_KILL_AT=again).returncode == -signal.SIGKILL
    result = extract(streams, location)
    assert result.returncode == 0, result.stderr
    assert committed(storage) == expected


def test_a_fresh_process_for_every_batch_ends_with_the_same_bytes(tmp_path, undisturbed):
    """Stopped and resumed at every batch boundary, the end of the stream included, by one process after the other."""
    (streams, expected), storage = undisturbed, open_storage(str(tmp_path / "output"))
    for batch in range(len(expected)):
        killed = extract(streams, storage.location, EXTRACT_KILL_AT=f"after-commit:{batch}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert committed(storage) == expected[: batch + 1]
    last = extract(streams, storage.location)
    assert last.returncode == 0 and "the stream is complete" in last.stderr, last.stderr
    assert committed(storage) == expected
