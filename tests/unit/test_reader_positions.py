"""Reading runs that store a part of their tokens: records stay whole, and means can be joined."""

import numpy as np
import pytest

from extraction.batching.packing import Cut, pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.core.errors import ObjectNotFound
from extraction.format.records import Cursor, TokenizedRecord
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffledReader, ShuffleOptions
from extraction.storage import open_storage
from tests.helpers.runs import SHAPE, WIDTHS, activations_of, make_run, record_id, tokens_of

pytestmark = pytest.mark.slow

# With these some batches store nothing: within a long record, at its beginning, at its end, at the stream's end.
STREAMS = ([5, 3, 60, 0, 8, 1, 7, 70], [40, 1, 2, 50, 3], [0, 0], [2, 90])
RULES = ("last", "mean", "every:17", "0", "-1,30", "45", "every:3")
HOOK = next(iter(WIDTHS))


def expected_of(worker_id, index, length, selector):
    """(tokens that are stored, of how many each is the mean) of a record."""
    tokens = tokens_of(worker_id, index, length)
    windows = Cut(SHAPE.seq_len, "split").windows(TokenizedRecord(index, "", tokens), 0)
    if selector.selection.pools:
        lengths = [window.length for window in windows if window.length]
        return tokens[np.cumsum(lengths, dtype=int) - 1].tolist(), lengths
    return tokens[selector.kept(TokenizedRecord(index, "", tokens), length)].tolist(), None


@pytest.mark.parametrize("rule", RULES)
def test_records_are_whole_over_batches_of_which_nothing_is_stored(tmp_path, rule):
    selector = Selector(Selection.parse(rule))
    make_run(open_storage(str(tmp_path)), STREAMS, selector=selector)
    reader = ActivationReader(str(tmp_path))
    found = {(record.stream, record.index): record for record in reader.records()}
    assert len(found) == len(list(reader.records()))
    for worker_id, lengths in enumerate(STREAMS):
        for index, length in enumerate(lengths):
            tokens, over = expected_of(worker_id, index, length, selector)
            record = found.pop((worker_id, index), None)
            assert ([] if record is None else record.tokens.tolist()) == tokens, (worker_id, index)
            if tokens:
                assert (None if record.mean_over is None else record.mean_over.tolist()) == over
                assert np.array_equal(record.activations[HOOK], activations_of(record.tokens, WIDTHS[HOOK]))
                again = ActivationReader(str(tmp_path)).record(record_id(worker_id, index))
                assert (again.tokens.tolist(), again.index) == (tokens, index)
    assert not found
    rows = list(ActivationReader(str(tmp_path)).rows(HOOK))
    assert sum(len(r.tokens) for r in rows) == reader.num_rows()
    shuffled = iter(ShuffledReader(reader, HOOK, ShuffleOptions(batch_size=reader.num_rows(), buffer=1 << 10)))
    assert sorted(next(shuffled).tokens.tolist()) == sorted(np.concatenate([r.tokens for r in rows]).tolist())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop_after", range(1, 7))
def test_of_an_unfinished_run_only_what_is_committed_whole_is_a_record(tmp_path, rule, stop_after):
    selector = Selector(Selection.parse(rule))
    make_run(open_storage(str(tmp_path)), STREAMS, stop_after, selector)
    reader = ActivationReader(str(tmp_path))
    found = {(record.stream, record.index): record.tokens.tolist() for record in reader.records() if len(record.tokens)}
    for worker_id, lengths in enumerate(STREAMS):
        records = [TokenizedRecord(i, str(i), tokens_of(worker_id, i, length)) for i, length in enumerate(lengths)]
        batches = list(pack_batches(records, Cursor(0, 0), SHAPE, "split", selector))[:stop_after]
        whole = range(batches[-1].cursor_after.record)
        expected = {(worker_id, i): expected_of(worker_id, i, lengths[i], selector)[0] for i in whole}
        assert {key: tokens for key, tokens in found.items() if key[0] == worker_id} == {
            key: tokens for key, tokens in expected.items() if tokens
        }


def test_the_mean_of_a_record_is_that_of_its_windows_by_their_lengths(tmp_path):
    make_run(open_storage(str(tmp_path)), [[20]], selector=Selector(Selection.parse("mean")))
    record = ActivationReader(str(tmp_path)).record(record_id(0, 0))
    assert record.mean_over.tolist() == [8, 8, 4]
    values = record.activations[HOOK].astype(np.float64)
    assert np.allclose(record.mean(HOOK), (8 * values[0] + 8 * values[1] + 4 * values[2]) / 20)
    assert not np.allclose(record.mean(HOOK), values.mean(0))


def test_a_record_of_which_nothing_is_stored_has_no_rows_or_is_not_there(tmp_path):
    make_run(open_storage(str(tmp_path)), [[2, 9], [3]], selector=Selector(Selection.parse("5")))
    reader = ActivationReader(str(tmp_path))
    record = reader.record(record_id(0, 0))
    assert (len(record.tokens), record.activations[HOOK].shape) == (0, (0, WIDTHS[HOOK]))
    with pytest.raises(ValueError, match="nothing of it is stored"):
        record.mean(HOOK)
    with pytest.raises(ObjectNotFound, match="holds no record"):
        reader.record(record_id(1, 0))
