"""Workers that store a part of the tokens: each row is one of a run that stores all, and a kill changes none."""

import json
import signal

import numpy as np
import pytest

from extraction.audit.verify import audit_run
from extraction.batching.token_selection import Selection
from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import InvalidRequest
from extraction.datasets.arc_agi import dataset as arc_agi
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from tests.helpers.workers import MODEL, committed, extract, extract_here, make_streams, text_of, write_corpus

pytestmark = pytest.mark.slow

SEQ_LEN = 32  # of tests.helpers.workers.SMALL
HOOK = "blocks.1.hook_resid_post"
WORDS = (3, 200, 1, 40, 12, 90, 7, 7, 25, 60, 2)
SETTINGS = ("--store-dtype", "float32", "--bos", "always")  # each record begins with a special token
RULES = ("last", "every:5", "0,7,-1,-40")


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("positions")
    texts = [text_of(i, n) for i, n in enumerate(WORDS)]
    return make_streams(write_corpus(folder / "corpus", texts), folder / "streams")


@pytest.fixture(scope="module")
def whole(streams, tmp_path_factory):
    """{record: what a run with all tokens stored of it}"""
    output = str(tmp_path_factory.mktemp("all") / "run")
    extract_here(streams, output, *SETTINGS)
    return {record.id: record for record in ActivationReader(output).records()}


def records_of(streams, output, *flags):
    """The same of a run with these flags, which is proven."""
    extract_here(streams, output, *SETTINGS, *flags)
    audit = audit_run(output, deep=True)
    assert (audit.verdict, audit.problems) == ("proven", [])
    return {record.id: record for record in ActivationReader(output).records() if len(record.tokens)}


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_those_of_a_run_with_all_tokens(streams, whole, tmp_path, rule):
    found = records_of(streams, str(tmp_path / "run"), "--positions", rule)
    assert found.keys() == whole.keys()
    for name, record in whole.items():
        length = len(record.tokens)
        places = Selection.parse(rule).named(0, length, length)
        for ours, theirs in (
            (found[name].tokens, record.tokens),
            (found[name].positions, record.positions),
            (found[name].activations[HOOK], record.activations[HOOK]),
        ):
            np.testing.assert_array_equal(ours, theirs[places])


def test_special_tokens_are_not_stored_and_all_others_are(streams, whole, tmp_path):
    special = RecordTokenizer(MODEL, "always").special_ids
    found = records_of(streams, str(tmp_path / "run"), "--drop-special")
    for name, record in whole.items():
        kept = ~np.isin(record.tokens, special)
        assert not kept[0] and kept[1:].all()
        np.testing.assert_array_equal(found[name].activations[HOOK], record.activations[HOOK][kept])
        np.testing.assert_array_equal(found[name].positions, record.positions[kept])


@pytest.mark.parametrize("flags", [(), ("--drop-special",)])
def test_means_are_over_the_tokens_of_each_window(streams, whole, tmp_path, flags):
    found = records_of(streams, str(tmp_path / "run"), "--positions", "mean", *flags)
    for name, record in whole.items():
        values = record.activations[HOOK].astype(np.float64)
        counted = np.ones(len(values), bool) if not flags else np.arange(len(values)) > 0
        windows = [range(first, min(first + SEQ_LEN, len(values))) for first in range(0, len(values), SEQ_LEN)]
        means = np.array([values[window][counted[window]].mean(0) for window in windows])
        np.testing.assert_allclose(found[name].activations[HOOK], means, rtol=1e-5, atol=1e-6)
        assert found[name].mean_over.tolist() == [int(counted[window].sum()) for window in windows]
        assert found[name].tokens.tolist() == [record.tokens[window[-1]] for window in windows]
        assert found[name].positions.tolist() == [window[-1] for window in windows]
        np.testing.assert_allclose(found[name].mean(HOOK), values[counted].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["last", "mean"])
def test_killed_and_resumed_it_ends_with_the_same_bytes(streams, tmp_path, rule):
    """One kill where a batch of which nothing is stored is about to be committed, if there is one."""
    flags = ("--positions", rule)
    extract_here(streams, str(tmp_path / "calm"), *flags)
    expected = committed(open_storage(str(tmp_path / "calm")))
    empty = [number for number, commit in enumerate(expected) if commit[-1] is None]
    assert bool(empty) == (rule == "last")
    output = str(tmp_path / "run")
    for point in (f"before-commit:{(empty or [1])[0]}", "after-data:3" if 3 not in empty else "after-commit:3"):
        assert extract(streams, output, 0, *flags, EXTRACT_KILL_AT=point).returncode == -signal.SIGKILL
    last = extract(streams, output, 0, *flags)
    assert last.returncode == 0, last.stderr
    assert committed(open_storage(output)) == expected
    assert audit_run(output, deep=True).verdict == "proven"


# ---------------------------------------------------------------------------------------------- spans

TASKS = {
    name: {
        "train": [{"input": [[1, 2]] * n, "output": [[n] * 9] * n}],
        "test": [{"input": [[n, 3]] * 2, "output": [[5, n]] * n}],
    }
    for name, n in (("a", 1), ("b", 2), ("c", 6))
} | {"0": {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[4, 4]]}]}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompts with their answers; what the first one's is nobody knows, but the manifest says that there are some."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    options = arc_agi.ArcOptions(with_answer=True)
    arc_agi.create(open_storage(str(folder / "streams")), str(folder / "tasks.json"), 1, options)
    return str(folder / "streams")


@pytest.mark.parametrize(
    "span, expected",
    [
        (
            "answer",
            {"a": "1x2\n1 51", "b": "2x2\n1 52\n2 52", "c": "6x2\n" + "\n".join(f"{n} 56" for n in range(1, 7))},
        ),
        ("test-input", {"a": "2x2\n1 13\n2 13", "b": "2x2\n1 23\n2 23", "c": "2x2\n1 63\n2 63", "0": "1x2\n1 44"}),
    ],
)
def test_the_tokens_of_a_span_are_its_text(prompts, tmp_path, span, expected):
    """Each character of these is a token of the tiny model."""
    from transformers import AutoTokenizer

    whole = records_of(prompts, str(tmp_path / "all"))
    found = records_of(prompts, str(tmp_path / "run"), "--positions", span)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert {name[0]: tokenizer.decode(record.tokens) for name, record in found.items()} == expected
    for name, record in found.items():
        rows = {row.tobytes() for row in whole[name].activations[HOOK]}
        assert all(row.tobytes() in rows for row in record.activations[HOOK])


def test_streams_that_do_not_say_where_the_answer_is_are_refused_before_anything_is_made(streams, prompts, tmp_path):
    with pytest.raises(InvalidRequest, match="--positions answer: .*records of .* have no span of this name"):
        extract_here(streams, str(tmp_path / "run"), "--positions", "answer")
    result = extract(streams, str(tmp_path / "run"), 0, "--positions", "every:0")
    assert (result.returncode, "--positions every:0: give all" in result.stderr) == (2, True)
    assert not (tmp_path / "run/run.json").exists()
