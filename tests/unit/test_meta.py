"""A record's meta ends up beside its activations: in the header of the data object, in the order of the records."""

import json

import numpy as np
import pytest

from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import InvalidRequest
from extraction.format import safetensors as shards
from extraction.format.records import Cursor, Record, TokenizedRecord
from extraction.worker.loop import BatchInFlight, BatchLayout
from tests.helpers.batches import WIDTHS
from tests.helpers.workers import MODEL

LAYOUT = BatchLayout(0, WIDTHS, np.dtype(np.float32))


def batch_of(metas, length=3):
    records = [TokenizedRecord(i, f"r{i}", np.ones(length, np.int32), meta) for i, meta in enumerate(metas)]
    (batch,) = pack_batches(records, Cursor(0, 0), BatchShape(1, 4, 8), "split")
    return batch


def test_the_header_lists_the_metas_of_the_records():
    batch = batch_of(['{"task": "ä", "n": [1, 2]}', None, '"plain"'])
    metadata = shards.decode(BatchInFlight(batch, 0, LAYOUT).file.data).metadata
    assert json.loads(metadata["record_meta"]) == [{"task": "ä", "n": [1, 2]}, None, "plain"]
    assert json.loads(metadata["record_ids"]) == ["r0", "r1", "r2"]


def test_without_any_meta_the_header_says_nothing_of_it():
    assert "record_meta" not in BatchInFlight(batch_of([None, None]), 0, LAYOUT).file.metadata


def test_a_record_of_several_windows_has_its_meta_once():
    assert batch_of(["{}"], length=20).record_meta == ("{}",)


def test_the_tokenizer_hands_the_meta_on():
    records = RecordTokenizer(MODEL).tokenize([Record(0, "a", "some text", '{"x": 1}'), Record(1, "b", "")])
    assert [record.meta for record in records] == ['{"x": 1}', None]


def test_a_header_that_no_reader_would_take_is_refused(monkeypatch):
    monkeypatch.setattr(shards, "MAX_HEADER", 2000)
    with pytest.raises(InvalidRequest, match="--steps-per-batch"):
        BatchInFlight(batch_of([json.dumps("x" * 2000)]), 0, LAYOUT)
