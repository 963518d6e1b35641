"""The results of a step on their way from the devices to the host.

In: a `Compacted` for each hook point, and the slots of each group of devices. Out: NumPy arrays in the order of the
slots. Guarantee: reading waits only for its own step; values are returned part by part, as the devices hold them,
without a copy. Cost: the transfer, which begins when the step is dispatched.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from ..format.statistics import Facts, unscaled
from .compaction import Compacted
from .devices import device_errors

_PARTS = 16  # values are cut to a multiple of this part of all slots before they cross to the host


class Part(NamedTuple):
    """A part of a step's values on the host: [places, columns] of a hook point; `places` index the slots."""

    hook_point: str
    places: np.ndarray
    columns: slice
    values: np.ndarray


@dataclass
class StepOutput:
    """The results of a dispatched step. `_places` has for each group of devices the indices of its slots."""

    _arrays: dict[str, Compacted]
    _places: list[np.ndarray]

    def parts(self) -> list[Part]:
        """Wait for the step and return the values of each device, without a copy."""
        with device_errors():
            return [
                Part(name, places, shard.index[2], np.asarray(shard.data)[0, : len(places)])
                for name, found in self._arrays.items()
                for shard in found.values.addressable_shards
                if shard.replica_id == 0
                for places in [self._places[shard.index[0].start or 0]]
            ]

    def facts(self) -> dict[str, Facts]:
        """Wait for the step and return the statistics of each hook point over all n rows."""
        with device_errors():
            return {name: self._facts(found) for name, found in self._arrays.items()}

    def _facts(self, found: Compacted) -> Facts:
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are counted elsewhere
            norms = self._in_order(np.sqrt(np.asarray(found.squared_norm).sum(axis=1)))
            largest = self._in_order(np.asarray(found.largest).max(axis=1))
            total, squares = (np.asarray(of_groups).sum(axis=0) for of_groups in (found.sum, found.sum_of_squares))
            if found.scale is None:
                stored = largest.astype(found.values.dtype).astype(np.float32)
                lost = largest[np.isinf(stored) & np.isfinite(largest)]
                return Facts(total, squares, norms, stored, overflow=float(lost.max(initial=0.0)))
        scales = self._in_order(np.asarray(found.scale))
        units = np.square(np.nan_to_num(scales).astype(np.float64))
        error, power = (
            float((units * self._in_order(np.asarray(part).sum(axis=1))).sum())
            for part in (found.squared_error, found.power)
        )
        return Facts(total, squares, norms, largest, scales, error, power)

    def _in_order(self, of_groups: np.ndarray) -> np.ndarray:
        """Return [n], in the order of the slots, of [groups, size]."""
        ordered = np.empty(sum(map(len, self._places)), of_groups.dtype)
        for places, found in zip(self._places, of_groups, strict=True):
            ordered[places] = found[: len(places)]
        return ordered

    def get(self) -> tuple[dict[str, np.ndarray], dict[str, Facts]]:
        """Wait for the step and return {hook point: [n, width]}, float32 if rows have a scale, and the statistics."""
        n, facts = sum(map(len, self._places)), self.facts()
        values = {name: np.empty((n, of.values.shape[-1]), of.values.dtype) for name, of in self._arrays.items()}
        for name, places, columns, part in self.parts():
            values[name][:, columns][places] = part
        return {name: unscaled(values[name], facts[name].scales) for name in values}, facts


def start_transfer(arrays: Compacted, num_rows: int) -> Compacted:
    """Send the results to the host, the values cut to a part that holds the real rows of every group."""
    size = arrays.values.shape[1]
    part = -(-size // _PARTS)
    kept = min(-(-int(num_rows) // part) * part, size)
    if jax.default_backend() != "cpu" and kept < size:
        arrays = arrays._replace(values=arrays.values[:, :kept])
    for array in arrays:
        if array is not None:
            array.copy_to_host_async()
    return arrays
