"""Means over windows on the device: of the tokens that count, of nothing else, the same to rounding on every mesh."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.format.records import Cursor, TokenizedRecord
from extraction.models.pooling import window_means
from extraction.models.step_options import StepOptions
from extraction.worker.loop import BatchLayout, run_pipeline
from tests.helpers.tiny_models import documents, error, load, run_means

pytestmark = pytest.mark.slow

SEQ_LEN = 150
HOOKS = ("blocks.0.attn.hook_z", "blocks.1.mlp.hook_post", "blocks.2.hook_resid_post", "ln_final.hook_normalized")
DROPPED = tuple(range(0, 97, 3))


@st.composite
def rows(draw):
    """segment_ids and what counts, [2, T], and values [2, T, 3] of widely different sizes."""
    length = draw(st.sampled_from([1, 2, 7, 64, 70]))  # each is compiled
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    starts = rng.random((2, length)) < draw(st.sampled_from([0.02, 0.2, 0.9]))
    pooled = rng.random((2, length)) < draw(st.sampled_from([0.1, 0.7, 1.0]))
    values = rng.standard_normal((2, length, 3)) * 10.0 ** rng.integers(-3, 4, (2, length, 1))
    return np.cumsum(starts, axis=1).astype(np.int32), pooled, values.astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(rows())
def test_a_windows_mean_stands_at_its_last_token(given_rows):
    segment_ids, pooled, values = given_rows
    means = np.asarray(jax.jit(window_means)(values, segment_ids, pooled))
    for row, segments in enumerate(segment_ids):
        for segment in set(segments.tolist()):
            inside = np.flatnonzero(segments == segment)
            counted = values[row, inside[pooled[row, inside]]].astype(np.float64)
            expected = counted.mean(0) if len(counted) else np.zeros(3)
            scale = np.abs(counted).sum(0) / max(len(counted), 1)
            assert (np.abs(means[row, inside[-1]] - expected) <= 1e-6 * scale).all()


def test_what_is_not_finite_stays_in_its_window_and_counts_only_where_it_is_asked_for():
    values = np.ones((1, 9, 1), np.float32)
    values[0, [1, 4], 0] = np.nan, np.inf
    segment_ids = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 3]], np.int32)
    pooled = np.array([[1, 1, 1, 1, 0, 1, 1, 1, 1]], bool)
    assert np.array_equal(np.asarray(window_means(values, segment_ids, pooled))[0, [2, 5, 8], 0], [np.nan, 1, 1], True)


def expected_of(reference, docs):
    """Means by hand from the values of all tokens."""
    values = np.split(reference.astype(np.float64), np.cumsum([len(tokens) for tokens in docs])[:-1])
    kept = [~np.isin(tokens, DROPPED) for tokens in docs]
    return np.stack([part[keep].mean(0) for part, keep in zip(values, kept, strict=True) if keep.any()])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stored_means_are_those_of_the_reference(models, name):
    model, docs = models(name), documents()
    found = run_means(load(model.folder, HOOKS, pool=True), docs, DROPPED)
    counts = [int((~np.isin(tokens, DROPPED)).sum()) for tokens in docs]
    assert found["mean_over"].tolist() == [count for count in counts if count]
    for hook in HOOKS:
        assert error(found[hook], expected_of(model.reference[hook], docs)) < 1e-5, hook


@pytest.mark.parametrize("rule, steps", [("mean", 2), ("last", 2), ("120", 1), ("200", 0)])
def test_a_step_is_as_full_as_its_tokens_make_it_and_not_run_for_nothing(models, rule, steps):
    step = load(models("llama").folder, HOOKS[2:3], pool=rule == "mean")
    records = [TokenizedRecord(i, str(i), tokens) for i, tokens in enumerate(documents((150, 100, 90, 80)))]
    batches = pack_batches(records, Cursor(0, 0), BatchShape(2, 2, SEQ_LEN), "split", Selector(Selection.parse(rule)))
    layout = BatchLayout(0, step.widths, np.dtype(np.float32))
    times = run_pipeline(batches, layout, step, 0, lambda *what: None)
    assert (times.num_slots, times.num_tokens) == (steps * 2 * SEQ_LEN, [0, 250, 420][steps])


def test_values_are_pooled_in_the_dtype_of_the_model_and_cast_once(models):
    """In bfloat16 a mean of 150 stored values would be off by the rounding of each."""
    options = StepOptions(HOOKS, 2, SEQ_LEN, "float32", "bfloat16", pool=True)
    assert options.capture_dtype == "float32"
    step = load(models("llama").folder, HOOKS, rows=2, pool=True, store_dtype="bfloat16")
    exact = load(models("llama").folder, HOOKS, rows=2, pool=True)
    record, selector = TokenizedRecord(0, "0", documents()[4]), Selector(Selection.parse("mean"))
    (batch,) = pack_batches([record], Cursor(0, 0), BatchShape(1, 2, SEQ_LEN), "split", selector)
    arrays = (batch.tokens[0], batch.segment_ids[0], batch.positions[0], batch.slots.astype(np.int32), batch.pooled[0])
    rounded, values = step(*arrays).get()[0], exact(*arrays).get()[0]
    for hook in HOOKS:
        assert rounded[hook].dtype == "bfloat16"
        assert np.array_equal(rounded[hook], values[hook].astype(rounded[hook].dtype))
