"""Layers, hook points and the fingerprint."""

from dataclasses import fields, replace

import pytest

from extraction.format.run_config import (
    ExtractionConfig,
    default_steps_per_batch,
    differences,
    parse_layers,
    resolve_hook_points,
)
from extraction.core.errors import InvalidRequest

CONFIG = ExtractionConfig(
    model="m",
    revision=None,
    weights_digest="w",
    tokenizer_digest="t",
    manifest_digest="f",
    hook_points=("a",),
    compute_dtype="float32",
    store_dtype="bfloat16",
    seq_len=8,
    batch_size=2,
    steps_per_batch=1,
    bos="auto",
    long_documents="split",
    max_records=None,
)


@pytest.mark.parametrize(
    "text, layers",
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("0,3", [0, 3]),
        ("0:6:2", [0, 2, 4]),
        ("-1", [5]),
        ("3:", [3, 4, 5]),
        ("5,0,-1", [0, 5]),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text, 6) == layers


@pytest.mark.parametrize("text", ["6", "-7", "x", "", "1,,2", "0:6:0", "4:2", "1:2:3:4", "1.5"])
def test_layers_that_are_none(text):
    with pytest.raises(InvalidRequest, match="--layers"):
        parse_layers(text, 6)


def test_hook_points_come_in_depth_order():
    assert resolve_hook_points("1,0", "resid_post,z", "ln_final.*", 2, {}) == (
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_post",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_resid_post",
        "ln_final.hook_normalized",
    )


@pytest.mark.parametrize(
    "layers, hooks, names", [("0", "resid", None), (None, "resid_post", "blocks.9.*"), (None, "z", None)]
)
def test_hook_points_that_are_none(layers, hooks, names):
    with pytest.raises(InvalidRequest):
        resolve_hook_points(layers, hooks, names, 2, {})


ABSENT = {"hook_resid_mid": "both are added at once"}


def test_a_glob_passes_over_hook_points_that_the_model_does_not_have():
    assert resolve_hook_points(None, "", "blocks.1.hook_resid_*", 2, ABSENT) == (
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
    )


@pytest.mark.parametrize(
    "layers, hooks, names, message",
    [
        ("all", "resid_post,resid_mid", None, "--hooks resid_mid: no such hook point: both are added at once"),
        (None, "", "blocks.0.hook_resid_mid", "--hook-points blocks.0.hook_resid_mid: .* both are added at once"),
        (None, "", "blocks.*.hook_resid_mid", "both are added at once"),
        (None, "", "blocks.2.hook_resid_pre", "no such hook point: the model has 2 layers"),
    ],
)
def test_what_the_model_does_not_have_is_refused_with_the_reason(layers, hooks, names, message):
    with pytest.raises(InvalidRequest, match=message):
        resolve_hook_points(layers, hooks, names, 2, ABSENT)


@pytest.mark.parametrize("name", [field.name for field in fields(ExtractionConfig)])
def test_the_fingerprint_covers_every_field(name):
    changed = replace(CONFIG, **{name: "other"})
    if name == "hook_points":
        changed = replace(CONFIG, hook_points=("b",))
    assert changed.fingerprint != CONFIG.fingerprint
    assert [line.split(":")[0] for line in differences(CONFIG.to_json(), changed.to_json())] == [name]


def test_other_hook_points_are_named_first_and_explain_the_weights():
    stored, asked = CONFIG.to_json(), replace(CONFIG, hook_points=("b",), weights_digest="b", seq_len=7).to_json()
    lines = differences(stored | {"revision": "main"}, asked | {"revision": None})
    assert [line.split(":")[0] for line in lines] == ["hook_points", "revision", "seq_len"]
    assert lines[1] == 'revision: "main" in the run, not given now'


def test_the_fingerprint_is_the_same_in_every_process():
    assert CONFIG.fingerprint == "sha256:cc4aa2789bc22ac25079f2b1c61b1cc22fd8f19cb741ea6bd6c968ea341fa74a"


@pytest.mark.parametrize(
    "step_mib, step_flops, dtype, steps",
    [
        (1, 1.0, "float32", 128),
        (50, 1.0, "bfloat16", 2),
        (128, 1.0, "bfloat16", 1),
        (1000, 1.0, "bfloat16", 1),
        (1, 5e11, "float32", 3),
        (1, 5e14, "bfloat16", 3),
        (1, 1e20, "float32", 1),
    ],
)
def test_a_batch_is_64_to_128_mib_where_steps_allow_it_and_at_most_30_s(step_mib, step_flops, dtype, steps):
    assert default_steps_per_batch(step_mib << 20, step_flops, dtype) == steps
