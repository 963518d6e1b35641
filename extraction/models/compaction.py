"""Compaction on the device: captured tensors become stored rows with their scales and statistics.

In: [B, T, width] in the capture dtype, and the slots of real tokens. Out: a `Compacted`. Guarantee: statistics are of
the stored values, after rounding to the store dtype. The scale of a row covers all its columns on all devices; nothing
else is exchanged between devices. A value of int8 is within half a step of the computed value, one of float8 within
1/16 of it. A row with a value that is not finite has scale NaN. A row whose scale would be below the smallest normal
float32 is stored as zeros with scale 0.

Cost: one gather, and reductions that read the gathered rows and write almost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..format.dtypes import LARGEST_CODE
from .sharding import Layout

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num

_SMALLEST = float(np.finfo(np.float32).tiny)


class Slots(NamedTuple):
    """The slots to gather of each group of devices: int32 [groups, size], and their counts, [groups]."""

    at: Int[jax.Array, "groups size"]
    counts: Int[jax.Array, " groups"]


class Compacted(NamedTuple):
    """One hook point of a step. Of each group of devices the first `counts` rows are real, the others are padding.

    All but `values` are float32. `parts` are the parts of the columns, one for each device of a group.

    Attributes:
        values: [groups, size, width] in the store dtype.
        sum, sum_of_squares: [groups, width], over the real rows.
        squared_norm: [groups, parts, size], the sum of squares of each row.
        largest: [groups, parts, size], the largest |x| of each row; without a scale, before rounding to the store
            dtype.
        scale: [groups, size], for int8 and float8.
        squared_error: [groups, parts, size], of stored against computed values, in units of the scale's square so that
            it is finite; 0 if the scale is 0 or NaN.
        power: the same of the computed values.
    """

    values: Num[jax.Array, "groups size width"]
    sum: Float[jax.Array, "groups width"]
    sum_of_squares: Float[jax.Array, "groups width"]
    squared_norm: Float[jax.Array, "groups parts size"]
    largest: Float[jax.Array, "groups parts size"]
    scale: Float[jax.Array, "groups size"] | None = None
    squared_error: Float[jax.Array, "groups parts size"] | None = None
    power: Float[jax.Array, "groups parts size"] | None = None


@dataclass(frozen=True)
class Compaction:
    """The rule that makes stored rows: dtype and layout on the devices. Sums over rows are made in `chunks`.

    `skips_nan`: rows that are NaN, of width 1, count for no sum.
    """

    dtype: str
    chunks: int
    layout: Layout
    skips_nan: bool = False

    def gather(self, tensor: Num[jax.Array, "B T width"], slots: Slots) -> Num[jax.Array, "groups size width"]:
        """Return [groups, size, width], the rows of [B, T, width] at the slots of each group of devices."""
        groups, size = slots.at.shape
        own = self.layout.compacted(tensor.reshape(groups, size, tensor.shape[-1]))
        return self.layout.compacted(jax.vmap(lambda values, at: values[at])(own, slots.at))

    def to_stored(self, rows: Num[jax.Array, "groups size width"], counts: Int[jax.Array, " groups"]) -> Compacted:
        """Return [groups, size, width] as stored, with statistics over the first `counts` rows of each group."""
        real = jnp.arange(rows.shape[1])[None, :] < counts[:, None]
        if self.skips_nan:
            real &= ~jnp.isnan(rows[:, :, 0])
        if self.dtype not in LARGEST_CODE:
            to_store, computed = _apart(rows, 2)
            values = _apart(to_store.astype(self.dtype), 4)
            total, squares, norms = self._statistics(values[1:], real)
            return Compacted(values[0], total, squares, norms, self._largest(computed))
        for_scale, for_codes, for_error, for_power = _apart(rows, 4)
        scale = _scale_of(for_scale, self.dtype)
        codes = _apart(_codes_of(for_codes, scale, self.dtype), 6)
        total, squares, norms = self._statistics(codes[2:5], real, scale)
        return Compacted(
            values=codes[0],
            sum=total,
            sum_of_squares=squares,
            squared_norm=norms,
            largest=self._largest(_wide(codes[5], scale)),
            scale=scale,
            squared_error=self._by_part(_over(for_error, scale) - codes[1].astype(jnp.float32)),
            power=self._by_part(_over(for_power, scale)),
        )

    def _statistics(
        self, values: Sequence[jax.Array], real: jax.Array, scale: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return sum, sum_of_squares and squared_norm of [groups, size, width], given in three copies."""
        # Of padding the scale, too, may be no number: it is that of any slot.
        for_sum, for_squares = (jnp.where(real[:, :, None], _wide(copy, scale), 0.0) for copy in values[:2])
        return self._sum(for_sum), self._sum(jnp.square(for_squares)), self._by_part(_wide(values[2], scale))

    def _largest(self, rows: jax.Array) -> jax.Array:
        """Return float32 [groups, parts, size], the largest |x| of each row."""
        return self.layout.by_part(jnp.abs(self._parts(rows)).max(axis=-1).astype(jnp.float32))

    def _parts(self, rows: jax.Array) -> jax.Array:
        """Return [groups, size, parts, width of a part]."""
        return rows.reshape(*rows.shape[:2], self.layout.parts(rows), -1)

    def _by_part(self, rows: jax.Array) -> jax.Array:
        """Return sums of squares, [groups, parts, size]."""
        return self.layout.by_part(jnp.square(self._parts(rows)).sum(axis=-1))

    def _sum(self, rows: jax.Array) -> jax.Array:
        """Sum [groups, n, width] over n, chunk by chunk: a long chain of additions loses precision."""
        partial = rows.reshape(len(rows), self.chunks, -1, rows.shape[-1]).sum(axis=2)
        return jax.lax.optimization_barrier(partial).sum(axis=1)  # else the compiler makes one chain of both


def _apart(x: jax.Array, copies: int) -> tuple[jax.Array, ...]:
    """Return copies of x that the compiler treats as different arrays.

    Each use is then fused with its own read, and no use sees x before its last rounding.
    """
    return jax.lax.optimization_barrier((x,) * copies)


def _wide(values: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Return stored values as a reader sees them, in float32."""
    wide = values.astype(jnp.float32)
    return wide if scale is None else wide * scale[:, :, None]


def _scale_of(rows: jax.Array, dtype: str) -> jax.Array:
    """Return float32 [groups, size], for each row its largest |x| divided by the largest code."""
    rows = rows.astype(jnp.float32)
    scale = jnp.where(jnp.isfinite(rows), jnp.abs(rows), jnp.inf).max(axis=-1) / LARGEST_CODE[dtype]
    return jnp.where(jnp.isfinite(scale), jnp.where(scale < _SMALLEST, 0.0, scale), jnp.nan)


def _over(rows: jax.Array, scale: jax.Array) -> jax.Array:
    """Return float32 [groups, size, width] in units of the scale; zeros if the scale is 0 or NaN."""
    usable = (scale > 0)[:, :, None]
    return jnp.where(usable, rows.astype(jnp.float32) / jnp.where(usable, scale[:, :, None], 1.0), 0.0)


def _codes_of(rows: jax.Array, scale: jax.Array, dtype: str) -> jax.Array:
    """Return the codes, [groups, size, width] in `dtype`."""
    codes = jnp.clip(_over(rows, scale), -LARGEST_CODE[dtype], LARGEST_CODE[dtype])
    return (jnp.round(codes) if dtype == "int8" else codes).astype(dtype)
