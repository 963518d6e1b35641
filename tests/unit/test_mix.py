"""Mixtures: shares of records in streams, and shares of rows of several runs."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from create_dataset_streams import cli
from extraction.core.errors import InvalidRequest
from extraction.read.mixed_runs import MixedReader
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffleOptions
from extraction.storage import open_storage
from extraction.streams.build.check import check_streams
from extraction.streams.build.materialize import TOKEN_COLUMNS, Row, Spool, Stored, publish_rows, publish_spool
from extraction.streams.build.publish import Origin
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.runs import WIDTHS, expected, make_run

HOOK = next(iter(WIDTHS))


def folder(path, count, num_streams=2, meta=None):
    rows = (Row(f"{n}", f"{path.name} {n}", meta) for n in range(count))
    publish_rows(open_storage(str(path)), Origin("text", "here"), rows, num_streams)
    return path


def mix(tmp_path, *parts, **flags):
    words = [f"{path}={weight}" for path, weight in parts]
    more = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return CliRunner().invoke(cli, ["mix", *words, "--num-streams", "3", "--output", str(tmp_path / "mixed"), *more])


def records(path):
    manifest = load_manifest(str(path))
    return [r for n in range(manifest.num_streams) for r in open_stream(manifest, str(path), n).read_records()]


@pytest.mark.parametrize("weights, sizes", [((0.7, 0.3), (70, 30)), ((0.5, 0.5), (40, 40)), ((0.9, 0.1), (81, 9))])
def test_every_beginning_has_the_shares(tmp_path, weights, sizes):
    a, b = folder(tmp_path / "a", 82, meta='{"label": 1}'), folder(tmp_path / "b", 40)
    result = mix(tmp_path, (a, weights[0]), (b, weights[1]), max_records=sum(sizes))
    assert result.exit_code == 0, result.output
    found = records(tmp_path / "mixed")
    sources = [json.loads(record.meta)["source"] for record in found]
    assert (sources.count("a"), sources.count("b")) == sizes
    for number in range(len(sources)):
        assert abs(sources[: number + 1].count("a") - weights[0] * (number + 1)) <= 1
    assert [r.id for r in found if r.id.startswith("a/")] == [f"a/{n}" for n in range(sizes[0])]
    assert {r.text for r in found} == {f"a {n}" for n in range(sizes[0])} | {f"b {n}" for n in range(sizes[1])}
    assert json.loads(found[0].meta) == {"label": 1, "source": "a"}
    assert not check_streams(str(tmp_path / "mixed")).problems
    assert "nothing to do" in mix(tmp_path, (a, weights[0]), (b, weights[1]), max_records=sum(sizes)).output


def test_the_largest_mixture_takes_all_of_the_scarcest(tmp_path):
    a, b = folder(tmp_path / "a", 100), folder(tmp_path / "b", 12)
    assert mix(tmp_path, (a, 0.8), (b, 0.2)).exit_code == 0
    assert len(records(tmp_path / "mixed")) == 48 + 12


@pytest.mark.parametrize(
    "weights, said",
    [
        ((0.7, 0.4), "the weights 0.7 + 0.4 sum to 1.1: they must be above 0 and sum to 1"),
        ((1.5, -0.5), "must be above 0"),
        (("x", 1), "give two or more folders of streams with weights"),
        ((0.999, 0.001), "a share of 0.001 is less than one record"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(tmp_path, weights, said):
    a, b = folder(tmp_path / "a", 10), folder(tmp_path / "b", 10)
    result = mix(tmp_path, (a, weights[0]), (b, weights[1]))
    assert result.exit_code == 2 and said in result.output and not (tmp_path / "mixed").exists()


def test_one_folder_two_of_one_name_and_two_forms_are_refused(tmp_path):
    a = folder(tmp_path / "a", 10)
    assert "give two or more" in mix(tmp_path, (a, 1)).output
    assert "the same name" in mix(tmp_path, (a, 0.5), (folder(tmp_path / "x/a", 10), 0.5)).output
    with Spool([Row("0", "", None, np.array([1], np.int32))], Stored(TOKEN_COLUMNS)) as spool:
        publish_spool(
            open_storage(str(tmp_path / "t")), Origin("tokens", "", options={"tokens_column": "tokens"}), spool, 1
        )
    assert "cannot be mixed" in mix(tmp_path, (a, 0.5), (tmp_path / "t", 0.5)).output


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    found = []
    for lengths in ([[9] * 40], [[7] * 20]):
        output = str(tmp_path_factory.mktemp("run"))
        make_run(open_storage(output), lengths)
        found.append(ActivationReader(output))
    return found


def test_several_runs_are_read_as_one_with_weights(readers):
    options = ShuffleOptions(batch_size=20, buffer=100, seed=3)
    mixed = MixedReader(readers, [0.75, 0.25], HOOK, options)
    seen, epochs = [], []
    for _ in range(2):
        epoch = list(mixed)
        assert len(epoch) == len(mixed) == 360 // 15
        for batch in epoch:
            assert np.bincount(batch.run).tolist() == [15, 5]
            assert np.array_equal(batch.activations.astype(np.float32), expected(batch.tokens, HOOK))
        rows = [
            (r, *map(int, record), int(p))
            for b in epoch
            for r, record, p in zip(b.run, b.record, b.positions, strict=True)
        ]
        assert len(set(rows)) == len(rows) == 480
        seen.append(sorted(row for row in rows if row[0] == 0))
        epochs.append(rows)
    assert seen[0] == seen[1] and epochs[0] != epochs[1]
    assert len(set(map(int, epoch[0].run[:5]))) == 2  # the rows of the runs are not one after the other


def test_a_mixture_goes_on_from_its_state(readers):
    options = ShuffleOptions(batch_size=8, buffer=40)
    whole = [batch.tokens.tolist() for batch in MixedReader(readers, [0.5, 0.5], HOOK, options)]
    for stop in (1, 5, len(whole)):
        mixed = MixedReader(readers, [0.5, 0.5], HOOK, options)
        first = []
        for batch in mixed:
            first.append(batch.tokens.tolist())
            if len(first) == stop:
                state = json.loads(json.dumps(mixed.state()))
                break
        again = MixedReader(readers, [0.5, 0.5], HOOK, options)
        again.restore(state)
        rest = [batch.tokens.tolist() for batch in again]
        assert first + rest == whole


def test_weights_of_runs_that_make_no_batch_are_refused(readers):
    options = ShuffleOptions(batch_size=8, buffer=40)
    for weights in ([0.5, 0.6], [1.0], [1.5, -0.5]):
        with pytest.raises(InvalidRequest, match="must be above 0 and sum to 1"):
            MixedReader(readers, weights, HOOK, options)
    with pytest.raises(InvalidRequest, match="has no row of at least one run"):
        MixedReader(readers, [0.99, 0.01], HOOK, options)
    with pytest.raises(InvalidRequest, match="the state belongs to 1 runs"):
        MixedReader(readers, [0.5, 0.5], HOOK, options).restore([{}])


def test_a_source_that_records_had_is_kept(tmp_path):
    a, b = folder(tmp_path / "a", 4, meta='{"source": "wiki"}'), folder(tmp_path / "b", 4, meta='{"inner_source": 1}')
    assert mix(tmp_path, (a, 0.5), (b, 0.5)).exit_code == 0
    metas = [json.loads(record.meta) for record in records(tmp_path / "mixed")]
    assert {"source": "a", "inner_source": "wiki"} in metas and {"source": "b", "inner_inner_source": 1} in metas


@pytest.mark.parametrize("other", ["sha256:1", "sha256:2", None])
def test_conversations_of_one_template_stay_so(tmp_path, other):
    parts = []
    for name, digest in (("a", "sha256:1"), ("b", other)):
        origin = Origin("chat", "here", options={"chat_template_digest": digest} if digest else {})
        publish_rows(open_storage(str(tmp_path / name)), origin, (Row(str(n), "x") for n in range(4)), 1)
        parts.append((tmp_path / name, 0.5))
    result = mix(tmp_path, *parts)
    if other == "sha256:2":
        assert result.exit_code == 2 and "more than one chat_template" in result.output
    else:
        assert load_manifest(str(tmp_path / "mixed")).options["chat_template_digest"] == "sha256:1"
