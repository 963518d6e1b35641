"""The results of a step on their way from the devices to the host.

In: a `Compacted` for each buffer, and the slots of each group of devices. Out: NumPy arrays in the order of the
slots. Guarantee: reading waits only for its own step; values are returned part by part, as the devices hold them,
without a copy. Cost: the transfer, which begins when the step is dispatched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from ..format.statistics import Facts, unscaled
from .capture_plan import Buffer, Capture
from .compaction import Compacted
from .devices import device_errors

if TYPE_CHECKING:
    from jaxtyping import Int, Num

_PARTS = 16  # values are cut to a multiple of this part of all slots before they cross to the host


class ValuesPart(NamedTuple):
    """A part of a step's values on the host: [places, columns] of a hook point; `places` index the slots."""

    hook_point: str
    places: Int[np.ndarray, " n"]
    columns: slice
    values: Num[np.ndarray, "n columns"]


@dataclass
class StepOutput:
    """The results of a dispatched step.

    Attributes:
        _arrays: the results of each buffer, with a leading axis of its places.
        _captures: the buffer of each hook point, and its place there.
        _places: for each group of devices the indices of its slots.
    """

    _arrays: Mapping[Buffer, Compacted]
    _captures: Mapping[str, Capture]
    _places: list[np.ndarray]

    def parts(self) -> list[ValuesPart]:
        """Wait for the step and return the values of each device, without a copy."""
        found = []
        with device_errors():
            for buffer, results in self._arrays.items():
                indices = {name: at.place for name, at in self._captures.items() if at.buffer == buffer}
                for shard in results.values.addressable_shards:
                    if shard.replica_id == 0:
                        data, places = np.asarray(shard.data), self._places[shard.index[1].start or 0]
                        for name, index in indices.items():
                            found.append(ValuesPart(name, places, shard.index[3], data[index, 0, : len(places)]))
        return found

    def facts(self) -> dict[str, Facts]:
        """Wait for the step and return the statistics of each hook point over all n rows."""
        with device_errors():
            host = {
                buffer: {
                    name: np.asarray(field)
                    for name, field in each._asdict().items()
                    if name != "values" and field is not None
                }
                for buffer, each in self._arrays.items()
            }
        return {
            name: self._facts(
                {field: array[index] for field, array in host[buffer].items()},
                self._arrays[buffer].values.dtype,
            )
            for name, (buffer, index) in self._captures.items()
        }

    def _facts(self, of: Mapping[str, np.ndarray], dtype: np.dtype) -> Facts:
        """Return the statistics of a hook point, given the fields of its `Compacted` and the dtype of its values."""
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are counted elsewhere
            norms = self._in_order(np.sqrt(of["squared_norm"].sum(axis=1)))
            largest = self._in_order(of["largest"].max(axis=1))
            total, squares = of["sum"].sum(axis=0), of["sum_of_squares"].sum(axis=0)
            if "scale" not in of:
                stored = largest.astype(dtype).astype(np.float32)
                lost = largest[np.isinf(stored) & np.isfinite(largest)]
                return Facts(total, squares, norms, stored, overflow=float(lost.max(initial=0.0)))
        scales = self._in_order(of["scale"])
        units = np.square(np.nan_to_num(scales).astype(np.float64))
        error, power = (
            float((units * self._in_order(of[part].sum(axis=1))).sum()) for part in ("squared_error", "power")
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
        values = {
            name: np.empty((n, buffer.width), self._arrays[buffer].values.dtype)
            for name, (buffer, _) in self._captures.items()
        }
        for name, places, columns, part in self.parts():
            values[name][:, columns][places] = part
        return {name: unscaled(values[name], facts[name].scales) for name in values}, facts


def start_transfer(arrays: Compacted, num_rows: int) -> Compacted:
    """Send the results to the host, the values cut to a part that holds the real rows of every group."""
    size = arrays.values.shape[2]
    part = -(-size // _PARTS)
    kept = min(-(-int(num_rows) // part) * part, size)
    if jax.default_backend() != "cpu" and kept < size:
        arrays = arrays._replace(values=arrays.values[:, :, :kept])
    if jax.default_backend() == "gpu":  # a GPU copies to other memory of the host at a fraction of the rate
        pinned = arrays.values.sharding.with_memory_kind("pinned_host")
        arrays = arrays._replace(values=jax.device_put(arrays.values, pinned))
    for array in arrays:
        if array is not None:
            array.copy_to_host_async()
    return arrays
