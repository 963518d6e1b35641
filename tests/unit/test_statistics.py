"""What a run says of its values: errors, norms, maxima; on real text, through real workers, killed and merged.

The text is this project's own documentation, the model examples/tiny-lm.
"""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from ddsketch import DDSketch, LogarithmicMapping

import checkpoint
from extraction.audit.verify import audit_run
from extraction.core.errors import DamagedData
from extraction.format.commit import parse_commit
from extraction.format.safetensors import decode
from extraction.format.statistics import NORM_BINS, norm_counts, norm_sketch
from extraction.read.reader import ActivationReader
from extraction.read.statistics import Tally
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.shared import built_once
from tests.helpers.workers import ROOT, committed, extract, extract_here, make_streams, write_corpus

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
SCALED = ("int8", "float8_e4m3fn")
SHAPE = ("--seq-len", "128", "--batch-size", "4", "--steps-per-batch", "2")
# Relative errors of a hook point: what was measured (docs/hook-points.md), and a little.
MOST_ERROR = {"int8": {"mlp.hook_post": 0.03, "": 0.01}, "float8_e4m3fn": {"": 0.028}}


def real_text() -> list[str]:
    """Paragraphs of the README and the pages on operation."""
    pages = [ROOT / "README.md", ROOT / "docs/operations.md", ROOT / "docs/dependencies.md"]
    return [part for page in pages for part in page.read_text().split("\n\n") if len(part) > 100][:40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Streams, and for each store dtype a run of two workers over real text, at every kind of hook point."""

    def build(folder):
        streams = make_streams(write_corpus(folder / "corpus", real_text()), folder / "streams", 2)
        points = ("--hook-points", "hook_embed,blocks.1.*,ln_final.*")
        for dtype in ("float32", "bfloat16", *SCALED):
            for worker in (0, 1):
                flags = (*points, *SHAPE, "--store-dtype", dtype, "--worker-id", worker)
                extract_here(streams, folder / dtype, *flags)

    return built_once(tmp_path_factory, "statistics", build)


@pytest.fixture(scope="module")
def streams(folder):
    return folder / "streams"


@pytest.fixture(scope="module")
def outputs(folder):
    return {dtype: str(folder / dtype) for dtype in ("float32", "bfloat16", *SCALED)}


def rows_of(output: str, name: str) -> np.ndarray:
    return np.concatenate([rows.activations for rows in ActivationReader(output).rows(name)]).astype(np.float64)


# ------------------------------------------------------------------------------------------ norms


def test_bins_are_those_of_the_library():
    """At both sides of every edge, as near as float32 comes."""
    mapping = LogarithmicMapping(0.01)
    edges = np.array([mapping.gamma**key for key in range(-1024, 1023)], np.float32)
    norms = np.unique(np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, np.inf)]))
    for norm in norms:
        (number,) = np.flatnonzero(norm_counts(np.array([norm], np.float32)))
        assert number == min(max(mapping.key(float(norm)) + 1024, 0), NORM_BINS - 1), norm


def test_norms_that_no_bin_is_for_are_in_the_outermost_or_nowhere():
    counts = norm_counts(np.array([0, 1e-30, np.inf, 3e38, np.nan], np.float32))
    assert (counts[0], counts[-1], counts.sum()) == (2, 2, 4)


@pytest.mark.parametrize("parts", [1, 7])
def test_quantiles_are_within_a_percent_however_rows_were_shared_out(parts):
    norms = np.exp(np.random.default_rng(0).standard_normal(20_000) * 3).astype(np.float32)
    counts = sum(norm_counts(part) for part in np.array_split(norms, parts))
    sketch = norm_sketch(counts)
    for quantile in QUANTILES:
        exact = np.quantile(norms, quantile, method="lower")
        assert sketch.get_quantile_value(quantile) == pytest.approx(exact, rel=0.0101)


def test_merged_counts_make_the_sketch_that_saw_all():
    norms = np.random.default_rng(0).gamma(2.0, size=2_000).astype(np.float32)
    seen = DDSketch(0.01)
    for norm in norms:
        seen.add(float(norm))
    merged = norm_sketch(norm_counts(norms[:300]) + norm_counts(norms[300:]))
    assert merged.count == seen.count
    for quantile in np.linspace(0, 1, 201):
        assert merged.get_quantile_value(quantile) == seen.get_quantile_value(quantile)


# ------------------------------------------------------------------------------------------ real runs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *SCALED])
def test_a_run_of_any_dtype_is_proven(outputs, dtype):
    audit = audit_run(outputs[dtype], deep=True)
    assert audit.problems == [] and audit.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", *SCALED])
def test_statistics_are_those_of_all_rows_of_all_workers(outputs, dtype):
    reader = ActivationReader(outputs[dtype])
    sizes = [ref.num_rows for ref in reader.all_refs()]
    assert len(sizes) > 4 and len(set(sizes)) > 1
    for name, found in reader.statistics().items():
        values = rows_of(outputs[dtype], name)
        norms = np.linalg.norm(values, axis=1)
        assert found.count == len(values)
        np.testing.assert_allclose(found.mean, values.mean(axis=0), atol=1e-5 * norms.max())
        np.testing.assert_allclose(found.variance, values.var(axis=0), rtol=1e-4)
        np.testing.assert_allclose(found.std, values.std(axis=0), rtol=1e-4)
        assert found.norm == pytest.approx(np.sqrt((norms**2).mean()), rel=1e-5)
        for quantile in QUANTILES:
            exact = np.quantile(norms, quantile, method="lower")
            assert found.norms.get_quantile_value(quantile) == pytest.approx(exact, rel=0.0101)


@pytest.mark.slow
def test_the_variance_is_no_mean_of_variances(outputs):
    """Which would be lower, since it knows nothing of how the means of batches differ."""
    reader = ActivationReader(outputs["bfloat16"])
    (name,) = [name for name in reader.hook_points if name.startswith("ln_final")]
    batches = [batch.activations[name].astype(np.float64) for batch in reader.batches([name])]
    of_batches = np.average([rows.var(axis=0) for rows in batches], axis=0, weights=[len(rows) for rows in batches])
    assert (reader.statistics([name])[name].variance > of_batches * 1.001).any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_maximum_is_where_it_is_said_to_be(outputs, dtype):
    reader = ActivationReader(outputs[dtype])
    for name, found in reader.statistics().items():
        values, largest = rows_of(outputs[dtype], name), found.largest
        assert abs(largest.value) == np.abs(values).max()
        row = int(np.abs(values).max(axis=1).argmax())
        assert largest.coordinate == np.abs(values[row]).argmax() and values[row, largest.coordinate] == largest.value
    record = reader.record(largest.record_id, [name])
    assert (record.stream, record.index) == (largest.stream, largest.record)
    (at,) = np.flatnonzero(np.abs(record.activations[name]).max(axis=1) == abs(largest.value))[:1]
    assert (record.positions[at], record.tokens[at]) == (largest.position, largest.token)
    assert record.activations[name][at, largest.coordinate] == largest.value


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SCALED)
def test_each_value_is_within_half_a_step_of_the_computed_one(outputs, dtype):
    for name in ActivationReader(outputs[dtype]).hook_points:
        computed, found = rows_of(outputs["float32"], name), rows_of(outputs[dtype], name)
        most = np.abs(computed).max(axis=1, keepdims=True)
        bound = most * 0.5 / 127 if dtype == "int8" else np.maximum(np.abs(computed) / 16, most / 448 * 2.0**-10)
        assert (np.abs(found - computed) <= bound * 1.001 + 1e-6 * most).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SCALED)
def test_a_commit_tells_the_reconstruction_error_of_each_hook_point(outputs, dtype):
    storage = open_storage(outputs[dtype])
    names = checkpoint.list_commits(storage, 0)
    commits = [parse_commit(storage.read(name), name) for name in names]
    reader, exact = ActivationReader(outputs[dtype]), ActivationReader(outputs["float32"])
    batches = zip(commits, reader.batches(streams=[0]), exact.batches(streams=[0]), strict=True)
    for commit, found, computed in batches:
        assert commit.reconstruction_error.keys() == set(reader.hook_points)
        for name, said in commit.reconstruction_error.items():
            x = computed.activations[name].astype(np.float64)
            lost = np.linalg.norm(found.activations[name] - x) / np.linalg.norm(x)
            assert said == pytest.approx(lost, rel=2e-3)
            assert 0 < said < next(most for end, most in MOST_ERROR[dtype].items() if name.endswith(end))


@pytest.mark.slow
def test_commits_without_scales_tell_no_error(outputs):
    storage = open_storage(outputs["bfloat16"])
    assert json.loads(storage.read(checkpoint.commit_name(0, 0)))["reconstruction_error"] == {}


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(streams, tmp_path):
    flags = ("--store-dtype", "int8")
    extract_here(streams, tmp_path / "whole", *flags)
    for point in ("after-data:3", "after-commit:5"):
        assert extract(streams, tmp_path / "cut", 0, *flags, EXTRACT_KILL_AT=point).returncode == -signal.SIGKILL
    extract_here(streams, tmp_path / "cut", *flags)
    whole, cut = (open_storage(str(tmp_path / name)) for name in ("whole", "cut"))
    assert committed(cut) == committed(whole)
    for name in checkpoint.list_commits(whole, 0):
        errors = [json.loads(storage.read(name))["reconstruction_error"] for storage in (whole, cut)]
        assert errors[0] == errors[1] != {}


# ------------------------------------------------------------------------------------------ objects that are not so


@pytest.fixture
def small(tmp_path) -> Path:
    runs.make_run(open_storage(str(tmp_path)), ([5, 3, 20], [16, 9]))
    return tmp_path


@pytest.mark.parametrize("place", [(-1, 0), (99, 0), (0, 99), (0, -1)])
def test_a_maximum_where_no_row_is_is_damage(small, place):
    name = next(iter(runs.WIDTHS))
    path = sorted(small.glob("worker-*/batches/*"))[0]
    data = bytearray(path.read_bytes())
    arrays = decode(data).arrays
    arrays[f"{name}.max"][:], arrays[f"{name}.max_at"][:] = math.inf, place
    path.write_bytes(data)
    with pytest.raises(DamagedData, match=r"max_at is \[.*outside its rows"):
        ActivationReader(str(small)).statistics()


def test_a_sum_that_is_infinite_makes_a_nan_and_no_warning(small):
    """Warnings are errors here."""
    name = next(iter(runs.WIDTHS))
    path = sorted(small.glob("worker-*/batches/*"))[0]
    data = bytearray(path.read_bytes())
    arrays = decode(data).arrays
    arrays[f"{name}.sum"][1] = arrays[f"{name}.sum_of_squares"][1] = math.inf
    path.write_bytes(data)
    found = ActivationReader(str(small)).statistics()[name]
    assert np.isnan(found.std).tolist() == [False, True, False, False]
    assert (found.mean[1], found.norm) == (math.inf, math.inf)


def test_of_several_maxima_the_first_is_named(small):
    name, reader = next(iter(runs.WIDTHS)), ActivationReader(str(small))
    tally, twice = Tally(name), Tally(name)
    for stored in reader.headers([name]):
        tally.add(stored)
        twice.add(stored)
    for stored in reader.headers([name]):
        twice.add(stored)
    assert twice.result().largest == tally.result().largest
    assert twice.result().count == 2 * tally.result().count
