"""Attention on the device: right, the nine short cases, and packed documents.

In: a setting. Out: what the check at a worker's start says of published models; the largest relative errors against
float64; the tables of benchmarks/attention.py and benchmarks/packed_attention.py. Cost: a compilation for each case and
implementation.
"""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.device import Setting
from benchmarks.on_device.forward import SHAPE, config_of

MODELS = ("Qwen2.5-7B", "gemma-2-9b", "openai--gpt-oss-20b")  # heads of 128, 256 and 64; windows, softcap, sinks
WIDTHS, LENGTHS = (64, 128, 256), (1, 17, 64, 127, 128, 129, 300, 512, 777, 1000, 1024)


def correctness(setting: Setting) -> dict:
    """The check of a start, then errors of the form that the device chooses.

    These are of each head width and option in bfloat16, and of many lengths in float16.
    """
    import jax
    import jax.numpy as jnp

    from extraction.models.attention import attention
    from extraction.models.attention_rule import AttentionRule
    from tests.helpers.attention_reference import exact_attention, relative_error

    found = {}
    for model in MODELS[: 1 if setting.tiny else None]:
        found[model] = checked(setting, model)
        setting.save({"check": found})
    rules = {"causal": (None, None), "window": (200, None), "softcap": (None, 20.0), "both": (100, 20.0)}

    def error(length: int, width: int, rule: AttentionRule, dtype: str) -> float:
        rng = np.random.default_rng(length)
        q, k, v = (jnp.asarray(rng.standard_normal((2, length, heads, width)), dtype) for heads in (4, 2, 2))
        ids = np.sort(rng.integers(1, 5, (2, length)), axis=1).astype(np.int32)
        sinks = jnp.linspace(-2, 3, 4) if width == 64 else None
        ours = jax.jit(partial(attention, rule=rule))(q, k, v, ids, sinks=sinks)
        return float(relative_error(ours, exact_attention(q, k, v, ids, rule, sinks=sinks)))

    widths, lengths = (WIDTHS[:1], LENGTHS[:2]) if setting.tiny else (WIDTHS, LENGTHS)
    with ThreadPoolExecutor() as pool:  # the programs are compiled side by side
        of_rules = {
            f"{width} {name}": pool.submit(
                error, 100 if setting.tiny else 600, width, AttentionRule(width**-0.5, *rule), "bfloat16"
            )
            for width in widths
            for name, rule in rules.items()
        }
        of_lengths = {length: pool.submit(error, length, 64, AttentionRule(0.125), "float16") for length in lengths}
        results = ({name: each.result() for name, each in group.items()} for group in (of_rules, of_lengths))
        return dict(zip(("rules", "lengths"), results, strict=True))


def checked(setting: Setting, model: str) -> dict:
    """What the check says of a model's attention, and the seconds that it takes without a compile cache."""
    import jax

    from extraction.core.errors import InvalidRequest
    from extraction.models.attention_check import check_attention
    from extraction.models.mesh import MeshShape
    from extraction.models.sharding import mesh_of
    from extraction.models.step_options import StepOptions

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(setting.tiny, Path(folder), SHAPE.with_stem(model))
    options = StepOptions((f"blocks.{config.num_layers - 1}.hook_resid_post",), 8, 2048, "bfloat16")
    begin, found = time.perf_counter(), "passed"
    try:
        check_attention(config, options, mesh_of(MeshShape(1, 1), jax.local_devices()))
    except InvalidRequest as error:
        found = str(error)
    return {"found": found, "seconds": round(time.perf_counter() - begin, 2)}


def nine_cases(setting: Setting) -> dict:
    """Microseconds per sequence of short rows."""
    from benchmarks import attention

    cases, repeats = ([(16, 1)], 1) if setting.tiny else (attention.CASES, 10)
    attention.measure_all(
        cases, repeats, lambda found: setting.save({"table": attention.table(found).splitlines(), "cases": found})
    )
    return {"machine": attention.machine()}


def packed(setting: Setting) -> dict:
    """Microseconds and TFLOP/s of packed documents."""
    from benchmarks.packed_attention import CASES, TINY, measure

    found: list[dict] = []
    for case in TINY if setting.tiny else CASES:
        measured = measure(case, 1 if setting.tiny else 10, lambda known: setting.save({"cases": [*found, known]}))
        found.append(measured)
        setting.save({"cases": found})
    return {}
