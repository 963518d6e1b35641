"""What an interpreter shows of a reader and of what it yields: small, and true; names alone are enough."""

import numpy as np
import pytest

from extraction.core.errors import InvalidRequest
from extraction.read.display import listed
from extraction.read.reader import ActivationReader
from extraction.read.select import Select
from extraction.read.shuffle import ShuffledReader
from extraction.storage import open_storage
from tests.helpers.runs import WIDTHS, make_run

HOOK, OTHER = WIDTHS


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    make_run(open_storage(folder), [[8] * 3, [5]])
    return folder


def test_a_reader_says_what_it_reads_and_counts_only_when_it_is_asked(output):
    reader = ActivationReader(output)
    shown = repr(reader)
    assert output in shown and f"{HOOK}, {OTHER}" in shown and "bfloat16, positions all" in shown
    assert "not counted yet" in shown and "2 begun" in shown
    assert bool(reader) and "not counted yet" in repr(reader)
    assert len(reader) == 29 and "29 committed" in repr(reader)


def test_a_reader_of_a_part_says_which(output):
    part = ActivationReader(output, Select(streams=(1,), positions="1:"))
    assert len(part) == 4
    assert "Select(streams=(1,), where=None, positions='1:')" in repr(part) and "5 committed" in repr(part)


def test_what_it_yields_is_shown_by_shape(output):
    reader = ActivationReader(output)
    one, other = (f"{hook}: bfloat16 [{{0}}, {WIDTHS[hook]}]" for hook in (HOOK, OTHER))
    record = reader.record_at(0, 1)
    both = f"activations: {{{one.format(8)}, {other.format(8)}}}"
    assert repr(record) == f"RecordActivations({record.id!r}, record 1 of stream 0, positions 0 to 7, {both})"
    batch = next(reader.batches(HOOK))
    size = len(batch.tokens)
    assert repr(batch).startswith(f"Batch(batch 0 of stream 0, {size} rows of {len(batch.record_ids)} records, ")
    assert one.format(size) in repr(batch)
    assert repr(next(reader.rows(HOOK))) == f"Rows({size} rows, activations: bfloat16 [{size}, {WIDTHS[HOOK]}])"
    (facts,) = reader.statistics(HOOK).values()
    assert repr(facts).startswith("Statistics(29 rows, mean and variance float64 [") and len(repr(facts)) < 300


def test_a_name_or_a_list_of_names(output):
    reader = ActivationReader(output)
    single, several, all_of_them = (next(reader.rows(names)).activations for names in (HOOK, [HOOK], None))
    assert list(several) == [HOOK] and list(all_of_them) == [HOOK, OTHER]
    np.testing.assert_array_equal(single, several[HOOK])
    assert list(next(reader.records(OTHER)).activations) == [OTHER]
    assert list(reader.record_at(0, 0, OTHER).activations) == [OTHER]
    with pytest.raises(InvalidRequest, match="nothing: the run has the hook points"):
        next(reader.rows("nothing"))


def test_shuffling_needs_no_options(output):
    shuffled = ShuffledReader(ActivationReader(output), HOOK)
    assert sum(len(rows.tokens) for rows in shuffled) == 29


def test_of_many_names_the_first_and_the_last_are_shown():
    assert listed("abcd") == "a, b, c, d"
    assert listed("abcdefg") == "a, b, … 4 more …, g"
