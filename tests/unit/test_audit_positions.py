"""What `verify --deep` proves of runs that store a part of their tokens."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from extraction.audit.audited_run import AuditedRun
from extraction.audit.check_record_coverage import check_cover, check_records
from extraction.audit.verify import audit_run
from extraction.batching.packing import pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.core.errors import DamagedData
from extraction.format.records import Cursor, TokenizedRecord
from extraction.format.run_config import parse_run
from extraction.storage import open_storage
from tests.helpers.runs import CONFIG, SHAPE
from tests.helpers.stream_runs import NUM_WORKERS, configure, describe, edited, extract, relink

pytestmark = pytest.mark.slow

RULES = ("last", "mean", "every:3", "every:8", "0,5,-1", "-3,-12,2")
EXACT = ("all", "last", "every:2", "every:3", "0,1", "3,-1")
FACTS = AuditedRun(CONFIG, CONFIG.fingerprint, Selection())


@pytest.mark.parametrize("drop_special", [False, True])
@pytest.mark.parametrize("positions", ["all", *RULES])
@pytest.mark.parametrize("long_documents", ["split", "truncate"])
def test_runs_that_store_a_part_are_proven(tmp_path, run_streams, positions, drop_special, long_documents):
    storage, changes = open_storage(str(tmp_path)), {"positions": positions, "drop_special": drop_special}
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker, long_documents=long_documents, **changes)
    audit = audit_run(str(tmp_path), deep=True)
    assert (audit.problems, audit.verdict) == ([], "proven")
    stored, read = (audit.totals()[name] for name in ("num_rows", "num_tokens"))
    assert read == 2 * sum(
        length if long_documents == "split" else min(length, 8) for length in (5, 3, 20, 0, 8, 1, 7, 7, 2, 16)
    )
    assert (stored == read) == (positions == "all" and not drop_special)
    assert (f"{stored:,} rows of {read:,} tokens" in audit.to_text()) == (stored != read)


def test_a_batch_of_which_nothing_is_stored_has_no_data_object(tmp_path, run_streams):
    storage = open_storage(str(tmp_path))
    extract(storage, run_streams, 0, positions="15")
    commits = [json.loads(storage.read(info.name)) for info in storage.list("worker-00000/commits/")]
    assert [commit["data"] is None for commit in commits] == [commit["num_rows"] == 0 for commit in commits]
    assert [commit["num_rows"] for commit in commits].count(0) > 1
    assert len(list(storage.list("worker-00000/batches/"))) == sum(commit["num_rows"] for commit in commits) == 2
    audit = audit_run(str(tmp_path), deep=True)
    assert (audit.problems, audit.streams[0].finished) == ([], True)


def stored_by(lengths, selector, long_documents="split"):
    """What check_records is given for each batch of records of these lengths, whose tokens are 0 to 9."""
    tokens = [np.arange(length, dtype=np.int32) % 10 for length in lengths]
    given = [TokenizedRecord(i, f"id-{i}", ids) for i, ids in enumerate(tokens)]
    for batch in pack_batches(given, Cursor(0, 0), SHAPE, long_documents, selector):
        if batch.num_records:
            arrays = {name: getattr(batch, name) for name in ("record_index", "record_offsets", "record_lengths")}
            arrays |= {"tokens": batch.tokens.reshape(-1)[batch.slots], "positions": batch.record_positions}
            yield arrays | ({} if batch.mean_over is None else {"mean_over": batch.mean_over}), batch


def problems_of(arrays, batch, positions, drop_special=False, special_ids=()):
    facts = replace(FACTS, selection=Selection.parse(positions, drop_special), special_ids=special_ids)
    names = ("cursor_before", "cursor_after", "num_records", "num_rows", "num_tokens")
    return list(check_records(arrays, SimpleNamespace(**{name: getattr(batch, name) for name in names}), facts))


records = st.lists(st.integers(0, 40), min_size=1, max_size=10)


@given(records, st.sampled_from(EXACT), st.sampled_from(EXACT))
def test_rows_are_taken_for_those_of_a_rule_if_and_only_if_they_are(lengths, rule, other):
    selectors = [Selector(Selection.parse(text)) for text in (rule, other)]
    for (arrays, batch), (others, _) in zip(*(stored_by(lengths, selector) for selector in selectors), strict=True):
        same = all(np.array_equal(arrays[name], others[name]) for name in ("positions", "record_offsets"))
        assert (problems_of(arrays, batch, other) == []) == same


@given(records, st.sampled_from(RULES), st.booleans(), st.data())
def test_a_row_too_few_or_elsewhere_is_found_where_lengths_tell(lengths, rule, drop_special, data):
    for arrays, batch in stored_by(lengths, Selector(Selection.parse(rule, drop_special), (3, 7))):
        assert problems_of(arrays, batch, rule, drop_special, (3, 7)) == []
        if batch.num_rows:
            row = data.draw(st.integers(0, batch.num_rows - 1))
            moved = arrays["positions"].copy()
            moved[row] = 40  # no record has such a position
            assert problems_of(arrays | {"positions": moved}, batch, rule, drop_special, (3, 7))
            if rule == "mean":
                over = arrays["mean_over"] + 8 * (np.arange(batch.num_rows) == row)
                assert problems_of(arrays | {"mean_over": over}, batch, rule, drop_special, (3, 7))
            elif drop_special:
                tokens = np.where(np.arange(batch.num_rows) == row, 7, arrays["tokens"])
                assert problems_of(arrays | {"tokens": tokens}, batch, rule, True, (3, 7))


def test_a_position_from_the_end_may_lie_before_the_end_of_a_part_and_no_earlier():
    """A record of 40 tokens over batches of 16, of whose first part -12 cannot be and -30 is token 10."""
    (arrays, batch), *_ = stored_by([40], Selector(Selection.parse("-30,2")))
    assert arrays["positions"].tolist() == [2, 10]
    assert problems_of(arrays, batch, "-30,2") == [] == problems_of(arrays, batch, "-12,-8,2,10")
    assert problems_of(arrays, batch, "-6,2") and problems_of(arrays, batch, "-30,3")


def without_data(storage, number):
    """Have a commit say that its batch has no rows, and those after it sum up what is left."""
    names = [info.name for info in storage.list("worker-00000/commits/")][number:]
    first = json.loads(storage.read(names[0]))
    for name in names:
        data = storage.read(name)
        totals = json.loads(data)["totals"]
        left = {
            "totals__rows": totals["rows"] - first["num_rows"],
            "totals__bytes": totals["bytes"] - first["data"]["size"],
        }
        gone = {"data": None, "num_rows": 0} if name == names[0] else {}
        Path(storage.location, name).write_bytes(edited(data, **left, **gone))
    relink(storage, lambda name, data: Path(storage.location, name).write_bytes(data))


@pytest.mark.parametrize("positions, drop_special, told", [
    ("mean", False, True), ("every:1", False, True), ("0", False, True), ("last", False, True),
    ("0,900,-70", False, True), ("-6", False, True), ("-8", False, False), ("all", True, False),
])  # fmt: skip
def test_a_commit_that_lost_its_data_is_found_where_cursors_tell(tmp_path, run_streams, positions, drop_special, told):
    """For all that is known every token was special, and each of three records shorter than 8."""
    storage = open_storage(str(tmp_path))
    for worker in range(NUM_WORKERS):
        extract(storage, run_streams, worker, positions=positions, drop_special=drop_special)
    without_data(storage, 2)
    problem = f"worker-00000/commits/00000002.json: stores no rows, and --positions {positions} names some of the 16 "
    for deep in (False, True):
        audit = audit_run(str(tmp_path), deep=deep)
        assert [line.startswith(problem) for line in audit.problems] == [True] * told
        assert audit.verdict == ("damaged" if told else "proven")


def cover(before, after, read, positions="all", rows=0, truncates=False):
    config = replace(CONFIG, long_documents="truncate" if truncates else "split")
    facts = replace(FACTS, config=config, selection=Selection.parse(positions))
    commit = SimpleNamespace(cursor_before=Cursor(*before), cursor_after=Cursor(*after), num_rows=rows, num_tokens=read)
    return list(check_cover(commit, facts))


def may_be_empty(before, after, read, positions):
    """Said once more, by trial: are there records of which no token has a row? They go on by up to 12 tokens."""
    named, num_ended = Selection.parse(positions).named, after[0] - before[0]
    opened = (0 if num_ended else before[1], after[1]) if after[1] else (0, 0)
    for lengths in product(range(read + 1), repeat=num_ended):
        firsts = [before[1], *[0] * num_ended][:num_ended]
        if sum(lengths) + opened[1] - opened[0] != read or (firsts and firsts[0] and not lengths[0]):
            continue
        ended = [(first, first + n, first + n) for first, n in zip(firsts, lengths, strict=True)]
        for more in range(1, 13):
            if not any(len(named(*part)) for part in [*ended, (*opened, opened[1] + more)]):
                return True
    return False


@given(
    st.sampled_from([0, 4, 8]),
    st.integers(0, 3),
    st.sampled_from([0, 4, 8]),
    st.integers(0, 12),
    st.sampled_from(["all", "last", "every:1", "every:3", "every:7", "0", "2,-3", "-1,9", "-2", "-5", "5", "3,8"]),
)
@example(8, 3, 0, 3, "3,8")
@example(4, 1, 0, 3, "every:7")
@example(4, 1, 0, 4, "every:7")
@example(4, 0, 8, 4, "every:9")
def test_no_rows_are_believed_if_and_only_if_some_records_have_none(offset, num_ended, end, read, positions):
    before, after = (0, offset), (num_ended, end)
    assume(before < after)
    problems = cover(before, after, read, positions)
    assert (problems == []) == may_be_empty(before, after, read, positions)


@given(records, st.sampled_from(["all", "15", "-20", *RULES]), st.booleans(), st.sampled_from(["split", "truncate"]))
def test_what_packing_covers_is_never_refused(lengths, rule, drop_special, mode):
    for _, batch in stored_by(lengths, Selector(Selection.parse(rule, drop_special), (3, 7)), mode):
        facts = replace(
            FACTS, config=replace(CONFIG, long_documents=mode), selection=Selection.parse(rule, drop_special)
        )
        assert list(check_cover(batch, facts)) == []


@pytest.mark.parametrize("before, after, read, truncates, wrong", [
    ((3, 8), (3, 16), 8, False, False), ((3, 8), (3, 16), 13, False, True), ((3, 8), (3, 16), 3, False, True),
    ((3, 0), (5, 8), 13, False, False), ((3, 0), (5, 8), 7, False, True), ((3, 8), (4, 0), 0, False, True),
    ((3, 0), (5, 0), 16, True, False), ((3, 0), (4, 0), 13, True, True),
])  # fmt: skip
def test_the_tokens_of_a_commit_are_as_many_as_its_cursors_allow(before, after, read, truncates, wrong):
    problems = cover(before, after, read, rows=read, truncates=truncates)
    assert [problem.startswith(f"counts {read} tokens, which does not fit its cursors") for problem in problems] == [
        True
    ] * wrong


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"positions": "every:0"}, "--positions every:0: give all, last"),
        ({"positions": 3}, "positions is not a string"),
        ({"drop_special": 1}, "long_documents or drop_special"),
        ({"seq_len": "two"}, "not a readable run description"),
    ],
)
def test_a_description_that_cannot_be_is_named(run_streams, changes, message):
    config = configure(run_streams)
    object.__setattr__(config, "__dict__", config.__dict__ | changes)
    data = describe(config, run_streams).to_bytes()
    with pytest.raises(DamagedData, match=message):
        AuditedRun.of(parse_run(data, "run.json"), "run.json")
