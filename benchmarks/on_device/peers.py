"""What transformers does with the same shape on the device: SDPA, bfloat16, padded batches, three layers kept.

In: a setting. Out: real tokens/s, padding and why a form is left out: batches padded to their longest document, and
batches padded to T and compiled. Captured values of real tokens come to the host as bfloat16. vLLM is not compared: its
wheels do not fit into what one call carries. Cost: 14 GB of weights, made on the device.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.device import ROOT, Setting
from benchmarks.on_device.forward import SHAPE
from benchmarks.packing import like_fineweb

TINY = ROOT / "examples/tiny-lm/config.json"


def batches(rows: int, length: int, count: int, padded_to: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and mask of batches of documents with FineWeb's lengths, cut at `length`."""
    rng = np.random.default_rng(0)
    sizes = [min(len(record.tokens), length) for record in like_fineweb(rows * count)]
    for start in range(0, len(sizes), rows):
        each = np.array(sizes[start : start + rows])
        mask = (np.arange(padded_to or each.max())[None] < each[:, None]).astype(np.int64)
        yield rng.integers(1, 1000, mask.shape), mask


def load(path: Any, device: str) -> Any:
    """A random model of this shape on the device."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(path)
    with torch.device(device):
        return AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def rate(model: Callable, given: list[tuple[np.ndarray, np.ndarray]], layers: tuple[int, ...], device: str) -> dict:
    """Real tokens per second of all batches after the first."""
    import torch

    tokens, slots, begin = 0, 0, 0.0
    for number, (ids, mask) in enumerate(given):
        if number == 1:
            tokens, slots, begin = 0, 0, time.perf_counter()
        ids, mask = (torch.from_numpy(array).to(device) for array in (ids, mask))
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        kept = [hidden[layer + 1][mask.bool()].to(torch.bfloat16).cpu() for layer in layers]
        tokens, slots = tokens + len(kept[0]), slots + mask.numel()
    seconds = time.perf_counter() - begin
    return {"tokens_per_second": tokens / seconds, "padding": 1 - tokens / slots, "seconds": seconds}


def transformers(setting: Setting) -> dict:
    """Measure both forms."""
    try:
        import torch
    except ImportError as error:
        return {"left_out": str(error)}
    import transformers as library

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, length, count = (2, 64, 3) if setting.tiny else (8, 2048, 12)
    model = load(TINY if setting.tiny else SHAPE, device)
    last = model.config.num_hidden_layers - 1
    layers = (last // 3, 2 * last // 3, last)
    setting.save({"torch": torch.__version__, "transformers": library.__version__, "layers": layers})
    setting.save({"padded": rate(model, list(batches(rows, length, count, None)), layers, device)})
    compiled = torch.compile(model, backend="eager" if setting.tiny else "inductor")
    try:
        setting.save({"compiled": rate(compiled, list(batches(rows, length, count, length)), layers, device)})
    except Exception as error:  # without a C++ compiler, say; the padded form has its numbers
        setting.save({"compiled": {"left_out": f"{type(error).__name__}: {error}"[:300]}})
    return {}
