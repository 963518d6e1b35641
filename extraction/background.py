"""An iterator that is worked ahead by a thread.

In: any iterable. Out: its items, in its order. Guarantee: no more than `depth` items wait, besides the one in hand; an
error of the source is raised, with its traceback, after the items that came before it; a consumer that stops early
stops the thread. Cost: a thread.
"""

import queue
import threading
from collections.abc import Iterable, Iterator

_END = object()
_LOOK_AFTER_S = 0.1  # how long the thread may wait for room before it looks whether anyone still wants items


def in_background(items: Iterable, depth: int) -> Iterator:
    """The same items, made up to `depth` ahead of their use."""
    waiting: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def hand_over(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=_LOOK_AFTER_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over((item, None)):
                    return
            hand_over((_END, None))
        except BaseException as error:  # whatever it is, it belongs to the consumer
            hand_over((_END, error))

    threading.Thread(target=work, name="background", daemon=True).start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
