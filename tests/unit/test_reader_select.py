"""A part of a run's rows: each way of reading has the same, and what it has is what the conditions say."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import extract_activations
from extraction.core.errors import InvalidRequest
from extraction.read import datasets as hf
from extraction.read.reader import ActivationReader
from extraction.read.select import Select
from extraction.read.shuffle import ShuffledReader, ShuffleOptions
from extraction.storage import open_storage
from tests.helpers.runs import STREAMS, WIDTHS, expected, make_run, meta_of, tokens_of

HOOK = next(iter(WIDTHS))
SELECTIONS = [
    Select(),
    Select(streams=(1,)),
    Select(where="answer == 'A'"),
    Select(where="answer is None", positions="1:"),
    Select(streams=(0, 2), where="answer in ('B', 'C')", positions="::3"),
    Select(positions="0,7"),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    make_run(open_storage(folder), STREAMS)
    return folder


def wanted(select):
    """(stream, record, position, token) of every row, from how the run was made."""
    rows = []
    for stream, lengths in enumerate(STREAMS):
        for index, length in enumerate(lengths):
            answer = (meta_of(index) or {}).get("answer")
            keeps = {None: True, "answer == 'A'": answer == "A", "answer is None": answer is None}.get(
                select.where, answer in ("B", "C")
            )
            if not keeps or (select.streams and stream not in select.streams):
                continue
            places = {"all": range(length), "1:": range(length)[1:], "::3": range(length)[::3]}.get(
                select.positions, [place for place in (0, 7) if place < length]
            )
            rows += [(stream, index, place, int(tokens_of(stream, index, length)[place])) for place in places]
    return rows


def quads(record, position, tokens):
    return [(*map(int, r), int(p), int(t)) for r, p, t in zip(record, position, tokens, strict=True)]


def shuffled_ways(output, select):
    """The test is skipped at the second one if there is no torch."""
    options = ShuffleOptions(batch_size=5, buffer=20)
    yield ShuffledReader(ActivationReader(output, select), HOOK, options)
    yield pytest.importorskip("extraction.read.torch").TorchActivations(output, HOOK, options, select)


@pytest.mark.slow
@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_every_way_of_reading_has_the_rows_of_the_selection(output, select):
    rows, reader = wanted(select), ActivationReader(output, select)
    assert len(rows) == reader.num_rows() > 0
    read = [quads(part.record, part.positions, part.tokens) for part in reader.rows(HOOK)]
    assert [row for part in read for row in part] == rows
    for part in reader.rows(HOOK):
        assert np.array_equal(part.activations.astype(np.float32), expected(part.tokens, HOOK))
    joined = [quads([(r.stream, r.index)] * len(r.tokens), r.positions, r.tokens) for r in reader.records([HOOK])]
    assert [row for part in joined for row in part] == rows
    streamed = hf.iterable_dataset(output, [HOOK], select)
    assert [(r["stream"], r["record"], r["position"], r["token"]) for r in streamed] == rows
    for batches in shuffled_ways(output, select):
        found = []
        for batch in batches:
            record, position, tokens, values = (
                (batch["record"], batch["positions"], batch["tokens"], batch["activations"].float().numpy())
                if isinstance(batch, dict)
                else (batch.record, batch.positions, batch.tokens, batch.activations.astype(np.float32))
            )
            found += quads(record, position, tokens)
            assert np.array_equal(values, expected(np.asarray(tokens), HOOK))
        assert found != rows and sorted(found) == sorted(rows)


def test_ranks_share_a_selection(output):
    select, found = SELECTIONS[3], []
    for rank in range(3):
        options = ShuffleOptions(batch_size=4, buffer=8, rank=rank, world_size=3)
        for batch in ShuffledReader(ActivationReader(output, select), HOOK, options):
            found += quads(batch.record, batch.positions, batch.tokens)
    assert sorted(found) == sorted(wanted(select))


def test_a_state_of_another_selection_is_refused(output):
    options = ShuffleOptions(batch_size=4, buffer=8)
    one, other = (ShuffledReader(ActivationReader(output, select), HOOK, options) for select in SELECTIONS[3:5])
    with pytest.raises(InvalidRequest, match="make the reader with the same"):
        other.restore(one.state())


def test_a_state_of_the_same_selection_is_taken_after_json(output):
    options = ShuffleOptions(batch_size=4, buffer=8)
    one, other = (ShuffledReader(ActivationReader(output, SELECTIONS[4]), HOOK, options) for _ in (0, 1))
    next(iter(one))
    other.restore(json.loads(json.dumps(one.state())))
    assert other.position == one.position > 0


def test_exports_have_it(output, tmp_path):
    arguments = ["export", output, "--to", "npy", "--folder", str(tmp_path / "out"), "--where", "answer in ('B', 'C')",
                 "--positions", "::3", "--only-stream", "0", "--only-stream", "2"]  # fmt: skip
    result = CliRunner().invoke(extract_activations.cli, arguments)
    assert result.exit_code == 0, result.output
    arrays = [np.load(tmp_path / f"out/{name}.npy") for name in ("record", "positions", "tokens")]
    assert quads(*arrays) == wanted(SELECTIONS[4])


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"positions": "-1"}, InvalidRequest, "count from a record's beginning"),
        ({"positions": "1:-1"}, InvalidRequest, "count from a record's beginning"),
        ({"positions": "assistant"}, InvalidRequest, "count from a record's beginning"),
        ({"where": "answer"}, InvalidRequest, "not a comparison"),
        ({"streams": (9,)}, InvalidRequest, "has no stream 9"),
        ({"where": "answer == 'Z'"}, InvalidRequest, "holds no rows of this selection"),
        ({"where": "answer > 1"}, InvalidRequest, "cannot be applied"),
    ],
)
def test_a_selection_that_is_none_is_refused(output, settings, error, said):
    with pytest.raises(error, match=said):
        ShuffledReader(ActivationReader(output, Select(**settings)), HOOK, ShuffleOptions(batch_size=4, buffer=8))


def test_statistics_are_of_all_rows(output):
    assert ActivationReader(output, Select(streams=(1,))).statistics()[HOOK].count == sum(STREAMS[1])
    with pytest.raises(InvalidRequest, match="statistics cover all rows"):
        ActivationReader(output, Select(positions="1:")).statistics()


def test_a_stream_that_is_named_twice_is_read_once(output):
    twice, once = (ActivationReader(output, Select(streams=streams)) for streams in ((1, 1), (1,)))
    assert twice.num_rows() == once.num_rows() == sum(map(len, (part.tokens for part in twice.rows(HOOK))))


def test_a_key_that_a_meta_lacks_is_null_at_any_depth(output):
    assert not ActivationReader(output, Select(where="spans.system is not None")).num_rows()
    everything = ActivationReader(output, Select(where="spans.letter.case is None or answer is not None"))
    with pytest.raises(InvalidRequest, match="answer is str, compared with 1"):
        ActivationReader(output, Select(where="answer == 1")).num_rows()
    assert everything.num_rows() == ActivationReader(output).num_rows()
