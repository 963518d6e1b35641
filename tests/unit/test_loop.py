"""The loop holds the results of a bounded number of steps."""

import weakref

import numpy as np
import pytest

from extraction.batching.packing import BatchShape, pack_batches
from extraction.format.records import Cursor, TokenizedRecord
from extraction.worker.loop import STEPS_IN_FLIGHT, BatchLayout, run_pipeline
from tests.faults.test_slow_bucket import WIDTH, Output


@pytest.mark.parametrize("steps, bound", [(1, STEPS_IN_FLIGHT), (8, STEPS_IN_FLIGHT + 1)])
def test_results_of_few_steps_are_held_at_once(steps, bound):
    held: weakref.WeakSet[Output] = weakref.WeakSet()
    numbers = []

    def forward(tokens, segment_ids, positions, slots, *more):
        output = Output(tokens.reshape(-1)[slots])
        held.add(output)
        numbers.append(len(held))
        return output

    records = (TokenizedRecord(i, f"{i}", np.arange(8, dtype=np.int32)) for i in range(40))
    batches = pack_batches(records, Cursor(0, 0), BatchShape(steps, 1, 8), "split")
    run_pipeline(batches, BatchLayout(0, {"x": WIDTH}, np.dtype(np.float32)), forward, 0, lambda *what: None)
    assert (len(numbers), max(numbers)) == (40, bound)
