"""What a worker says about the devices it found, as a process that is set up for others meets them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from extraction.core.errors import InvalidRequest
from extraction.models.devices import device_errors
from tests.helpers.workers import ROOT

CODE = "from extraction.models.devices import open_devices; print(open_devices().name)"


def opened(folder, **environment):
    """A fresh process with `folder` on its path."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{folder}"} | environment
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_devices_are_named(tmp_path):
    result = opened(tmp_path, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert result.stdout == "2 x cpu\n", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "platforms, message",
    [
        ("", "libtpu is installed, but no TPU could be opened"),
        ("tpu", "jax cannot open its devices: Unable to initialize backend 'tpu'"),
    ],
)
def test_a_host_without_its_accelerator_does_not_fall_back_to_the_cpu(tmp_path, platforms, message):
    (tmp_path / "libtpu.py").write_text(
        "def get_library_path(): return '/nowhere/libtpu.so'\nconfigure_library_path = print\n"
    )
    result = opened(tmp_path, JAX_PLATFORMS=platforms)
    assert f"TryAgain: {message}" in result.stderr


def test_too_little_memory_is_said_with_what_to_do():
    with pytest.raises(InvalidRequest, match="memory; a smaller --batch-size"), device_errors():
        jnp.zeros(1 << 45, jnp.float32).block_until_ready()


@pytest.mark.parametrize(
    "text, memory",
    [
        ("Out of memory while trying to allocate 123 bytes.", "the device's memory; a smaller --batch-size"),
        ("Ran out of memory on HBM, the total memory required", "the device's memory; a smaller --batch-size"),
        (
            "Out of host memory trying to allocate 9 bytes with allocator xla_gpu_host_bfc",
            "host memory .* pins .*_LIMIT_GB",
        ),
    ],
)
def test_the_memory_that_is_too_small_is_named(text, memory):
    with pytest.raises(InvalidRequest, match=f"does not fit into (the )?{memory}"), device_errors():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
