"""One host, several devices: the same tensors on every mesh, each device with its own part, meshes that cannot be."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from extraction.core.errors import InvalidRequest
from extraction.format.safetensors import decode
from extraction.format.statistics import norm_counts
from extraction.models.config_file import read_model_config
from extraction.models.cost import demand_of
from extraction.models.devices import DeviceKind
from extraction.models.mesh import Demand, MeshShape, choose_mesh, misfit
from extraction.models.sharding import Placement, mesh_of
from extraction.models.step import Model
from extraction.models.step_options import StepOptions
from extraction.models.weights import leaves_of
from tests.helpers.shared import built_once
from tests.helpers.tiny_configs import CONFIGS
from tests.helpers.tiny_models import documents, error, load, run, run_means

pytestmark = pytest.mark.slow

ROWS = 8
FINAL = ("ln_final.hook_normalized",)
MESHES = ("data=8", "data=4,model=2", "data=2,model=4")
# On the mesh that cuts both ways and has fewer key-value heads than devices. Together, and with the first family, which
# is on all meshes, they have every parameter and every part of a layer that some family has.
OTHERS = {
    "gpt2": MESHES[2],
    "olmo2": MESHES[2],
    "gemma4_text": MESHES[2],
    "gemma4-mixture": MESHES[2],
    "gpt_oss": MESHES[2],
    "bloom": MESHES[2],
    "stablelm-parallel-own-norms-biases": MESHES[2],
    "llama4_text": MESHES[2],
    "deepseek_v2-groups-biases": MESHES[2],
    "nemotron_h-mixture": MESHES[2],
    "qwen3_next-dense-layer-biases-taps": MESHES[1],  # as many heads of keys as devices
}
CASES = [*(("llama", mesh) for mesh in MESHES), *OTHERS.items()]
CODE = """
import sys, json, re
from functools import partial
from pathlib import Path
import jax
import numpy as np
from extraction.models.config_file import read_model_config
from extraction.models.head import token_losses
from extraction.models.mesh import MeshShape
from extraction.models.sharding import mesh_of
from extraction.batching.packing import BatchShape, pack_batches
from extraction.worker.loop import BatchLayout, run_pipeline
from extraction.format.records import Cursor, TokenizedRecord
from extraction.format.dtypes import dtype_named
from extraction.format.safetensors import decode
from tests.helpers.tiny_models import documents, load, run, run_means
folder, models, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cases, scaled, dtypes = json.loads(sys.argv[4])
step = load(models / "llama", scaled, rows=rows, mesh=MeshShape(2, 2), pool=True)
np.savez(folder / "means.npz", **run_means(step, documents(), range(0, 97, 3), rows))
rng = np.random.default_rng(0)
x, table, bias = rng.standard_normal((2, 8, 32)), rng.standard_normal((96, 32)), rng.standard_normal(96)
targets = rng.integers(-1, 96, (2, 8))
with jax.set_mesh(mesh_of(MeshShape(2, 4), jax.devices())):
    given = (*(part.astype(np.float32) for part in (x, table, bias)), targets.astype(np.int32))
    losses = jax.jit(partial(token_losses, config=read_model_config(models / "llama")))(*given)
np.savez(folder / "losses.npz", x=x, table=table, bias=bias, targets=targets, losses=losses)
for name, mesh, hooks in cases:
    step = load(models / name, hooks, rows=rows, mesh=MeshShape.parse(mesh), compile_cache=str(folder / "compiled"))
    values, (sums,) = run(step, documents(), rows=rows)
    stored = []
    records = [TokenizedRecord(i, str(i), tokens) for i, tokens in enumerate(documents())]
    batches = pack_batches(records, Cursor(0, 0), BatchShape(1, rows, 150), "split")
    layout = BatchLayout(0, step.widths, np.dtype(np.float32))
    run_pipeline(batches, layout, step, 0, lambda batch, data, *facts: stored.append(decode(data).arrays))
    assert all(np.array_equal(stored[0][hook], values[hook], equal_nan=True) for hook in hooks), "stored otherwise than computed"
    exchanges = re.findall(r"= .* (all-\\w+|collective-permute|reduce-scatter)(?:-start)?\\(", step._step.as_text())
    np.savez(folder / f"{name} {mesh}.npz", exchanges=exchanges, digest=step.weights_digest, **values,
             **{hook + ".sum": found.sum for hook, found in sums.items()})
for dtype in dtypes:
    step = load(models / "llama", scaled, rows=rows, mesh=MeshShape(2, 2), store_dtype=dtype,
                   compile_cache=str(folder / "compiled"))
    for turn in range(2):
        objects, batches = [], pack_batches(records, Cursor(0, 0), BatchShape(1, rows, 150), "split")
        layout = BatchLayout(0, step.widths, dtype_named(dtype))
        run_pipeline(batches, layout, step, 0, lambda batch, data, seconds, errors, odd: objects.append((data, errors)))
        (folder / f"{dtype} {turn}.safetensors").write_bytes(objects[0][0])
        (folder / f"{dtype} {turn}.json").write_text(json.dumps(objects[0][1]))
"""
DTYPES = ("int8", "float8_e4m3fn")
SCALED = ("blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.mlp.hook_post")


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """What eight devices computed, from one process, since jax's devices are fixed when it starts."""

    def build(folder):
        cases = [(name, mesh, models(name).hook_points) for name, mesh in CASES]
        given = folder, models("llama").folder.parent, str(ROWS), json.dumps([cases, SCALED, DTYPES])
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
        result = subprocess.run(
            [sys.executable, "-c", CODE, *given],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    return built_once(tmp_path_factory, "on-meshes", build)


@pytest.fixture(scope="module")
def on_meshes(folder):
    """{(model, mesh): arrays by name}, and those of the means."""
    found = {case: dict(np.load(folder / f"{case[0]} {case[1]}.npz")) for case in CASES}
    return found | {"means": dict(np.load(folder / "means.npz"))}


@pytest.mark.parametrize("name, mesh", CASES)
def test_every_hook_point_is_the_same_on_every_mesh(models, on_meshes, name, mesh):
    found = on_meshes[name, mesh]
    for hook, expected in models(name).reference.items():
        assert error(found[hook], expected) < 1e-5, hook
        assert error(found[f"{hook}.sum"], np.nansum(expected, 0)) < 1e-4, hook


def test_means_over_windows_are_the_same_on_a_mesh(models, on_meshes):
    expected = run_means(load(models("llama").folder, SCALED, pool=True), documents(), range(0, 97, 3))
    assert np.array_equal(on_meshes["means"]["mean_over"], expected["mean_over"])
    for hook in SCALED:
        assert error(on_meshes["means"][hook], expected[hook]) < 1e-5, hook


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hook", SCALED)
def test_a_scale_is_that_of_the_whole_row_on_a_mesh_too(models, folder, dtype, hook):
    """Two devices have half of the columns each. The error is the same as of one device, to the values' rounding."""
    (data, again), (errors, same) = (
        [(folder / f"{dtype} {turn}.{ending}").read_bytes() for turn in range(2)] for ending in ("safetensors", "json")
    )
    assert data == again and errors == same
    arrays, expected = decode(data).arrays, models("llama").reference[hook]
    most = np.abs(expected).max(axis=1)
    np.testing.assert_allclose(arrays[f"{hook}.scale"], most / (127 if dtype == "int8" else 448), rtol=1e-4)
    values = arrays[hook].astype(np.float32) * arrays[f"{hook}.scale"][:, None]
    assert json.loads(errors)[hook] == pytest.approx(error(values, expected), rel=1e-2)
    assert np.array_equal(arrays[f"{hook}.norm_counts"], norm_counts(np.linalg.norm(values, axis=1)))
    row, column = arrays[f"{hook}.max_at"]
    assert np.abs(values[row, column]) == arrays[f"{hook}.max"][0] == np.abs(values).max()
    np.testing.assert_allclose(arrays[f"{hook}.sum"], values.sum(axis=0), atol=1e-4 * np.abs(values).sum(axis=0).max())


def test_a_vocabulary_that_devices_share_gives_the_same_losses(folder, on_meshes):
    found = np.load(folder / "losses.npz")
    logits, targets = found["x"] @ found["table"].T + found["bias"], found["targets"]
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)
    expected = np.where(targets[..., None] < 0, np.nan, np.log(np.exp(logits).sum(-1, keepdims=True)) - chosen)
    np.testing.assert_allclose(found["losses"], expected, rtol=1e-5)


def test_the_digest_does_not_depend_on_the_mesh(models, on_meshes):
    digests = {str(on_meshes["llama", mesh]["digest"]) for mesh in MESHES}
    assert digests == {load(models("llama").folder, (*FINAL, "hook_loss")).weights_digest}


def test_compiled_steps_are_kept(folder):
    kept = [path.name for path in (folder / "compiled").iterdir()]
    assert sum(name.startswith("jit_step") and name.endswith("-cache") for name in kept) == len(CASES) + len(DTYPES)


def test_devices_exchange_what_they_must_and_no_more(on_meshes):
    """None between rows; in a block a sum after attention and one after the mlp; before it the embedding's columns.

    Parallel blocks need one sum for both; OLMo 2 one more, for its norm of q over all heads; BLOOM two, for the norm of
    its embedding. Layers of several kinds make as many blocks of a program: three of gpt-oss and Llama 4, two of DeepSeek,
    four of Gemma 4, with one more sum after the layer's own embedding, and of Qwen3-Next here. A shared expert is part of
    the sum of its mixture. Of Nemotron-H's four layers, a part each, Mamba-2 has one more sum, for its norm over groups.
    """
    sums = {"olmo2": 3, "bloom": 4, "stablelm-parallel-own-norms-biases": 1, "gpt_oss": 3 * 2, "llama4_text": 3 * 2}
    sums |= {"gemma4_text": 4 * 3, "gemma4-mixture": 2 * 2, "deepseek_v2-groups-biases": 2 * 2}
    sums |= {"nemotron_h-mixture": 4 + 1, "qwen3_next-dense-layer-biases-taps": 4 * 2}
    for name, mesh in CASES:
        exchanges = sorted(on_meshes[name, mesh]["exchanges"].tolist())
        expected = ["all-gather", *["all-reduce"] * sums.get(name, 2)] if "model" in mesh else []
        assert exchanges == expected, (name, mesh)


class Parts:
    """The parameters of a model, and what it is made of: their names, and the fields that its layers set."""

    def __init__(self, name, folder):
        CONFIGS[name]().save_pretrained(folder)
        config = read_model_config(folder)
        self.parameters = list(leaves_of(Model.of(config, StepOptions(FINAL, 2, 16, "float32")).shapes))
        self.names = {re.sub(r"[.\d]+\.", ".", ".".join(path)) for path, _ in self.parameters}
        self.names |= {field.name for kind in config.layers for field in fields(kind) if getattr(kind, field.name)}


@pytest.fixture(scope="module")
def on_a_mesh(tmp_path_factory):
    """What the models are made of that run on meshes above."""
    return set().union(*(Parts(name, tmp_path_factory.mktemp(name)).names for name in dict(CASES)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_every_family_has_its_place(tmp_path, on_a_mesh, name):
    """A matrix that no rule cuts would be whole on each device, and the model would fit on none."""
    parts = Parts(name, tmp_path)
    assert parts.names <= on_a_mesh
    placement = Placement(jax.sharding.AbstractMesh((2, 2), ("data", "model")))
    for path, leaf in parts.parameters:
        spec = placement.spec(path, leaf.shape)
        whole = ("router", "shared_gate", "q_down", "kv_down", "k_rotated")  # narrow ones
        kernel = path[-1] in ("kernel", "table", "positions", "sinks") and path[-2] not in whole
        of_keys = path[-2] in ("k", "v", "queries", "keys")
        has_heads = not of_keys or leaf.shape[-3 if path[-1] == "kernel" else -2] % 2 == 0
        first = path[-2] in ("q", "k", "v", "gate", "up")
        assert ("model" in spec) == (has_heads and (kernel or first)), path


@pytest.mark.parametrize(
    "text, mesh",
    [
        ("data=4,model=2", MeshShape(4, 2)),
        ("model=2", MeshShape(1, 2)),
        (" data = 8 ", MeshShape(8, 1)),
    ],
)
def test_a_mesh_is_read_as_it_is_written(text, mesh):
    assert MeshShape.parse(text) == mesh == MeshShape.parse(str(mesh))


@pytest.mark.parametrize("text", ["", "4x2", "data=0", "data=2,data=2", "rows=2", "data=2;model=2", "data=-1"])
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(InvalidRequest, match="--mesh"):
        MeshShape.parse(text)


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("data=2", "needs 2 devices, this host has 1"),
        ("data=3", "--batch-size 8 is not divisible by data=3"),
        ("model=3", "4 heads are not divisible by model=3"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_name(models, mesh, message):
    folder = models("llama").folder
    shape = MeshShape.parse(mesh)
    assert message in misfit(shape, read_model_config(folder), ROWS, 1 if "needs" in message else 12)
    with pytest.raises(InvalidRequest, match=f"--mesh {shape}: needs"):
        load(folder, rows=6, mesh=shape)


def test_key_value_heads_are_shared_or_doubled_or_refused(models):
    config = read_model_config(models("llama").folder)
    wide = replace(
        config,
        layers=tuple(replace(kind, num_heads=12, num_kv_heads=6, mlp_width=48) for kind in config.layers),
        width=48,
    )
    assert [model for model in range(1, 13) if misfit(MeshShape(1, model), wide, ROWS, 12) is None] == [1, 2, 3, 6, 12]
    assert "6 key-value heads" in misfit(MeshShape(1, 4), wide, ROWS, 12)


GIB = 1 << 30


@pytest.mark.parametrize(
    "rows, weights, row, devices, memory, expected",
    [
        (32, 2 * GIB, GIB // 64, 1, 16 * GIB, MeshShape(1, 1)),
        (32, 2 * GIB, GIB // 64, 8, 16 * GIB, MeshShape(8, 1)),
        (32, 15 * GIB, GIB // 64, 8, 16 * GIB, MeshShape(4, 2)),
        (32, 50 * GIB, GIB // 64, 8, 16 * GIB, MeshShape(2, 4)),
        (6, 2 * GIB, GIB // 64, 8, 16 * GIB, MeshShape(6, 1)),
        (1, 2 * GIB, GIB // 64, 4, 16 * GIB, MeshShape(1, 1)),
        (32, 500 * GIB, GIB, 8, None, MeshShape(8, 1)),
    ],
)
def test_weights_are_shared_by_as_few_devices_as_can_hold_them(models, rows, weights, row, devices, memory, expected):
    config = read_model_config(models("llama").folder)
    assert choose_mesh(config, Demand(rows, weights, row), devices, memory) == expected


def test_what_fits_nowhere_is_refused_before_it_is_tried(models):
    config = read_model_config(models("llama").folder)
    with pytest.raises(
        InvalidRequest, match=r"needs about 25\.5 GiB on each of 8 devices, which have 16\.0, of which 14\.4 \(90%\)"
    ):
        choose_mesh(config, Demand(32, 100 * GIB, GIB // 8), 8, 16 * GIB)


def test_the_demand_counts_the_layers_that_run(models):
    config = read_model_config(models("llama").folder)
    size = {path: leaf for path, leaf in load_sizes(models("llama").folder)}
    for hooks, parts in ((FINAL, 3), (("blocks.0.hook_resid_pre",), 0)):
        demand = demand_of(config, StepOptions(hooks, 2, 16, "bfloat16"), DeviceKind("tpu", "TPU"))
        blocks = sum(n for name, n in size.items() if any(f"layers.{layer}." in name for layer in range(parts)))
        final = size["model.norm.weight"] if parts else 0
        assert demand.weight_bytes == 2 * (size["model.embed_tokens.weight"] + blocks + final)


def load_sizes(folder):
    from safetensors.numpy import load_file

    return ((name, tensor.size) for name, tensor in load_file(folder / "model.safetensors").items())


def test_one_device_is_a_mesh_too(models):
    assert mesh_of(MeshShape(1, 1), jax.devices()).shape == {"data": 1, "model": 1}
    hook = "blocks.1.hook_resid_mid"
    values, _ = run(load(models("qwen2").folder, (hook,)), documents())
    assert error(values[hook], models("qwen2").reference[hook]) < 1e-5
