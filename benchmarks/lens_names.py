"""Which hook of TransformerLens has the tensor of each hook point, found by comparing values.

In: a model of transformers, and the reference's values of some documents. Out: for each hook point the error of the
hook with its name, and the hooks that have the same tensor. Needs transformer-lens, whose bridge changes the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.parity_page import SAME


@dataclass(frozen=True)
class Names:
    """Of one hook point: the relative error of the hook of its name, None without one; all hooks with its tensor."""

    same_name: float | None
    equal: tuple[str, ...]


def is_installed() -> bool:
    """Whether TransformerLens can be compared with."""
    return find_spec("transformer_lens") is not None


def names_of(
    model: Any, tokenizer: Any, docs: Sequence[np.ndarray], reference: Mapping[str, np.ndarray]
) -> dict[str, Names]:
    """Names for each hook point of `reference`, {hook point: [N, width]} for the documents [t] one after the other."""
    theirs, found = _values(model, tokenizer, docs), {}
    for hook, values in reference.items():
        errors = {name: _error(tensor, values) for name, tensor in theirs.items() if tensor.shape == values.shape}
        equal = (name for name, error in errors.items() if error < SAME)
        other = 1.0 if hook in theirs else None  # of another width: nothing in common
        found[hook] = Names(errors.get(hook, other), tuple(equal))
    return found


def _values(model: Any, tokenizer: Any, docs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All hooks with one row for each token, {hook: [N, width]}."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for tokens in docs:
            _, cache = bridge.run_with_cache(torch.tensor(np.asarray(tokens, np.int64))[None])
            for name, value in cache.items():
                if isinstance(value, torch.Tensor) and value.dim() > 1:
                    rows = _rows(value.float().numpy(), len(tokens))
                    if rows is not None:
                        found.setdefault(name, []).append(rows)
    whole = (name for name, parts in found.items() if len(parts) == len(docs) and len({p.shape[1] for p in parts}) == 1)
    return {name: np.concatenate(found[name]) for name in whole}


def _rows(value: np.ndarray, length: int) -> np.ndarray | None:
    """Return a tensor as [t, width], also one with heads before tokens or without an axis for documents."""
    if value.ndim == 4 and value.shape[0] == 1 and value.shape[1] != length == value.shape[2]:
        value = value.swapaxes(1, 2)
    value = value[0] if value.ndim > 2 and value.shape[0] == 1 else value
    return value.reshape(length, -1) if value.shape[0] == length else None


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    known = ~np.isnan(theirs)
    norm = np.linalg.norm(theirs[known].astype(np.float64))
    return float(np.linalg.norm(ours[known].astype(np.float64) - theirs[known]) / max(norm, np.finfo(np.float64).tiny))
