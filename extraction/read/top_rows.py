"""The rows of a run that a direction responds to most.

In: an `ActivationReader`, a hook point, a direction. Out: the k rows with the largest products, in falling order.
Guarantee: products are float32 sums of the stored values as they are read; of equal ones the first in the run comes
first; NaN is never among them. Cost: one pass over the run: reading and products overlap, one batch ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes
import numpy as np

from ..core.errors import InvalidRequest

if TYPE_CHECKING:
    from jaxtyping import Float, Num

    from .reader import ActivationReader
    from .row_types import Batch

_VALUES = 1 << 17  # that are widened together


class TopRow(NamedTuple):
    """A row: its product with the direction, its record, its place there and its token id."""

    value: float
    stream: int
    record: int
    record_id: str
    position: int
    token: int


def top_rows(reader: ActivationReader, hook_point: str, direction: Float[np.ndarray, " width"], k: int) -> list[TopRow]:
    """Return the `k` rows with the largest products; `direction` is [width].

    Raises InvalidRequest for a direction of another width, or that has values that are not finite, and for no rows.
    """
    if k < 1:
        raise InvalidRequest(f"{k} rows: give 1 or more")
    found: list[TopRow] = []
    for batch in reader.batches([hook_point]):
        values = project(batch.activations[hook_point], direction, hook_point)
        found += _best(batch, values, k, found[-1].value if len(found) == k else -np.inf)
        found = sorted(found, key=lambda row: -row.value)[:k]
    return found


def project(
    rows: Num[np.ndarray, "n width"], direction: Float[np.ndarray, " _"], hook_point: str
) -> Float[np.ndarray, " n"]:
    """Return float32 [n], the products of rows [n, width] with the direction. Raises InvalidRequest."""
    wanted = np.ascontiguousarray(direction, np.float32)
    if wanted.shape != rows.shape[1:]:
        raise InvalidRequest(f"the direction has the shape {wanted.shape}, {hook_point} has the width {rows.shape[1]}")
    if not np.isfinite(wanted).all():
        raise InvalidRequest("the direction has values that are not finite")
    with np.errstate(invalid="ignore", over="ignore"):  # stored rows may have infinities
        return np.concatenate([np.zeros(0, np.float32), *(part @ wanted for part in widened_parts(rows))])


def widened_parts(rows: Num[np.ndarray, "n width"]) -> Iterator[Float[np.ndarray, "_ width"]]:
    """Yield rows as float32, some at a time, each valid until the next.

    Those of bfloat16 are made of its bits in a buffer that stays in the cache, faster than by NumPy's conversion.
    """
    step = max(1, _VALUES // max(rows.shape[1], 1))
    buffer = np.zeros((min(step, len(rows)), rows.shape[1]), np.float32)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        if part.dtype == ml_dtypes.bfloat16:
            buffer.view(np.uint16)[: len(part), 1::2] = part.view(np.uint16)  # the upper half of each float32
        else:
            buffer[: len(part)] = part
        yield buffer[: len(part)]


def _best(batch: Batch, values: np.ndarray, k: int, least: float) -> Iterator[TopRow]:
    """Yield up to `k` rows of a batch whose values are above `least`, in the order of the run."""
    above = np.flatnonzero(values > least)
    if len(above) > k:
        above = np.sort(above[np.argsort(-values[above], kind="stable")[:k]])
    records = np.searchsorted(batch.record_offsets, above, side="right") - 1
    for row, record in zip(above.tolist(), records.tolist(), strict=True):
        yield TopRow(
            float(values[row]), batch.ref.stream, int(batch.record_index[record]), batch.record_ids[record],
            int(batch.positions[row]), int(batch.tokens[row]),
        )  # fmt: skip
