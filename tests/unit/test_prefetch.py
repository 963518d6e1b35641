"""An iterator that is worked ahead: order, bound, errors, and an end when nobody wants more."""

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from extraction.core.errors import DamagedData
from extraction.core.threads import in_background, prefetch


def wait_for(items, number):
    """Wait until there are so many items; those who made more fail here or once they have ended."""
    deadline = time.monotonic() + 30
    while len(items) < number and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(items) == number


def test_the_same_items_in_order():
    assert list(in_background(range(1000), 3)) == list(range(1000))
    assert list(in_background([], 1)) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_is_made_than_may_wait(depth):
    made = []
    items = in_background((made.append(i) or i for i in range(100)), depth)
    for taken in range(1, 5):
        next(items)
        wait_for(made, taken + depth)
    items.close()
    assert len(made) == 4 + depth


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


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_prefetch_gives_results_in_the_order_of_the_items(pool):
    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return item * 2

    assert list(prefetch(range(100), slow_first, 8, pool)) == [2 * item for item in range(100)]
    assert list(prefetch([], slow_first, 8, pool)) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_prefetch_loads_no_more_than_its_depth(pool, depth):
    loaded = []
    results = prefetch(range(100), loaded.append, depth, pool)
    for taken in range(1, 5):
        next(results)
        wait_for(loaded, taken + depth)
    pool.shutdown()
    assert len(loaded) == 4 + depth


def broken_source():
    yield from "ab"
    raise DamagedData("the third")


def broken_load(item):
    if item == "c":
        raise DamagedData("the third")
    return item


@pytest.mark.parametrize("items, load", [(broken_source(), str), ("abcd", broken_load)], ids=["source", "load"])
def test_prefetch_raises_after_the_results_before_the_error(pool, items, load):
    results = prefetch(items, load, 4, pool)
    assert [next(results), next(results)] == ["a", "b"]
    with pytest.raises(DamagedData, match="the third"):
        next(results)


def test_closing_a_prefetch_cancels_what_has_not_begun():
    begun, going_on = [], threading.Event()

    def load(item):
        begun.append(item)
        assert item == 0 or going_on.wait(10)

    with ThreadPoolExecutor(1) as one:
        results = prefetch(range(100), load, 8, one)
        next(results)
        wait_for(begun, 2)
        results.close()
        going_on.set()
    assert begun == [0, 1]
