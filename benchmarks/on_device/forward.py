"""The forward pass of Qwen2.5-7B's shape with random weights: bare, with 3 layers captured, with all captured.

In: a setting; the rate of ceilings.json, if it is there. Out: for each form seconds of a step, tokens/s, its share of
the measured rate of products (MFU), seconds of its compilation, and memory: the compiler's, the estimate, and the most
that the device held; what `plan` says of three layers. *Fetched* brings captured values to the host, one step behind,
as a worker does, which copies them from there into its batch file. Cost: 14 GB of weights, made on the device.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device import ROOT, Setting
from benchmarks.packed_attention import fineweb_rows

SHAPE = ROOT / "tests/model_configs/Qwen2.5-7B.json"
TINY = ROOT / "examples/tiny-lm/config.json"
FINAL = "ln_final.hook_normalized"


def config_of(tiny: bool, folder: Path, shape: Path = SHAPE) -> Any:
    """The configuration of a shape, or of the tiny model, through the product's own reader."""
    from extraction.models.config_file import read_model_config

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text((TINY if tiny else shape).read_text())
    return read_model_config(folder)


def random_params(config: Any, options: Any) -> dict:
    """Random weights of the shapes that a step needs, on the device."""
    import jax
    import jax.numpy as jnp

    from extraction.models.step import weight_shapes
    from extraction.models.weights import nested

    def make(number: int, shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.random.normal(jax.random.key(number), shape.shape, jnp.bfloat16).astype(shape.dtype) * 0.02

    draw = jax.jit(make, static_argnums=1)
    return nested({path: draw(number, leaf) for number, (path, leaf) in enumerate(weight_shapes(config, options))})


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def forward(setting: Setting) -> dict:
    """Measure each form, the bare one first."""
    from extraction.models.step_options import StepOptions

    rows, length, rounds = (2, 64, 2) if setting.tiny else (8, 2048, 5)
    config = config_of(setting.tiny, setting.output / "forward-model")
    last = len(config.layers) - 1
    spread = tuple(f"blocks.{layer}.hook_resid_post" for layer in sorted({last // 3, 2 * last // 3, last}))
    every = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(last + 1))
    setting.save(
        {"model": "tiny-lm" if setting.tiny else SHAPE.stem, "layers": last + 1, "rows": rows, "seq_len": length}
    )
    forms = [("bare", (FINAL,)), ("three_layers", spread), ("all_layers", every)]
    for name, hooks in forms[: 2 if setting.tiny else None]:
        options = StepOptions(hooks, rows, length, "bfloat16")
        found = measure(name, config, options, rounds) | shares(setting, config, options)
        setting.save({name: rated(found, options)})
    return {"plan": planned(setting, spread, options)}


def planned(setting: Setting, hooks: tuple[str, ...], options: Any) -> dict:
    """What `plan` says of this model on this device, or its complaint."""
    kind = str(setting.known("ceilings").get("device", "cpu"))
    accelerator = next((name for name in ("h100", "h200", "a100", "l4") if name.upper() in kind), "cpu")
    command = [sys.executable, ROOT / "extract_activations.py", "plan", "--model", setting.output / "forward-model"]
    command += ["--accelerator", accelerator, f"--hook-points={','.join(hooks)}", "--compute-dtype=bfloat16"]
    command += [f"--batch-size={options.batch_size}", f"--seq-len={options.seq_len}", "--json"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr[-2000:]}


def shares(setting: Setting, config: Any, options: Any) -> dict:
    """The operations of a step and the measured rate that they are compared with."""
    from dataclasses import asdict

    from extraction.models.cost import demand_of, ideal_flops
    from extraction.models.devices import current_device

    rate = setting.known("ceilings").get("jax_matmul_tflops")
    return {
        "flops": ideal_flops(config, options),
        "measured_tflops": rate,
        "estimated_memory": asdict(demand_of(config, options, current_device())),
    }


def rated(found: dict, options: Any) -> dict:
    """With tokens per second and shares of the measured rate."""
    for kind in ("step", "fetched"):
        if f"{kind}_seconds" in found:
            found[f"{kind}_tokens_per_second"] = options.num_slots / found[f"{kind}_seconds"]
            if found["measured_tflops"]:
                tflops = found["flops"] / found[f"{kind}_seconds"] / 1e12
                found[f"{kind}_mfu"] = tflops / found["measured_tflops"]
    return found


def measure(name: str, config: Any, options: Any, rounds: int) -> dict:
    """Compile and time one form; the bare one returns a number for each token."""
    import jax

    from extraction.models import step as compiled
    from extraction.models.capture_plan import CapturePlan
    from extraction.models.sharding import Layout, mesh_of

    segment_ids, positions = fineweb_rows(options.batch_size, options.seq_len)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, segment_ids.shape).astype(np.int32)
    slots = np.arange(options.num_slots, dtype=np.int32)
    inputs = compiled.Inputs(tokens, segment_ids, positions, slots[None], np.array([len(slots)], np.int32))
    params = random_params(config, options)
    begin = time.perf_counter()
    if name == "bare":
        mesh = mesh_of(options.mesh, jax.local_devices())
        step = compiled.make_step(compiled.Model.of(config, options), options, Layout(mesh))
        with jax.set_mesh(mesh):
            bare = jax.jit(lambda params, inputs: [found.values[..., 0] for found in step(params, inputs).values()])
            program = bare.lower(params, inputs).compile()
    else:
        program = compiled.lower_step(config, options).compile()
    memory = program.memory_analysis()
    found = {
        "compile_seconds": time.perf_counter() - begin,
        "compiler_memory": memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
    }
    jax.block_until_ready(program(params, inputs))
    found["step_seconds"] = median_seconds(lambda: jax.block_until_ready(program(params, inputs)), rounds)
    if name != "bare":
        captures = CapturePlan.of(options.hook_points, config).captures
        step = compiled.Step(program, compiled.Loaded(params, "random"), options, captures)
        found["fetched_seconds"] = fetched_seconds(lambda: step(tokens, segment_ids, positions, slots), 2 * rounds)
    found["device_peak_bytes"] = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return found


def fetched_seconds(dispatch: Callable[[], Any], rounds: int) -> float:
    """Seconds of a step whose results are fetched while the next one runs."""
    waiting, taken = deque([dispatch(), dispatch()]), []
    for _ in range(rounds):
        begin = time.perf_counter()
        waiting.append(dispatch())
        output = waiting.popleft()
        output.facts(), output.parts()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)
