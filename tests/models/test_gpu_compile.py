"""The fused kernel and the real step, compiled for GPUs on a machine without one.

Needs jax's CUDA plugin (extra `cuda`). Nothing is run: what is checked is the compiler's own account of the programs.
"""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.attention_compile import CASES, compile_case
from extraction.models.config_file import read_model_config
from extraction.models.step import lower_step, weight_shapes
from extraction.models.step_options import StepOptions
from tests.helpers.gpu_topology import CHIPS, COMPILER_OPTIONS, can_describe, describe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_describe(), reason="jax's CUDA plugin, the compiler for GPUs, is missing: pip install -e '.[cuda]'"
    ),
]
CONFIGS = Path(__file__).parents[1] / "model_configs"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fused_kernel_uses_the_products_and_copies_of_hopper(case):
    found = compile_case(case)
    assert found["warpgroup_products"] > 0 and found["bulk_copies"] > 0
    assert found["programs_of_a_processor"] > 1 and not found["spill_bytes"]


@pytest.fixture(scope="module", params=["Qwen2.5-7B", "gemma-2-9b"])
def compiled(request, tmp_path_factory):
    """The configuration, what was asked for, and the step compiled for an H100: 8 rows of 2048, three layers."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(CONFIGS / f"{request.param}.json", folder / "config.json")
    config = read_model_config(folder)
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in (6, 12, 18))
    options = StepOptions(hooks, 8, 2048, "bfloat16")
    return config, options, lower_step(config, options, [describe("H100")]).compile(COMPILER_OPTIONS)


def test_the_step_fits_and_needs_little_more_than_weights_and_results(compiled):
    """Of an H100's memory; beside weights and results no more than the results in the scan and two blocks' tensors."""
    config, options, step = compiled
    memory = step.memory_analysis()
    tokens = options.num_slots
    kind = config.layers[0]
    block = 2 * tokens * (3 * config.width + max(2 * kind.heads_width + 2 * kind.kv_width, 2 * kind.mlp_width))
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes + 2 * block
    assert memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes < (
        0.9 * CHIPS["H100"]["memory"]
    )


def test_no_weight_is_widened_on_a_gpu(compiled):
    config, options, step = compiled
    matrices = {tuple(sorted(leaf.shape[1:])) for path, leaf in weight_shapes(config, options) if path[-1] == "kernel"}
    results = re.findall(r"= f32\[([\d,]+)\]\S* (?:fusion|copy|convert|custom-call)\(", step.as_text())
    shapes = [tuple(int(size) for size in text.split(",") if size != "1") for text in results]
    assert not matrices & {tuple(sorted(shape)) for shape in shapes}


def test_attention_is_the_fused_kernel_on_hopper(compiled):
    assert "mosaic_gpu" in compiled[2].as_text() and "__cudnn$fmha" not in compiled[2].as_text()


def test_attention_is_cudnns_on_another_gpu(tmp_path):
    shutil.copy(CONFIGS / "Qwen2.5-0.5B.json", tmp_path / "config.json")
    options = StepOptions(("blocks.1.hook_resid_post",), 2, 512, "bfloat16")
    step = lower_step(read_model_config(tmp_path), options, [describe("A100")]).compile(COMPILER_OPTIONS)
    assert "__cudnn$fmha" in step.as_text()
