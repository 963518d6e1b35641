"""A whole worker on the device: Qwen2.5-7B's shape, random weights, three layers, storage on the local disk.

In: a setting. Out: tokens/s of the run and its share of the measured rate of products, padding, share outside the step,
seconds to the first commit. Cost: 15 GB of weights on the disk, and 21 KB for each token.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.device import ROOT, Setting
from benchmarks.on_device.forward import SHAPE
from benchmarks.packing import like_fineweb
from benchmarks.worker import make_stream, run_worker
from tests.helpers.workers import text_of, write_corpus

TINY = ROOT / "examples/tiny-lm"
FLAGS = {"layers": "9,18,27", "seq-len": 2048, "batch-size": 8, "steps-per-batch": 4, "compute-dtype": "bfloat16"}
TINY_FLAGS = {"layers": "1,2,3", "seq-len": 128, "batch-size": 2, "steps-per-batch": 2}


def tensors_of(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight of a Qwen2, its head left out."""
    width, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_width = width // heads * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, size in (("q", width), ("k", kv_width), ("v", kv_width)):
            yield f"{at}.self_attn.{name}_proj.weight", (size, width)
            yield f"{at}.self_attn.{name}_proj.bias", (size,)
        yield f"{at}.self_attn.o_proj.weight", (width, width)
        for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp))):
            yield f"{at}.mlp.{name}_proj.weight", shape
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)


def make_model(folder: Path) -> Path:
    """Random bfloat16 weights in one safetensors file, written from one block of numbers, and a small tokenizer."""
    import ml_dtypes

    config = json.loads(SHAPE.read_text())
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in tensors_of(config):
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    block = (np.random.default_rng(0).standard_normal(1 << 24, np.float32) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end > 0:
            file.write(block[:end])
            end -= len(block)
    return folder


def worker(setting: Setting) -> dict:
    """Run a worker; on a GPU twice: the second one finds its compiled step in the cache."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if setting.tiny else "cuda")
    work = make_inputs(setting.tiny)
    model, flags = (TINY, TINY_FLAGS) if setting.tiny else (work / "model", FLAGS)
    setting.save({"flags": flags})
    try:
        for state in ("cold",) if setting.tiny else ("cold", "warm"):
            found = run_worker(model, work / "streams", work / state, flags, work / "cache")
            setting.save({state: found | share(setting, found["tokens_per_second"])})
            shutil.rmtree(work / state)
    finally:
        shutil.rmtree(work)
    return {}


def make_inputs(tiny: bool) -> Path:
    """A folder with a stream and, unless it is the tiny one, a model; what an earlier call made whole is used."""
    folder = Path(tempfile.gettempdir()) / ("device-inputs-tiny" if tiny else "device-inputs")
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        sizes = [len(record.tokens) for record in like_fineweb(20 if tiny else 900)]
        texts = [text_of(number, max(1, size // 2)) for number, size in enumerate(sizes)]
        make_stream(write_corpus(folder / "corpus", texts), folder / "streams")
        if not tiny:
            make_model(folder / "model")
        (folder / "made").touch()
    return folder


def share(setting: Setting, rate: float) -> dict:
    """The rate as a share of the products' rate, by the operations of the same forward pass."""
    forward = setting.known("forward")
    three, ceiling = forward.get("three_layers"), setting.known("ceilings").get("jax_matmul_tflops")
    if not three or not ceiling:
        return {}
    flops = three["flops"] / (forward["rows"] * forward["seq_len"])
    return {"mfu": rate * flops / 1e12 / ceiling}
