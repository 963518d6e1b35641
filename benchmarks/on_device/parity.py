"""Parity on the device: three families with heads of 64, 128 and 256, in bfloat16 and float32.

In: a setting. Out: for each family and dtype what `extract_activations.py parity --json` finds: relative errors against
transformers in float32 on the CPU. Cost: a process and two small models for each.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.device import ROOT, Setting
from benchmarks.worker import make_stream
from tests.helpers.workers import text_of, write_corpus

TINY = ROOT / "examples/tiny-lm"
COMMON = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2048}


def configs() -> dict:
    """Configurations with the head widths of the fused kernel."""
    from transformers import Gemma2Config, LlamaConfig, Qwen2Config

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "qwen2": Qwen2Config(**COMMON, **heads),
        "llama": LlamaConfig(**COMMON, **heads, head_dim=128),
        "gemma2": Gemma2Config(**COMMON, **heads, head_dim=256, query_pre_attn_scalar=256, sliding_window=64),
    }


def make_model(config: object, folder: Path) -> Path:
    """A random model, saved as Hugging Face does, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 1.0))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


def parity(setting: Setting) -> dict:
    """Compare each family in each dtype."""
    try:
        import torch
    except ImportError as error:
        return {"left_out": str(error)}
    setting.save({"torch": torch.__version__})
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if setting.tiny else "cuda")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_stream(write_corpus(work / "corpus", [text_of(i, 60) for i in range(8)]), work / "streams")
        chosen = list(configs().items())[: 1 if setting.tiny else None]
        models = {family: make_model(config, work / family) for family, config in chosen}
        with ThreadPoolExecutor() as pool:  # none of them takes the whole memory of the GPU, or all cores
            os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_NUM_THREADS": "2"}
            running = {
                f"{family} {dtype}": pool.submit(compare, model, work / "streams", dtype)
                for family, model in models.items()
                for dtype in (("bfloat16",) if setting.tiny else ("bfloat16", "float32"))
            }
            for name, each in running.items():
                setting.save({name: each.result()})
    return {}


def compare(model: Path, streams: Path, dtype: str) -> dict:
    """One call of `parity`, its report or its complaint."""
    command = [sys.executable, ROOT / "extract_activations.py", "parity", "--model", model, "--streams", streams]
    options = ["--layers=all", "--seq-len=256", f"--compute-dtype={dtype}", "--store-dtype=float32", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode in (0, 1) and done.stdout else {"error": done.stderr[-2000:]}
