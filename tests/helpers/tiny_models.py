"""Tiny random models of each family, saved as Hugging Face does; the reference's and our values at each hook point."""

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.format.dtypes import FIXED_DTYPES
from extraction.format.records import Cursor, TokenizedRecord
from extraction.format.safetensors import decode
from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder
from extraction.models.step import Step, load_step
from extraction.models.step_options import StepOptions
from extraction.tools.parity import TorchReference, reference_class
from extraction.worker.loop import BatchLayout, run_pipeline
from tests.helpers.stored_models import stored, write_model
from tests.helpers.tiny_configs import CONFIGS

# In float32 most draws of these models differ from the reference's own float64 by a relative 1e-5; these by less.
DRAWS = {"qwen3_next": 4, "qwen3_5_moe_text": 7}
LENGTHS = (5, 40, 1, 17, 150, 33, 8)


def make_model(name: str, folder: Path, seed: int | None = None, dtype: str = "float32", **saving: object) -> Any:
    """A random model of torch, saved to `folder`. Its weights are large enough for biases and norms to matter."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(DRAWS.get(name, 0) if seed is None else seed)
    config = CONFIGS[name]()
    config.save_pretrained(folder)
    model = reference_class(folder).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        read = ("layer_scalar", "e_score_correction_bias")
        factors = (buffer for name, buffer in model.named_buffers() if name.endswith(read))
        # A norm that multiplies by 1 + weight begins at 0; around 1 it would double, and scores be large.
        offsets = {id(each) for name, each in model.named_parameters() if "norm" in name and not each.any()}
        for parameter in (*model.parameters(), *factors):
            center = 1.0 if parameter.dim() == 1 and id(parameter) not in offsets else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.2 + center)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **saving)
    # The form in chunks subtracts long sums, which costs a digit.
    code = sys.modules[type(model).__module__]
    if hasattr(code, "torch_chunk_gated_delta_rule"):
        code.torch_chunk_gated_delta_rule = code.torch_recurrent_gated_delta_rule
    # Read back, since converting the model would also have rounded its rotary frequencies.
    loader = reference_class(folder)
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def documents(lengths: Iterable[int] = LENGTHS) -> list[np.ndarray]:
    """Random documents; the same for the same lengths."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 97, length).astype(np.int32) for length in lengths]


class TinyModel:
    """A saved model, and what the reference makes of documents that are run alone.

    Without torch a few families are made with other weights; tests that ask for the reference are skipped.
    """

    def __init__(self, name: str, folder: Path, **settings: object):
        self.folder, self._model = folder, None
        if importlib.util.find_spec("torch") is None and name in stored() and not settings:
            write_model(name, folder, stored()[name]["shapes"])
        else:
            self._model = make_model(name, folder, **settings)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """{hook point: [N, width]} for `documents()`."""
        pytest.importorskip("torch")
        reference = TorchReference(self._model, self.hook_points)
        alone = [reference(tokens) for tokens in documents()]
        return {hook: np.concatenate([values[hook] for values in alone]) for hook in alone[0]}

    @property
    def hook_points(self) -> list[str]:
        """All that this model has, as its configuration says."""
        return read_model_config(self.folder).hook_points


class Zoo:
    """Models by name, each made when it is first asked for."""

    def __init__(self, folder: Path):
        self._folder, self._made = folder, {}

    def __call__(self, name: str) -> TinyModel:
        if name not in self._made:
            self._made[name] = TinyModel(name, self._folder / name)
        return self._made[name]


def load(
    folder: Path,
    hook_points: Sequence[str] | None = None,
    rows: int = 2,
    seq_len: int = 150,
    compile_cache: str | None = None,
    **options: object,
) -> Step:
    """The compiled step of a saved model, for all its hook points and in float32 unless told otherwise."""
    config = read_model_config(folder)
    if hook_points is None:
        without_mean = FIXED_DTYPES if options.get("pool") else ()
        hook_points = [name for name in config.hook_points if name.rpartition(".")[2] not in without_mean]
    settings = {"compute_dtype": "float32", "store_dtype": "float32"} | options
    options = StepOptions(tuple(hook_points), rows, seq_len, **settings)
    return load_step(ModelFolder(folder, str(folder), None), config, options, compile_cache)


def run(step: Step, docs: Sequence[np.ndarray], rows: int = 2, seq_len: int = 150) -> tuple[dict, list[dict]]:
    """Values of all documents in order, {hook point: [N, width]}, and the sums of each step."""
    records = [TokenizedRecord(i, str(i), tokens) for i, tokens in enumerate(docs)]
    steps = []
    for batch in pack_batches(records, Cursor(0, 0), BatchShape(1, rows, seq_len), "split"):
        slots = batch.slots.astype(np.int32)
        grids = batch.tokens[0], batch.segment_ids[0], batch.positions[0]
        steps.append(step(*grids, slots, targets=batch.targets[0]).get())
    values = {name: np.concatenate([found[name] for found, _ in steps]) for name in steps[0][0]}
    return values, [sums for _, sums in steps]


def run_means(step: Step, docs: Sequence[np.ndarray], dropped: Sequence[int], rows: int = 2, seq_len: int = 150):
    """What is stored, by name, with a row for the mean over each window; tokens of these ids are left out of it."""
    records = [TokenizedRecord(i, str(i), tokens) for i, tokens in enumerate(docs)]
    selector, stored = Selector(Selection.parse("mean", True), tuple(dropped)), []
    batches = pack_batches(records, Cursor(0, 0), BatchShape(1, rows, seq_len), "split", selector)
    layout = BatchLayout(0, step.widths, np.dtype(np.float32))
    run_pipeline(batches, layout, step, 0, lambda batch, data, *rest: stored.append(decode(data).arrays))
    return {name: np.concatenate([arrays[name] for arrays in stored]) for name in (*step.widths, "mean_over")}


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative distance of two arrays of one shape."""
    known = ~np.isnan(theirs)
    assert ours.shape == theirs.shape and np.array_equal(np.isnan(ours), ~known)
    return np.linalg.norm(ours[known].astype(np.float64) - theirs[known]) / np.linalg.norm(theirs[known])
