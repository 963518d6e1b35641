"""The forward pass against transformers' torch models: each family, each hook point, packed as we pack."""

import json

import jax
import numpy as np
import pytest
import torch

from extraction.config import resolve_hook_points
from extraction.errors import InvalidRequest
from extraction.forward import CapturePlan, ForwardOptions, StepShape, load_forward
from extraction.models.config import read_model_config
from extraction.models.location import ModelFolder
from extraction.packing import BatchShape, pack_batches
from extraction.records import Cursor, TokenizedRecord
from tests.tiny_models import CONFIGS, make_model, reference

LENGTHS = (5, 40, 1, 17, 150, 33, 8)
ALL = resolve_hook_points("all", "resid_pre,z,attn_out,resid_mid,post,mlp_out,resid_post", "ln_final.*", 3)


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def load(folder, hook_points=ALL, rows=2, seq_len=150, **options):
    config = read_model_config(folder)
    settings = {"compute_dtype": "float32", "store_dtype": "float32"} | options
    forward = load_forward(ModelFolder(folder, str(folder), None), config,
                           ForwardOptions(tuple(hook_points), StepShape(rows, seq_len), **settings))
    return forward


def documents(lengths=LENGTHS):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 97, length).astype(np.int32) for length in lengths]


def run(forward, docs, rows, seq_len):
    """Values of all documents in order, {hook point: [N, width]}, with the sums of each step."""
    records = [TokenizedRecord(i, str(i), tokens) for i, tokens in enumerate(docs)]
    values, sums = [], []
    for batch in pack_batches(records, Cursor(0, 0), BatchShape(1, rows, seq_len), "split"):
        output = forward(batch.tokens[0], batch.segment_ids[0], batch.positions[0], batch.slots.astype(np.int32))
        step_values, step_sums = output.get()
        values.append(step_values)
        sums.append(step_sums)
    return {name: np.concatenate([step[name] for step in values]) for name in values[0]}, sums


def error(ours, theirs):
    return np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (folder, torch model, {hook point: the values of all documents, one at a time})."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = make_model(name, folder)
            found = [reference(model, tokens) for tokens in documents()]
            made[name] = folder, model, {hook: np.concatenate([one[hook] for one in found]) for hook in found[0]}
        return made[name]

    return get


@pytest.mark.parametrize("name", CONFIGS)
def test_every_hook_point_of_packed_documents_is_that_of_the_reference_alone(models, name):
    folder, _, theirs = models(name)
    ours, _ = run(load(folder), documents(), 2, 150)
    assert set(ours) == set(ALL) == set(theirs)
    for hook in ALL:
        assert error(ours[hook], theirs[hook]) < 1e-5, hook


@pytest.mark.parametrize("rows, seq_len", [(1, 150), (1, 300), (7, 150), (3, 256)])
def test_batch_size_and_padding_do_not_matter(models, rows, seq_len):
    folder, _, theirs = models("llama")
    hooks = ("blocks.0.attn.hook_z", "blocks.2.hook_resid_post")
    if seq_len > 256:
        seq_len = 256
    ours, _ = run(load(folder, hooks, rows, seq_len), documents(), rows, seq_len)
    for hook in hooks:
        assert error(ours[hook], theirs[hook]) < 1e-5


@pytest.mark.parametrize("hook", [ALL[0], ALL[1], ALL[4], ALL[-1], "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
def test_a_hook_point_alone_is_the_same_and_nothing_else_is_returned(models, hook):
    folder, _, theirs = models("qwen3")
    ours, _ = run(load(folder, (hook,)), documents(), 2, 150)
    assert list(ours) == [hook]
    assert error(ours[hook], theirs[hook]) < 1e-5


def test_mixed_layers_of_several_kinds_do_not_overwrite_each_other(models):
    folder, _, theirs = models("llama")
    hooks = ("blocks.0.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "blocks.2.hook_resid_post")
    ours, _ = run(load(folder, hooks), documents(), 2, 150)
    for hook in hooks:
        assert error(ours[hook], theirs[hook]) < 1e-5, hook


def test_the_sums_are_over_the_stored_values_of_real_tokens(models):
    folder, _, _ = models("llama")
    forward = load(folder, ("blocks.1.hook_resid_post",), 2, 150, store_dtype="bfloat16")
    values, sums = run(forward, documents(LENGTHS[:3]), 2, 150)
    stored = values["blocks.1.hook_resid_post"].astype(np.float64)
    found = sums[0]["blocks.1.hook_resid_post"]
    assert stored.shape == (46, 32)
    np.testing.assert_allclose(found.sum, stored.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.sum_of_squares, (stored**2).sum(0), rtol=1e-4)


@pytest.mark.parametrize("hook, layers", [
    ("blocks.0.hook_resid_pre", 0), ("blocks.2.hook_resid_pre", 2), ("blocks.1.hook_resid_mid", 2),
    ("ln_final.hook_normalized", 3),
])
def test_no_layer_above_the_deepest_hook_point_runs(models, hook, layers):
    folder, _, _ = models("llama")
    assert CapturePlan.of((hook,), read_model_config(folder)).num_layers == layers


def test_layers_that_do_not_run_are_not_read(models, tmp_path):
    """The digest covers what was read, so a change in a later layer does not change it and one below does."""
    from safetensors.numpy import load_file, save_file

    folder, _, _ = models("llama")
    digests = []
    for changed in (None, "model.layers.2.mlp.up_proj.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        copy = tmp_path / str(changed)
        copy.mkdir()
        (copy / "config.json").write_text((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        if changed:
            tensors[changed] = tensors[changed] + 1
        save_file(tensors, copy / "model.safetensors")
        digests.append(load(copy, ("blocks.1.hook_resid_post",)).weights_digest)
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_bfloat16_weights_and_shards(tmp_path):
    model = make_model("qwen2", tmp_path, dtype=torch.bfloat16, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours, _ = run(load(tmp_path), documents(), 2, 150)
    theirs = [reference(model, tokens) for tokens in documents()]
    for hook in ALL:
        assert error(ours[hook], np.concatenate([one[hook] for one in theirs])) < 1e-5


def test_bfloat16_compute_stays_near(models):
    folder, _, theirs = models("llama")
    ours, _ = run(load(folder, compute_dtype="bfloat16"), documents(), 2, 150)
    assert 1e-4 < error(ours["blocks.2.hook_resid_post"], theirs["blocks.2.hook_resid_post"]) < 0.03


def test_an_older_configuration_with_rope_theta_is_read(models, tmp_path):
    folder, _, _ = models("llama")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": None}))
    assert read_model_config(tmp_path).rope.theta == 5e5


@pytest.mark.parametrize("changes, word", [
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ({"some_new_attribute": 3}, "some_new_attribute"),
    ({"model_type": "mamba2"}, "supported are llama"),
    ({"hidden_act": "xielu"}, "xielu"),
])
def test_a_configuration_that_is_not_handled_is_refused(models, tmp_path, changes, word):
    folder, _, _ = models("llama")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    with pytest.raises(InvalidRequest, match=word):
        read_model_config(tmp_path)


def test_gpt2_has_no_more_positions_than_it_learned(models):
    folder, _, _ = models("gpt2")
    with pytest.raises(InvalidRequest, match="256 positions"):
        load(folder, seq_len=257)
