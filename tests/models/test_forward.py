"""The compiled step: what it captures, that a document's values are its own, what it costs in layers and programs."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from extraction.core.errors import InvalidRequest
from extraction.models import step as step_module
from extraction.models.capture_plan import CapturePlan
from extraction.models.compaction import Compaction
from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder
from extraction.models.step import lower_step
from extraction.models.step_options import StepOptions
from tests.helpers.tiny_models import LENGTHS, documents, error, load, run

pytestmark = pytest.mark.slow

TWO = ("blocks.0.attn.hook_z", "blocks.2.hook_resid_post")
B, T = 2, 150


@pytest.fixture(scope="module")
def two(models):
    """A step that captures TWO."""
    return load(models("llama").folder, TWO)


def packed_by_hand():
    """Three documents in two rows with padding between and after: tokens, segment_ids, positions."""
    tokens, segment_ids, positions = np.zeros((3, B, T), np.int32)
    for row, start, segment, document in ((0, 0, 1, 0), (0, 10, 2, 1), (1, 0, 1, 3)):
        place = slice(start, start + LENGTHS[document])
        tokens[row, place] = documents()[document]
        segment_ids[row, place] = segment
        positions[row, place] = np.arange(LENGTHS[document])
    return tokens, segment_ids, positions


@pytest.mark.parametrize("rows, seq_len", [(1, 150), (7, 150), (3, 256)])
def test_batch_size_and_padding_do_not_matter(models, rows, seq_len):
    model = models("llama")
    ours, _ = run(load(model.folder, TWO, rows, seq_len), documents(), rows, seq_len)
    for hook in TWO:
        assert error(ours[hook], model.reference[hook]) < 1e-5


def test_a_document_by_itself_is_the_document_among_others(two):
    together, _ = run(two, documents())
    alone = [run(two, [tokens])[0] for tokens in documents()]
    for hook in TWO:
        assert error(together[hook], np.concatenate([values[hook] for values in alone])) < 1e-6


def test_neighbours_and_padding_do_not_reach_a_document(two):
    """Not to rounding but to the bit, since what is masked has weight zero."""
    tokens, segment_ids, positions = packed_by_hand()
    slots = np.arange(10, 10 + LENGTHS[1], dtype=np.int32)
    before, _ = two(tokens, segment_ids, positions, slots).get()
    changed = np.where(np.isin(np.arange(tokens.size).reshape(tokens.shape), slots), tokens, 96 - tokens)
    after, _ = two(changed, segment_ids, positions, slots).get()
    assert (changed != tokens).any()
    for hook in TWO:
        np.testing.assert_array_equal(before[hook], after[hook])


def test_values_stand_in_the_order_of_the_slots_and_sums_do_not_mind(two):
    tokens, segment_ids, positions = packed_by_hand()
    slots = np.flatnonzero(segment_ids).astype(np.int32)
    forwards, sums = two(tokens, segment_ids, positions, slots).get()
    backwards, _ = two(tokens, segment_ids, positions, slots[::-1]).get()
    again, same_sums = two(tokens, segment_ids, positions, slots).get()
    for hook in TWO:
        assert forwards[hook].shape == (len(slots), 32) and np.isfinite(forwards[hook]).all()
        np.testing.assert_array_equal(forwards[hook], backwards[hook][::-1])
        np.testing.assert_array_equal(forwards[hook], again[hook])
        np.testing.assert_array_equal(sums[hook].sum, same_sums[hook].sum)


def test_results_on_their_way_to_the_host_are_cut_to_the_real_tokens(two, monkeypatch):
    """As on an accelerator, where what is transferred costs time."""
    tokens, segment_ids, positions = packed_by_hand()
    slots = np.flatnonzero(segment_ids).astype(np.int32)
    whole, _ = two(tokens, segment_ids, positions, slots).get()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    output = two(tokens, segment_ids, positions, slots)
    assert {found.values.shape[2] for found in output._arrays.values()} == {76}  # 62 tokens, in parts of 300 / 16
    for hook, values in output.get()[0].items():
        np.testing.assert_array_equal(values, whole[hook])


@pytest.mark.parametrize(
    "hook",
    [
        "hook_embed",
        "blocks.0.attn.hook_z",
        "blocks.0.mlp.hook_post",
        "ln_final.hook_normalized",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_mlp_out",
    ],
)
def test_a_hook_point_alone_is_the_same_and_nothing_else_is_returned(models, hook):
    model = models("qwen3")
    ours, _ = run(load(model.folder, (hook,)), documents())
    assert list(ours) == [hook]
    assert error(ours[hook], model.reference[hook]) < 1e-5


def test_mixed_layers_of_several_kinds_do_not_overwrite_each_other(models):
    model = models("llama")
    hooks = ("blocks.2.hook_resid_post", "blocks.0.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post")
    ours, _ = run(load(model.folder, hooks), documents())
    assert tuple(ours) == hooks
    for hook in hooks:
        assert error(ours[hook], model.reference[hook]) < 1e-5, hook


@pytest.mark.parametrize("store_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "ln_final.hook_normalized"])
def test_statistics_are_of_the_stored_values_of_real_tokens(models, store_dtype, hook):
    """Not of what was there before the rounding: a compiler may take a cast and the way back for nothing."""
    forward = load(models("llama").folder, (hook,), store_dtype=store_dtype)
    values, steps = run(forward, documents(LENGTHS[:3]))
    stored, found = values[hook], steps[0][hook]
    assert stored.shape == (46, 32) and stored.dtype.name == store_dtype
    assert found.sum.dtype == found.sum_of_squares.dtype == np.float32
    stored = stored.astype(np.float64)
    np.testing.assert_allclose(found.sum, stored.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.sum_of_squares, (stored**2).sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.norms, np.linalg.norm(stored, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(found.largest, np.abs(stored).max(axis=1))


def test_a_long_sum_does_not_drift():
    rows = np.full((1 << 17, 1), 1.1, np.float32)
    total = jax.jit(Compaction("float32", 64, None)._sum)(rows[None])[0]
    np.testing.assert_allclose(total, rows.sum(0, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(
    "hook, layers",
    [
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.2.hook_resid_pre", 2),
        ("blocks.1.hook_resid_mid", 2),
        ("ln_final.hook_normalized", 3),
    ],
)
def test_no_layer_above_the_deepest_hook_point_runs(models, hook, layers):
    assert CapturePlan.of((hook,), read_model_config(models("llama").folder)).num_layers == layers


def test_layers_that_do_not_run_are_not_read(models, tmp_path):
    """The digest covers what was read, so a change in a later layer does not change it and one below does."""
    folder = models("llama").folder
    options = StepOptions(("blocks.1.hook_resid_post",), B, T, "float32")
    digests = []
    for changed in (None, "model.layers.2.mlp.up_proj.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        tensors = load_file(folder / "model.safetensors")
        if changed:
            tensors[changed] = tensors[changed] + 1
        save_file(tensors, tmp_path / "model.safetensors")
        source = ModelFolder(tmp_path, "", None)
        with step_module._opened_weights(source, read_model_config(folder), options) as load_weights:
            digests.append(load_weights().digest)
    assert digests[0] == digests[1] == digests[2] != digests[3]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_bfloat16_compute_stays_near(models, name):
    model, hook = models(name), "blocks.2.hook_resid_post"
    ours, _ = run(load(model.folder, (hook,), compute_dtype="bfloat16"), documents())
    assert 1e-4 < error(ours[hook], model.reference[hook]) < 0.03


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
def test_the_program_does_not_grow_with_depth(models, name):
    config = read_model_config(models(name).folder)
    programs = [
        lower_step(
            replace(config, layers=config.layers[:2] * (layers // 2)),
            StepOptions((f"blocks.{layers - 1}.hook_resid_post",), B, T, "float32"),
        )
        for layers in (4, 24)
    ]
    few, many = (program.as_text().count("\n") for program in programs)
    assert few == many


def test_memory_does_not_grow_with_layers_that_are_not_captured(models):
    config = read_model_config(models("llama").folder)
    shallow, deep = (
        lower_step(
            replace(config, layers=config.layers[:1] * layers),
            StepOptions((*TWO, f"blocks.{layers - 1}.hook_resid_mid"), B, T, "float32"),
        )
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for layers in (3, 24)
    )
    assert deep < shallow + B * T * 32 * 4  # less than one captured layer more


def test_gpt2_has_no_more_positions_than_it_learned(models):
    with pytest.raises(InvalidRequest, match="256 positions"):
        load(models("gpt2").folder, seq_len=257)


def test_rotary_models_run_beyond_their_trained_length(models):
    lowered = lower_step(read_model_config(models("llama").folder), StepOptions(TWO, 1, 300, "float32"))
    assert "1x300" in lowered.as_text()


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_post", "blocks.0.hook_z", "ln_final"])
def test_a_hook_point_that_is_not_there(models, hook):
    with pytest.raises(InvalidRequest, match=hook):
        load(models("llama").folder, (hook,))
