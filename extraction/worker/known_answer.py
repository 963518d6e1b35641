"""The known answer of a run: what its compiled step gives for a fixed input, compared by every worker at its start.

In: a loaded step. Out: an answer, which the start that begins a run stores in `run.json`. Guarantee: a worker whose
step gives values further from the run's than rounding explains does not begin. Cost: one step.
"""

import ml_dtypes
import numpy as np

from ..core.errors import ConfigurationMismatch
from ..core.logs import say
from ..format.digests import digest_of
from ..format.dtypes import LEAST_LOSS, LOSS_HOOK
from ..format.run_config import KnownAnswer
from ..models.hooks import EXPERT_INDICES, suffix_of
from ..models.step import Step

_ROWS = 16  # of which the answer is made
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}  # of the norm of a row, by the compute dtype


def answer_of(step: Step, vocab_size: int) -> KnownAnswer:
    """Run the step on tokens that count up, one record in each sequence, and return what it gives for some of them."""
    options = step.options
    shape = (options.batch_size, options.seq_len)
    tokens = (np.arange(options.num_slots, dtype=np.int64) * 7919 % vocab_size).astype(np.int32).reshape(shape)
    positions = np.broadcast_to(np.arange(options.seq_len, dtype=np.int32), shape)
    ends = np.arange(1, options.batch_size + 1) * options.seq_len - 1
    slots = ends if options.pool else np.linspace(0, options.num_slots - 1, _ROWS).astype(np.int64)
    slots = np.unique(slots)[:_ROWS].astype(np.int32)
    pooled = np.ones(shape, bool) if options.pool else None
    targets = np.concatenate([tokens[:, 1:], np.full((options.batch_size, 1), -1, np.int32)], axis=1)
    values, _ = step(tokens, np.ones(shape, np.int32), positions, slots, pooled, targets).get()
    data = b"".join(np.ascontiguousarray(values[name]).tobytes() for name in sorted(values))
    compared = (name for name in sorted(values) if suffix_of(name) != EXPERT_INDICES)  # rounding chooses among experts
    return KnownAnswer(digest_of(data), {name: _norms(values[name]) for name in compared})


def _norms(values: np.ndarray) -> list[float]:
    """Return the norm of each row, in which an infinity counts as the largest number of its dtype, and NaN as 0."""
    largest = 0.0 if values.dtype.kind == "i" else float(ml_dtypes.finfo(values.dtype).max)
    finite = np.nan_to_num(values.astype(np.float64), posinf=largest, neginf=-largest)
    return [float(f"{norm:.6g}") for norm in np.linalg.norm(finite, axis=1)]


def check_answer(stored: KnownAnswer, own: KnownAnswer, compute_dtype: str) -> None:
    """Compare the answer of this worker with that of the run; warn of other bytes.

    Raises ConfigurationMismatch if rounding does not explain the difference.
    """
    if own.digest == stored.digest or not stored.digest:
        return
    worst, name = max(((_distance(stored, own, name), name) for name in own.norms), default=(0.0, ""))
    most = TOLERANCES[compute_dtype]
    if not worst <= most:
        raise ConfigurationMismatch(
            f"the compiled step gives other values than that of the run: {name} of the known answer is off by "
            f"{worst:.2g} of its norm, and rounding by at most {most:g}; is this machine or its software faulty?"
        )
    say(f"the compiled step rounds otherwise than that of the run, the known answer is off by {worst:.1g}", "WARNING")


def _distance(stored: KnownAnswer, own: KnownAnswer, name: str) -> float:
    """Return the largest relative difference of the norms of a hook point."""
    ours, theirs = own.norms[name], stored.norms.get(name, [])
    if len(ours) != len(theirs):
        return float("inf")
    least = LEAST_LOSS if name == LOSS_HOOK else 1e-30
    return max((abs(a - b) / max(abs(a), abs(b), least) for a, b in zip(ours, theirs, strict=True)), default=0.0)
