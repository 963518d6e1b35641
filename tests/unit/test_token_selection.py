"""Which tokens are stored: what the flags mean, and packing under every selection."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.batching.packing import BatchShape, Cut, pack_batches
from extraction.batching.token_selection import Selection, Selector, spans_of
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.format.records import Cursor, TokenizedRecord

SPECIAL = (0, 3)
shapes = st.builds(BatchShape, st.integers(1, 3), st.integers(1, 4), st.integers(1, 16))
modes = st.sampled_from(["split", "truncate"])
texts = st.one_of(
    st.sampled_from(["all", "last", "mean", "answer"]),
    st.integers(1, 20).map("every:{}".format),
    st.lists(st.integers(-20, 20), min_size=1, max_size=5).map(lambda numbers: ",".join(map(str, numbers))),
    st.tuples(*[st.none() | st.integers(-20, 20)] * 2, st.none() | st.integers(1, 5)).map(
        lambda bounds: ":".join("" if bound is None else str(bound) for bound in bounds)
    ),
)
records_of_tokens = st.lists(st.lists(st.integers(0, 9), max_size=50), max_size=25)


def records_of(token_lists, first=0):
    """Each token is one character wide; the answer of record i is characters [i, 2 i + 1)."""
    return [
        TokenizedRecord(
            i,
            f"id-{i}",
            np.array(tokens, np.int32),
            f'{{"spans": {{"answer": [{i}, {2 * i + 1}]}}}}',
            np.stack([np.arange(len(tokens)), np.arange(len(tokens)) + 1], 1).astype(np.int64).reshape(-1, 2),
        )
        for i, tokens in enumerate(token_lists)
        if i >= first
    ]


def stored_places(record, text, drop_special, length):
    """The meaning of the flags, said once more and otherwise: places in the record as it is cut."""
    if text in ("all", "mean"):
        places = list(range(length))
    elif text == "last":
        places = [length - 1] if length else []
    elif text == "answer":
        places = [place for place in range(record.index, 2 * record.index + 1) if place < length]
    elif text.count(":") == 2:
        places = list(range(length))[slice(*(int(bound) if bound else None for bound in text.split(":")))]
    elif text.startswith("every:"):
        places = [place for place in range(length) if place % int(text.removeprefix("every:")) == 0]
    else:
        listed = {int(part) for part in text.split(",")}
        places = [place for place in range(length) if place in listed or place - length in listed]
    return [place for place in places if not (drop_special and record.tokens[place] in SPECIAL)]


def rows_expected(record, text, drop_special, shape, mode):
    """(token, position in the record, tokens in the mean) of each row."""
    length = len(record.tokens) if mode == "split" else min(len(record.tokens), shape.seq_len)
    places = stored_places(record, text, drop_special, length)
    if text != "mean":
        return [(int(record.tokens[place]), place, None) for place in places]
    rows = []
    for first in range(0, length, shape.seq_len):
        last = min(first + shape.seq_len, length) - 1
        count = sum(first <= place <= last for place in places)
        rows += [(int(record.tokens[last]), last, count)] if count else []
    return rows


def rows_of(batch, at):
    """The same of record number `at` of a batch."""
    here = slice(batch.record_offsets[at], batch.record_offsets[at + 1])
    slots = batch.slots[here]
    over = [None] * len(slots) if batch.mean_over is None else batch.mean_over[here].tolist()
    tokens, positions = batch.tokens.reshape(-1)[slots].tolist(), batch.record_positions[here].tolist()
    return list(zip(tokens, positions, over, strict=True))


@given(records_of_tokens, shapes, modes, texts, st.booleans())
def test_what_is_stored_of_each_record_is_what_the_flags_say(token_lists, shape, mode, text, drop_special):
    records = records_of(token_lists)
    selector = Selector(Selection.parse(text, drop_special), SPECIAL)
    batches = list(pack_batches(records, Cursor(0, 0), shape, mode, selector))
    found = {record.index: [] for record in records}
    for batch in batches:
        assert batch.num_rows == len(batch.slots) == batch.record_offsets[-1]
        for at, index in enumerate(batch.record_index.tolist()):
            found[index] += rows_of(batch, at)
    for record in records:
        assert found[record.index] == rows_expected(record, text, drop_special, shape, mode)
    cut = Cut(shape.seq_len, mode, selector)
    assert sum(batch.num_rows for batch in batches) == sum(cut.count(record)[1] for record in records)


@given(records_of_tokens, shapes, modes, texts, st.booleans(), st.data())
def test_tokens_lie_where_they_lie_when_all_are_stored_and_from_any_cursor(
    token_lists, shape, mode, text, drop_special, data
):
    selector = Selector(Selection.parse(text, drop_special), SPECIAL)
    batches = list(pack_batches(records_of(token_lists), Cursor(0, 0), shape, mode, selector))
    whole = list(pack_batches(records_of(token_lists), Cursor(0, 0), shape, mode))
    for ours, theirs in zip(batches, whole, strict=True):
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("tokens", "segment_ids"))
        assert np.array_equal(ours.record_lengths, np.diff(theirs.record_offsets))
        assert ours.num_tokens == theirs.num_rows == theirs.num_tokens
        assert ours.cursor_after == theirs.cursor_after
    at = data.draw(st.integers(0, len(batches) - 1))
    start = batches[at].cursor_before
    again = list(pack_batches(records_of(token_lists, start.record), start, shape, mode, selector))
    for ours, theirs in zip(again, batches[at:], strict=True):
        for name in ("slots", "record_offsets", "record_lengths", "mean_over", "pooled"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@given(texts, st.booleans())
def test_one_meaning_has_one_text(text, drop_special):
    selection = Selection.parse(text, drop_special)
    assert Selection.parse(str(selection), drop_special) == selection


@pytest.mark.parametrize(
    "text, canonical",
    [
        (" all ", "all"),
        ("every:7", "every:7"),
        ("every: 7", "every:7"),
        ("5, 0,-1,5", "0,5,-1"),
        ("-1", "-1"),
        ("-3,-1,2", "2,-3,-1"),
        ("test-input", "test-input"),
        ("turn-end", "turn-end"),
        ("1:", "1:"),
        (" 0 : -1 : 1", ":-1"),
        ("::2", "::2"),
        ("-5:-1:3", "-5:-1:3"),
        ("0:", "all"),
    ],
)
def test_how_it_is_written(text, canonical):
    assert str(Selection.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1::0",
        "1:2:3:4",
        "::-1",
        "99999999999:",
        "every",
        "every:",
        "every:0",
        "every:-2",
        "every:2,3",
        "0,",
        "1.5",
        "0-5",
        "99999999999",
        "every:99999999999",
        "all,last",
        "mean:2",
    ],
)
def test_what_means_nothing_is_refused_with_what_may_stand_there(text):
    with pytest.raises(InvalidRequest, match=r"--positions .*all, last, mean, every:K"):
        Selection.parse(text)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20), texts.filter(lambda text: text != "answer"))
def test_the_rule_names_the_same_places_part_by_part(one, other, more, text):
    """Tokens in [first, last), selected alone, are those of the whole record in that range."""
    selection, (first, last) = Selection.parse(text), sorted((one, other))
    length = last + more
    whole = selection.named(0, length, length)
    assert selection.named(first, last, length).tolist() == [p for p in whole.tolist() if first <= p < last]
    unknown = set(whole.tolist()) - set(selection.named(0, length, None).tolist())
    assert all(length - selection.reach <= place for place in unknown)


def test_a_record_without_the_span_stores_nothing_and_a_torn_one_is_damage():
    tokens, offsets = np.array([1, 2], np.int32), np.array([[0, 1], [1, 2]])
    selector = Selector(Selection.parse("answer"))
    for meta in (None, "{}", "[1]", '{"spans": {}}', '{"spans": {"test-input": [0, 2]}}'):
        assert not selector.kept(TokenizedRecord(0, "r", tokens, meta, offsets), 2).any()
    for spans in ('{"answer": [1]}', '{"answer": [2, 1]}', '{"answer": [0, 1.5]}', '{"answer": "ab"}', "[]", "7"):
        with pytest.raises(DamagedData, match="record r: its meta has no spans"):
            spans_of(f'{{"spans": {spans}}}', "r")


def test_a_record_may_have_several_spans_of_a_name_and_none_is_outside_its_text():
    offsets = np.stack([np.arange(6), np.arange(6) + 1], 1)
    record = TokenizedRecord(0, "r", np.arange(6, dtype=np.int32), '{"spans": {"user": [[0, 2], [4, 5]]}}', offsets, 6)
    assert Selector(Selection.parse("user")).kept(record, 6).tolist() == [True, True, False, False, True, False]
    with pytest.raises(DamagedData, match="record r: the span user of its meta ends at 5, its text has 4 characters"):
        Selector(Selection.parse("user")).kept(replace(record, num_chars=4), 6)


def test_a_token_of_a_span_overlaps_it_and_one_without_text_is_of_none():
    """A beginning-of-text token has the place (0, 0); a token may reach over the edge of a span."""
    offsets = np.array([[0, 0], [0, 4], [4, 6], [6, 9], [9, 9]])
    meta = '{"spans": {"answer": [3, 6], "test-input": [0, 1]}}'
    record = TokenizedRecord(0, "r", np.arange(5, dtype=np.int32), meta, offsets)
    assert Selector(Selection.parse("answer")).kept(record, 5).tolist() == [False, True, True, False, False]
    assert Selector(Selection.parse("test-input")).kept(record, 5).tolist() == [False, True, False, False, False]
