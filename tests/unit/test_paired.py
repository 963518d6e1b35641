"""Two runs read in step: other batches of the same tokens, and runs that do not match."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from extraction import ActivationReader, PairedReader
from extraction.batching.packing import BatchShape
from extraction.batching.token_selection import EVERYTHING, Selection, Selector
from extraction.core.errors import InvalidRequest
from extraction.read.select import Select
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import WIDTHS, all_tokens, expected, make_run

LENGTHS = ([5, 3, 40, 1], [16, 9, 7])
HOOK, OTHER = WIDTHS


@pytest.fixture
def reader_of(tmp_path, monkeypatch):
    """A function that makes a run and opens it; `rows` are those of a batch."""

    def make(name, lengths=LENGTHS, rows=2, selector=EVERYTHING):
        monkeypatch.setattr(runs, "SHAPE", BatchShape(1, rows, 8))
        make_run(open_storage(str(tmp_path / name)), lengths, selector=selector)
        return ActivationReader(str(tmp_path / name))

    return make


def test_batches_of_other_sizes_are_read_in_step(reader_of):
    small, large = reader_of("small"), reader_of("large", rows=5)
    sizes = [[ref.num_rows for ref in reader.all_refs()] for reader in (small, large)]
    assert sizes[0] != sizes[1]
    found = list(PairedReader(small, large).rows(HOOK, OTHER))
    tokens = np.concatenate([rows.tokens for rows in found])
    assert np.array_equal(tokens, all_tokens(LENGTHS))
    assert np.array_equal(np.concatenate([rows.first for rows in found]), expected(tokens, HOOK))
    assert np.array_equal(np.concatenate([rows.second for rows in found]), expected(tokens, OTHER))
    places = [tuple(place) for rows in found for place in np.column_stack([rows.record, rows.positions]).tolist()]
    assert all(before < after for before, after in pairwise(places))
    of_one = [rows.record[:, 0] for rows in PairedReader(small, large).rows(HOOK, HOOK, [1])]
    assert np.array_equal(np.concatenate(of_one), [1] * sum(LENGTHS[1]))


@pytest.mark.parametrize(
    "lengths, message",
    [
        (([5, 3, 40, 2], [16, 9, 7]), "one has more rows of stream 0"),
        (([5, 4, 39, 1], [16, 9, 7]), "differ at record 2 of stream 0, position 0: token 200 and 103"),
    ],
)
def test_runs_of_other_tokens_are_refused_where_they_differ(reader_of, lengths, message):
    paired = PairedReader(reader_of("one"), reader_of("other", lengths))
    with pytest.raises(InvalidRequest, match=message):
        list(paired.rows(HOOK, HOOK))


@pytest.mark.parametrize("shorter", [0, 1])
def test_a_stream_that_only_one_run_has_begun_is_refused(reader_of, shorter):
    readers = [reader_of("one"), reader_of("other")]
    readers[shorter] = reader_of("shorter", LENGTHS[:1])
    for reader in readers:
        reader.run = replace(reader.run, records_per_stream=(4, 3))
    with pytest.raises(InvalidRequest, match="one has more rows of stream 1 than the other; finish both"):
        list(PairedReader(*readers).rows(HOOK, HOOK))
    assert sum(len(rows.tokens) for rows in PairedReader(*readers).rows(HOOK, HOOK, [0])) == sum(LENGTHS[0])


@pytest.mark.parametrize("selects", [((1,), None), (None, (1,)), ((1,), (0, 1))])
def test_streams_are_those_that_both_readers_select(reader_of, selects):
    readers = [reader_of("one"), reader_of("other")]
    readers = [
        ActivationReader(reader.storage.location, Select(streams=streams))
        for reader, streams in zip(readers, selects, strict=True)
    ]
    found = [rows.record[:, 0] for rows in PairedReader(*readers).rows(HOOK, HOOK)]
    assert np.array_equal(np.concatenate(found), [1] * sum(LENGTHS[1]))


def test_runs_that_select_other_tokens_are_refused_at_once(reader_of):
    last = Selector(Selection.parse("last", False))
    with pytest.raises(InvalidRequest, match=r"differ in positions \(all and last\)"):
        PairedReader(reader_of("one"), reader_of("other", selector=last))


def test_other_lengths_of_rows_matter_only_where_records_are_cut(reader_of):
    one, other = reader_of("one"), reader_of("other")
    other.run = replace(other.run, config=replace(other.run.config, seq_len=16))
    PairedReader(one, other)
    for reader in (one, other):
        reader.run = replace(reader.run, config=replace(reader.run.config, long_documents="truncate"))
    with pytest.raises(InvalidRequest, match=r"seq_len \(8 and 16\)"):
        PairedReader(one, other)
