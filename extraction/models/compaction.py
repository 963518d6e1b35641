"""What is stored of a captured tensor, made on the device: rows gathered, cast or scaled, and what is known of them.

In: [B, T, width] in the capture dtype, and which slots hold real tokens. Out: a `Compacted`. Guarantee: statistics are
of the values as a reader sees them, that is after rounding to the store dtype; the scale of a row is of all its
columns, whichever devices hold them; the rest needs no exchange between devices. A value of int8 is within half a step
of what was computed, one of float8 within 1/16 of it; a row with a value that is not finite has scale NaN, and one
whose scale would be below the smallest normal float32 is stored as zeros with scale 0.

Cost: one gather, and reductions over the gathered rows that each read what is stored and write next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..format.dtypes import LARGEST_CODE
from .sharding import Layout

_SMALLEST = float(np.finfo(np.float32).tiny)


class Slots(NamedTuple):
    """Of each group of devices: which of its slots are wanted, int32 [groups, size], and how many, [groups]."""

    at: jax.Array
    counts: jax.Array


class Compacted(NamedTuple):
    """One hook point of a step. Of each group of devices the first `counts` rows are real, the others are padding.

    values [groups, size, width] in the store dtype; sum and sum_of_squares float32 [groups, width] over the real rows;
    squared_norm and largest float32 [groups, parts, size]: of each row the sum of squares and the largest |x|, of each
    part of the columns, one for each device of a group; without a scale that |x| is the one that was computed, before it
    was rounded to the store dtype. Where rows have a scale: scale float32 [groups, size]; and like
    squared_norm, in units of the scale's square, so that it is finite however large x is, squared_error, of what is
    stored against what was computed, and power, of the latter; 0 where the scale is 0 or NaN.
    """

    values: jax.Array
    sum: jax.Array
    sum_of_squares: jax.Array
    squared_norm: jax.Array
    largest: jax.Array
    scale: jax.Array | None = None
    squared_error: jax.Array | None = None
    power: jax.Array | None = None


@dataclass(frozen=True)
class Compaction:
    """How rows become what is stored: in which dtype, and on which devices; sums over rows are made in `chunks`."""

    dtype: str
    chunks: int
    layout: Layout

    def gather(self, tensor: jax.Array, slots: Slots) -> jax.Array:
        """For each group of devices the rows of its part of [B, T, width] at its slots: [groups, size, width]."""
        groups, size = slots.at.shape
        own = self.layout.compacted(tensor.reshape(groups, size, tensor.shape[-1]))
        return self.layout.compacted(jax.vmap(lambda values, at: values[at])(own, slots.at))

    def store(self, rows: jax.Array, counts: jax.Array) -> Compacted:
        """[groups, size, width] as they are stored, with their statistics over the first `counts` of each group."""
        real = jnp.arange(rows.shape[1])[None, :] < counts[:, None]
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
        """sum, sum_of_squares and squared_norm of [groups, size, width], of which three copies are given."""
        for_sum, for_squares = (
            _wide(jnp.where(real[:, :, None], copy, jnp.zeros((), copy.dtype)), scale) for copy in values[:2]
        )
        return self._sum(for_sum), self._sum(jnp.square(for_squares)), self._by_part(_wide(values[2], scale))

    def _largest(self, rows: jax.Array) -> jax.Array:
        """float32 [groups, parts, size]"""
        return self.layout.by_part(jnp.abs(self._parts(rows)).max(axis=-1).astype(jnp.float32))

    def _parts(self, rows: jax.Array) -> jax.Array:
        """[groups, size, parts, width of a part]"""
        return rows.reshape(*rows.shape[:2], self.layout.parts(rows), -1)

    def _by_part(self, rows: jax.Array) -> jax.Array:
        """Sums of squares, [groups, parts, size]"""
        return self.layout.by_part(jnp.square(self._parts(rows)).sum(axis=-1))

    def _sum(self, rows: jax.Array) -> jax.Array:
        """[groups, n, width] over n, chunk by chunk: a long chain of additions rounds at each link."""
        partial = rows.reshape(len(rows), self.chunks, -1, rows.shape[-1]).sum(axis=2)
        return jax.lax.optimization_barrier(partial).sum(axis=1)  # else the compiler makes one chain of both


def _apart(x: jax.Array, copies: int) -> tuple[jax.Array, ...]:
    """Names for one array that the compiler takes for different ones. So what is done to each is done as it is read
    and never written, and nothing is computed from what x was before its last rounding."""
    return jax.lax.optimization_barrier((x,) * copies)


def _wide(values: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Stored values as a reader sees them, in float32."""
    wide = values.astype(jnp.float32)
    return wide if scale is None else wide * scale[:, :, None]


def _scale_of(rows: jax.Array, dtype: str) -> jax.Array:
    """float32 [groups, size]: of each row the largest value over the largest code."""
    rows = rows.astype(jnp.float32)
    scale = jnp.where(jnp.isfinite(rows), jnp.abs(rows), jnp.inf).max(axis=-1) / LARGEST_CODE[dtype]
    return jnp.where(jnp.isfinite(scale), jnp.where(scale < _SMALLEST, 0.0, scale), jnp.nan)


def _over(rows: jax.Array, scale: jax.Array) -> jax.Array:
    """float32 [groups, size, width] in units of the scale; zeros where there is no scale to divide by."""
    usable = (scale > 0)[:, :, None]
    return jnp.where(usable, rows.astype(jnp.float32) / jnp.where(usable, scale[:, :, None], 1.0), 0.0)


def _codes_of(rows: jax.Array, scale: jax.Array, dtype: str) -> jax.Array:
    """[groups, size, width] in `dtype`."""
    codes = jnp.clip(_over(rows, scale), -LARGEST_CODE[dtype], LARGEST_CODE[dtype])
    return (jnp.round(codes) if dtype == "int8" else codes).astype(dtype)
