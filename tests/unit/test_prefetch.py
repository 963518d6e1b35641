"""An iterator that is worked ahead: order, bound, errors, and an end when nobody wants more."""

import threading
import time
import traceback

import pytest

from extraction.core.errors import DamagedData
from extraction.core.threads import in_background


def settled(count):
    """Wait until `count` no longer changes; its value."""
    before = None
    while before != (before := count()):
        time.sleep(0.05)
    return before


def test_the_same_items_in_order():
    assert list(in_background(range(1000), 3)) == list(range(1000))
    assert list(in_background([], 1)) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_is_made_than_may_wait(depth):
    made = []
    items = in_background((made.append(i) or i for i in range(100)), depth)
    for taken in range(1, 5):
        next(items)
        assert settled(lambda: len(made)) == taken + depth


def test_an_error_comes_after_the_items_before_it_and_says_where_it_was():
    def source():
        yield 1
        yield 2
        raise DamagedData("the third")

    items = in_background(source(), 1)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(DamagedData, match="the third") as caught:
        next(items)
    assert "source" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def test_the_thread_ends_when_the_consumer_does():
    before = threading.active_count()
    items = in_background(iter(int, 1), 2)
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before
