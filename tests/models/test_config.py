"""Layers, hook points, the fingerprint, and the size of a batch."""

import hashlib
import json
from dataclasses import fields, replace

import pytest

from extraction.core.errors import InvalidRequest
from extraction.format.run_config import FORMAT, RunConfig, differences
from extraction.models.config import Experts, LayerKind, ModelConfig
from extraction.models.config_file import read_model_config
from extraction.models.hooks import parse_layers, resolve_hook_points
from extraction.models.mesh import MeshShape
from extraction.models.step_options import StepOptions
from extraction.worker.resolve import default_steps_per_batch

CONFIG = RunConfig(
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

DENSE = LayerKind(num_heads=4, num_kv_heads=2, head_width=8, mlp_width=48)
MODEL = ModelConfig("llama", (DENSE, replace(DENSE, experts=Experts(4, 2, True))), 32, 97, 1e-6, "silu", *(False,) * 3)


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
    assert resolve_hook_points("1,0", "resid_post,z", "ln_final.*", MODEL) == (
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_post",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_resid_post",
        "ln_final.hook_normalized",
    )


@pytest.mark.parametrize(
    "layers, hooks, suffixes",
    [
        ("0", "transcoder", ["0.hook_mlp_in", "0.hook_mlp_out"]),
        (None, "clt", ["0.hook_resid_mid", "0.hook_mlp_out", "1.hook_resid_mid", "1.hook_mlp_out"]),
        ("1", "clt", ["1.hook_resid_mid", "1.hook_mlp_out"]),
        (None, "crosscoder", ["0.hook_resid_post", "1.hook_resid_post"]),
    ],
)
def test_presets(layers, hooks, suffixes):
    assert resolve_hook_points(layers, hooks, None, MODEL) == tuple(f"blocks.{suffix}" for suffix in suffixes)


@pytest.mark.parametrize(
    "layers, hooks, names", [("0", "resid", None), (None, "resid_post", "blocks.9.*"), (None, "z", None)]
)
def test_hook_points_that_are_none(layers, hooks, names):
    with pytest.raises(InvalidRequest):
        resolve_hook_points(layers, hooks, names, MODEL)


@pytest.mark.parametrize("names", [None, "ln_final.*"])
@pytest.mark.parametrize("hooks", ["z", "transcoder", "final,z"])
def test_hooks_of_blocks_need_layers(hooks, names):
    with pytest.raises(InvalidRequest, match="--hooks (z|mlp_in): of which layers. give --layers"):
        resolve_hook_points(None, hooks, names, MODEL)


def test_the_default_hooks_and_those_of_the_model_need_no_layers():
    final = ("ln_final.hook_normalized",)
    assert resolve_hook_points(None, "resid_post", "ln_final.*", MODEL) == final
    assert resolve_hook_points(None, "final", None, MODEL) == final


def test_a_glob_passes_over_hook_points_that_the_model_does_not_have():
    assert resolve_hook_points(None, "", "blocks.1.hook_resid_*", replace(MODEL, parallel=True)) == (
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
    )


@pytest.mark.parametrize(
    "layers, hooks, names, message",
    [
        (
            "all",
            "resid_post,resid_mid",
            None,
            "--hooks resid_mid: no such hook point: in this llama model, attention and mlp are added at once",
        ),
        (
            None,
            "",
            "blocks.0.hook_resid_mid",
            "--hook-points blocks.0.hook_resid_mid: .* in this llama model, attention and mlp are added at once",
        ),
        (None, "", "blocks.*.hook_resid_mid", "in this llama model, attention and mlp are added at once"),
        (None, "", "blocks.2.hook_resid_pre", "no such hook point: the model has 2 layers"),
        ("all", "router", None, "layer 0 has no mixture of experts; of its 2 layers these have it: 1"),
        (None, "", "blocks.0.mlp.hook_expert_*", "no such hook point: the model has 2 layers"),
    ],
)
def test_what_the_model_does_not_have_is_refused_with_the_reason(layers, hooks, names, message):
    with pytest.raises(InvalidRequest, match=message):
        resolve_hook_points(layers, hooks, names, replace(MODEL, parallel=True))


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_the_fingerprint_covers_every_field(name):
    changed = replace(CONFIG, **{name: "other"})
    if name == "hook_points":
        changed = replace(CONFIG, hook_points=("b",))
    assert changed.fingerprint != CONFIG.fingerprint
    assert [line.split(":")[0] for line in differences(CONFIG, changed)] == [name]


def test_other_hook_points_are_named_first_and_explain_the_weights():
    stored = replace(CONFIG, revision="main")
    lines = differences(stored, replace(CONFIG, hook_points=("b",), weights_digest="b", seq_len=7))
    assert [line.split(":")[0] for line in lines] == ["hook_points", "revision", "seq_len"]
    assert lines[1] == 'revision: "main" in the run, not given now'


def test_the_fingerprint_is_the_same_in_every_process():
    values = {
        "model": "m", "revision": None, "weights_digest": "w", "tokenizer_digest": "t", "manifest_digest": "f",
        "hook_points": ["a"], "compute_dtype": "float32", "store_dtype": "bfloat16", "seq_len": 8, "batch_size": 2,
        "steps_per_batch": 1, "bos": "auto", "long_documents": "split", "max_records": None, "positions": "all",
        "drop_special": False, "vocab_size": 1 << 31, "format": FORMAT,
    }  # fmt: skip
    canonical = json.dumps(dict(sorted(values.items())), separators=(",", ":"))
    assert CONFIG.fingerprint == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def sized(folder, num_layers=1):
    """A model in whose blocks are 2**24 weights, and 1024 values in a row."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 8}
    settings = {"model_type": "llama", "vocab_size": 97, "num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(sizes | settings))
    return read_model_config(folder)


@pytest.mark.parametrize(
    "mib, share, steps", [(1, 1.0, 128), (50, 1.0, 2), (128, 1.0, 1), (1000, 1.0, 1), (50, 0.1, 25)]
)
def test_a_batch_holds_64_to_128_mib_where_steps_allow_it(tmp_path, mib, share, steps):
    step = StepOptions(("blocks.0.hook_resid_pre",), mib, 512, "bfloat16")  # no layer runs: 2 KiB for each token
    assert default_steps_per_batch(sized(tmp_path), step, share) == steps


@pytest.mark.parametrize(
    "num_layers, rows, dtype, steps",
    [
        (1, 14899, "float32", 4),
        (1000, 14899, "bfloat16", 4),
        (1000, 14, "float32", 12),
        (1000, 45, "float32", 3),
        (1000, 200, "float32", 1),
    ],
)
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 8)], ids=str)
def test_a_batch_takes_at_most_30_s_on_slow_hardware_or_four_times_that_where_it_has_few_slots(
    tmp_path, num_layers, rows, dtype, steps, mesh
):
    """A row of one token takes 2 * 2**24 + 4 * 1024 operations a layer: 44698 rows take 30 s, on any mesh; few are 65,536."""
    step = StepOptions((f"blocks.{num_layers - 1}.hook_resid_post",), rows, 1, dtype, "int8", mesh=mesh)
    assert default_steps_per_batch(sized(tmp_path, num_layers), step, 1.0) == steps
