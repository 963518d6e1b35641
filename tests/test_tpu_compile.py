"""The real step at real sizes, compiled for TPU slices on a machine without one: memory, arithmetic, no wasted copies.

Needs libtpu (extra `tpu`). Nothing is run: what is checked is the compiler's own account of the program.
"""

import json
import math
import re

import pytest

from extraction.forward import ForwardOptions, StepShape, lower_step, weight_shapes
from extraction.models.config_file import read_model_config
from extraction.models.sharding import MeshShape
from extraction.models.slices import SLICES, can_describe, describe
from extraction.plan import counts_of, ideal_flops, num_layers

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(not can_describe(), reason="libtpu, the compiler for TPUs, is missing: pip install -e '.[tpu]'"),
]
LLAMA = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072, "tie_word_embeddings": False}
MODELS = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": LLAMA | {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "gemma-2-9b": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16,
        "head_dim": 256, "num_hidden_layers": 42, "num_key_value_heads": 8, "vocab_size": 256000, "rms_norm_eps": 1e-6,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh",
    },
}
# Model, slice, mesh, rows, tokens in a row: one chip, rows shared, weights shared, both; windows and softcaps.
CASES = [
    ("Qwen2.5-0.5B", "v5litepod-1", (1, 1), 32, 2048),
    ("Qwen2.5-0.5B", "v4-8", (4, 1), 32, 2048),
    ("Llama-3.1-8B", "v5litepod-4", (2, 2), 8, 2048),
    ("Llama-3.1-8B", "v6e-8", (8, 1), 16, 2048),
    ("gemma-2-9b", "v5p-8", (1, 4), 2, 8192),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} on {case[1]}")
def compiled(request, tmp_path_factory):
    """The configuration, what was asked for, the slice, and the compiled step."""
    model, name, mesh, rows, length = request.param
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODELS[model]))
    config = read_model_config(folder)
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in (6, 12, 18))
    options = ForwardOptions(hooks, StepShape(rows, length), "bfloat16", mesh=MeshShape(*mesh))
    return config, options, SLICES[name], lower_step(config, options, describe(SLICES[name])).compile()


def instructions(compiled) -> list[tuple[bool, str, str, tuple[int, ...]]]:
    """Of what is not inside a fusion: whether it is in a loop's body, operation, dtype and shape of the result."""
    found = []
    for computation in re.split(r"\n(?=%|ENTRY )", compiled.as_text()):
        if computation.startswith("%fused"):
            continue
        for line in computation.splitlines()[1:]:
            match = re.match(r"\s*(?:ROOT )?%\S+ = \(?(\w+)\[([\d,]*)\]\S* ([a-z\-]+)\(", line)
            if match:
                shape = tuple(int(size) for size in match[2].split(",") if size)
                found.append((not computation.startswith("ENTRY"), match[3], match[1], shape))
    return found


def test_it_fits_and_needs_no_more_than_weights_results_and_one_layer(compiled):
    """Peak memory over weights, results (in the scan, and on their way out) and the tensors of a block: 1.3 at most."""
    config, options, wanted, step = compiled
    memory = step.memory_analysis()
    devices = options.mesh.data * options.mesh.model
    tokens = options.shape.rows * options.shape.seq_len
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * max(config.head_width, 128)  # a lane is 128 wide
    block = 2 * tokens * (3 * config.width + max(heads, 2 * config.mlp_width)) / devices
    needed = memory.argument_size_in_bytes + 2 * memory.output_size_in_bytes + block
    assert memory.peak_memory_in_bytes < 1.3 * needed
    assert memory.peak_memory_in_bytes < 0.9 * wanted.chip.memory_bytes


def test_its_arithmetic_is_that_of_the_model(compiled):
    """Within 3%. The compiler does not count the attention kernel, so only the rest is compared."""
    config, options, _, step = compiled
    length_one = ForwardOptions(options.hook_points, StepShape(options.shape.rows * options.shape.seq_len, 1),
                                options.compute_dtype, mesh=options.mesh)
    ideal = ideal_flops(config, length_one)  # as good as without attention
    counted = step.cost_analysis()["flops"] * num_layers(config, options)  # a loop's body is counted once
    assert 0.99 < counted / ideal < 1.03


def test_no_weight_is_widened(compiled):
    config, options, _, step = compiled
    matrices = {tuple(sorted(leaf.shape[1:])) for path, leaf in weight_shapes(config, options) if path[-1] == "kernel"}
    found = [shape for _, _, dtype, shape in instructions(step) if dtype == "f32"]
    wide = {tuple(sorted(size for size in shape if size > 1)) for shape in found}
    assert not matrices & wide


def test_no_activation_is_copied_or_transposed_in_the_loop(compiled):
    """But for what is captured, one copy of x into its place; and for q, k, v and z where only some layers have a
    window, since a branch between two forms of attention fixes how its operands lie."""
    config, options, _, step = compiled
    tokens, devices = options.shape.rows * options.shape.seq_len, options.mesh.data * options.mesh.model
    smallest = tokens * config.head_width / devices
    moved = [shape for in_loop, operation, _, shape in instructions(step)
             if in_loop and operation in ("copy", "transpose") and math.prod(shape) >= smallest]
    captured = [shape for shape in moved if shape[0] == 1 and len(shape) == 4]
    assert len(captured) <= 1
    assert len(moved) - len(captured) <= (4 if len(set(config.windowed)) > 1 else 0)


def test_attention_is_the_kernel(compiled):
    assert "splash_mha_fwd" in compiled[3].as_text()


def test_a_plan_takes_these_counts(compiled):
    config, options, _, step = compiled
    counts = counts_of(step, config, options)
    assert counts.source == "counted by the compiler"
    assert counts.memory_bytes == step.memory_analysis().peak_memory_in_bytes
    assert 1 < counts.flops / ideal_flops(config, options) < 1.03


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_rows_are_written_as_they_are_stored_and_never_wider(tmp_path, dtype):
    """Scales, errors, norms and maxima are made as rows are read. Between devices go the scales, in one exchange."""
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen2.5-0.5B"]))
    config = read_model_config(tmp_path)
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in (2, 4))
    options = ForwardOptions(hooks, StepShape(8, 2048), "bfloat16", dtype, mesh=MeshShape(2, 2))
    step = lower_step(config, options, describe(SLICES["v5litepod-4"])).compile()
    own = 8 * 2048 * config.width // 4
    wide = [shape for in_loop, operation, kind, shape in instructions(step)
            if not in_loop and operation in ("fusion", "copy", "convert") and kind == "f32" and math.prod(shape) >= own]
    assert wide == []
    sums = re.findall(r"= .* all-reduce(?:-start)?\(", step.as_text())
    assert len(sums) == 3  # two in each block, and the scales
