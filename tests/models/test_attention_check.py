"""The check of a kernel before a step uses it: right kernels pass, each kind of wrong one does not."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from extraction.core.errors import InvalidRequest, TryAgain
from extraction.models.attention import attend_blocks, attention, attention_form
from extraction.models.attention_check import cases_of, check_attention, checked_length
from extraction.models.attention_rule import AttentionRule
from extraction.models.config import DeltaNet, LayerKind, ModelConfig
from extraction.models.devices import device_errors
from extraction.models.mesh import MeshShape
from extraction.models.splash_attention import attend_splash
from extraction.models.splash_blocks import splash_block
from extraction.models.step_options import StepOptions
from tests.helpers.tiny_models import load
from tests.helpers.workers import MODEL

FULL, WINDOWED = LayerKind(4, 2, 16, 32), LayerKind(4, 2, 16, 32, window=40)
TINY = ModelConfig("llama", (WINDOWED, WINDOWED), 64, 97, 1e-5, "silu", False, False, False)
HOOK = ("blocks.1.hook_resid_post",)


def check(form, config=TINY, dtype="bfloat16", length=150):
    """The check, for a device that would choose `form`."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    check_attention(config, StepOptions(HOOK, 1, length, dtype), mesh, lambda *case: form)


def changed(rule=(), **tensors):
    """Plain attention after a change of its rule, or of tensors by functions of them."""

    def form(q, k, v, ids, own, sinks=None):
        given = {"q": q, "k": k, "v": v, "ids": ids, "sinks": sinks}
        given |= {name: change(given[name]) for name, change in tensors.items()}
        q, k, v, ids, sinks = given.values()
        return attend_blocks(q, k, v, ids, replace(own, **dict(rule)), sinks)

    return form


def broken(change):
    """Plain attention whose result is changed."""
    return lambda *arguments: change(attend_blocks(*arguments), arguments[3])


def fails(*_):
    raise NotImplementedError("no such layout")


WRONG = {
    "documents run together": changed(ids=jnp.ones_like),
    "a window of one more": changed({"window": 41}),
    "no softcap": changed({"softcap": None}),
    "no sinks": changed(sinks=lambda sinks: None),
    "another scale": changed({"scale": 0.26}),
    "heads grouped otherwise": changed(q=lambda q: q[:, :, ::-1]),
    "keys one later": changed(k=lambda k: jnp.roll(k, 1, axis=1)),
    "one query wrong": broken(lambda z, ids: z.at[0, 145].set(0)),
    "one head wrong in a block": broken(lambda z, ids: z.at[1, 128:, 3].multiply(1.1)),
    "no number in padding": broken(lambda z, ids: jnp.where((ids > 0)[..., None, None], z, jnp.nan)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_ends_the_start(name):
    config = replace(TINY, softcap=50.0 if "softcap" in name else None, sinks="sinks" in name)
    with pytest.raises(InvalidRequest, match="is wrong .*give --attention plain") as caught:
        check(WRONG[name], config)
    assert "bfloat16, 4 heads of 16, 2 of keys" in str(caught.value)


def test_products_of_short_numbers_are_wrong_in_float32():
    with pytest.raises(InvalidRequest, match="is wrong"):
        check(changed(q=lambda q: q.astype(jnp.bfloat16)), dtype="float32")


@pytest.mark.parametrize("dtype, length", [("float32", 150), ("bfloat16", 150), ("bfloat16", 1), ("bfloat16", 7)])
def test_a_right_kernel_passes(dtype, length):
    check(changed(), dtype=dtype, length=length)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [{}, {"softcap": 2.0}, {"softcap": 50.0}, {"sinks": True}, {"attention_scale": 1.0}])
def test_the_kernel_of_a_tpu_passes(change, dtype):
    check(attend_splash, replace(TINY, **change), dtype)


@pytest.mark.slow
def test_the_kernel_of_hopper_passes_and_without_causality_does_not():
    if jax.__version_info__ < (0, 11):
        pytest.skip("the interpreter of jax 0.10 takes half a minute for a case")
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams

    from extraction.models.fused_attention import FusedAttention

    kernel = FusedAttention(interpret=InterpretGPUParams())
    wide = replace(TINY, layers=(replace(WINDOWED, head_width=64),) * 2)
    check(kernel, wide)
    with pytest.raises(InvalidRequest, match="is wrong"):
        check(replace(kernel, causal=False), wide)


def test_a_kernel_that_fails_ends_the_start():
    """While it is traced; when it is compiled or run, as the device says."""
    with pytest.raises(
        InvalidRequest, match="does not run: NotImplementedError: no such layout; give --attention plain"
    ):
        check(fails)

    def raising(status):
        def fail(*_):
            raise jax.errors.JaxRuntimeError(f"{status}: Mosaic failed to compile the kernel")

        return fail

    for status in ("INTERNAL", "RESOURCE_EXHAUSTED"):  # as of a chip's own small memory
        with pytest.raises(InvalidRequest, match=f"{status}: Mosaic failed.*--attention plain"), device_errors():
            check(raising(status))
    with pytest.raises(TryAgain, match="UNAVAILABLE"), device_errors():
        check(raising("UNAVAILABLE"))


@pytest.mark.parametrize(
    "status, kind, message",
    [
        ("RESOURCE_EXHAUSTED", InvalidRequest, "the step does not fit into the device's memory; a smaller"),
        ("INTERNAL", TryAgain, "the device failed: INTERNAL"),
        ("UNIMPLEMENTED", InvalidRequest, "does not run: JaxRuntimeError: UNIMPLEMENTED.*--attention plain"),
    ],
)
def test_a_device_that_fails_is_not_a_broken_kernel(monkeypatch, status, kind, message):
    """While the kernel runs: the weights are read beside it, and may fill the memory."""

    def fails_to_run(*_):
        raise jax.errors.JaxRuntimeError(f"{status}: Out of memory while trying to allocate 123 bytes.")

    monkeypatch.setattr(jax.stages.Compiled, "__call__", fails_to_run)
    with pytest.raises(kind, match=message) as caught, device_errors():
        check(changed())
    assert ("--attention plain" in str(caught.value)) == (status == "UNIMPLEMENTED")


def test_the_plain_form_is_not_compared():
    """On a CPU, and where the flag asks for it: not even chosen."""
    check(attend_blocks)
    options = StepOptions(HOOK, 1, 300, "bfloat16", attention="plain")
    assert cases_of(TINY, options) == []


def test_each_kind_of_attention_that_runs_is_compared_once():
    """Two key-value heads for each device; not more tokens than the step has, nor hidden windows."""
    group = replace(FULL, num_heads=28, num_kv_heads=4, head_width=128)
    state = replace(FULL, recurrent=DeltaNet(16, 4))
    mlp = replace(FULL, parts=("mlp",))
    wide = replace(WINDOWED, window=4096)
    config = replace(TINY, layers=(group, group, state, mlp, wide, WINDOWED), softcap=30.0)

    def cases(length, **more):
        options = StepOptions(("blocks.4.hook_resid_post",), 4, length, "bfloat16", **more)
        return [(case[1:6], case.rule.window) for case in cases_of(config, options)]

    assert cases(8192) == [((2048, 14, 2, 128, 128), None), ((8192, 4, 2, 16, 16), 4096)]
    assert cases(512, mesh=MeshShape(1, 4)) == [((512, 28, 4, 128, 128), None), ((512, 4, 2, 16, 16), None)]


@pytest.mark.parametrize(
    "length, checked, block",
    [(2048, 2048, 512), (2049, 1537, 128), (2100, 1588, 128), (2176, 1664, 128), (4224, 1920, 384), (8192, 2048, 512)],
)
def test_a_long_row_is_checked_in_its_own_blocks(length, checked, block):
    """Of the kernel of a TPU, 512 tokens or less; the last block of 128 is as full, for the padding of every kernel."""
    (case,) = cases_of(replace(TINY, layers=(FULL, FULL)), StepOptions(HOOK, 1, length, "bfloat16"))
    assert case.length == checked
    assert splash_block(case.length) == splash_block(length) == block


def test_every_length_has_one_to_check():
    for most in (2048, 2050, 8192):
        for length in range(1, 9000):
            found = checked_length(length, most)
            assert found == length if length <= most else most - 600 < found <= most


def test_the_flag_has_plain_attention_in_place_of_a_kernel():
    device = AbstractDevice("TPU v5 lite", 1, platform="tpu")
    mesh = AbstractMesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2, abstract_device=device)
    q = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16)
    ids, programs = jax.ShapeDtypeStruct((1, 128), jnp.int32), {}
    for name in ("auto", "plain"):
        with jax.sharding.use_abstract_mesh(mesh), attention_form(name):
            programs[name] = str(jax.make_jaxpr(partial(attention, rule=AttentionRule(0.1)))(q, q, q, ids))
    assert "pallas_call" in programs["auto"] and "pallas_call" not in programs["plain"]


@pytest.mark.slow
def test_on_a_mesh():
    """In a process of its own, since the number of devices is fixed when jax starts. Wrong on one device only, too."""
    code = """
import jax, jax.numpy as jnp, numpy as np, pytest
from jax.sharding import Mesh
from extraction.core.errors import InvalidRequest
from extraction.models.attention import OnEachDevice, attend_blocks
from extraction.models.attention_check import check_attention
from extraction.models.mesh import MeshShape
from extraction.models.splash_attention import attend_splash
from extraction.models.step_options import StepOptions
from tests.models.test_attention_check import HOOK, TINY

def wrong(*arguments):
    factor = jnp.where(jax.lax.axis_index("data") * 2 + jax.lax.axis_index("model") == 3, 1.1, 1.0)
    return attend_blocks(*arguments[:5]) * factor.astype(jnp.bfloat16)

for shape in ((2, 2), (1, 4)):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    options = StepOptions(HOOK, 4, 150, "bfloat16", mesh=MeshShape(*shape))
    check_attention(TINY, options, mesh, lambda *_: OnEachDevice(attend_splash))
    with pytest.raises(InvalidRequest, match="is wrong"):
        check_attention(TINY, options, mesh, lambda *_: OnEachDevice(wrong))
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_start_compares_its_kernel_and_the_flag_does_without(monkeypatch):
    """A device that calls itself a GPU and has no cuDNN."""
    device = AbstractDevice("NVIDIA A100", None, platform="gpu")
    claimed = property(lambda mesh: device, lambda mesh, own: None)
    monkeypatch.setattr(AbstractMesh, "abstract_device", claimed, raising=False)
    with pytest.raises(
        InvalidRequest, match="attention kernel for NVIDIA A100 .* does not run.*give --attention plain"
    ):
        load(MODEL, rows=1, seq_len=16, compute_dtype="bfloat16")
    step = load(MODEL, rows=1, seq_len=16, compute_dtype="bfloat16", attention="plain")
    assert step.options.attention == "plain"
