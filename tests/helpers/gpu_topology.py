"""GPUs that are not here, described for XLA's compiler: it makes their machine code on any machine.

Needs jax's CUDA plugin (extra `cuda`), which needs no GPU and no driver for this. The figures are those that NVIDIA
publishes.
"""

import jax
from jax.experimental import topologies

_CHIP = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
CHIPS = {
    "H100": {"shared": 233472, "shared_optin": 232448, "cores": 132, "units": 128, "bandwidth": 3_350_000_000_000,
             "cache": 52428800, "clock": 1.98, "memory": 85_000_000_000, "major": 9, "name": "NVIDIA H100 80GB HBM3"},
    "A100": {"shared": 167936, "shared_optin": 166912, "cores": 108, "units": 64, "bandwidth": 2_040_000_000_000,
             "cache": 41943040, "clock": 1.41, "memory": 85_000_000_000, "major": 8, "name": "NVIDIA A100-SXM4-80GB"},
}  # fmt: skip
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0}  # else it would time its choices on the GPU


def can_describe() -> bool:
    """Whether the compiler for GPUs is here."""
    try:
        import jax_plugins.xla_cuda13  # noqa: F401
    except ImportError:
        return False
    return True


def describe(chip: str) -> jax.Device:
    """One GPU of this kind."""
    target = _CHIP.format(**CHIPS[chip])
    topology = topologies.get_topology_desc(chip, platform="cuda", target_config=target, topology="1x1x1")
    return topology.devices[0]
