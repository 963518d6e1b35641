"""Short texts for objects that hold large arrays, so that an interpreter or a notebook shows what they are.

In: arrays and names. Out: one line each, or the few lines of a reader. Cost: none; nothing is read.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from ..core.count_of import count_of
from ..format.run_config import RunDescription

_MOST_NAMES = 4


def shown_array(array: np.ndarray) -> str:
    """Return text such as `bfloat16 [23, 128]`."""
    return f"{array.dtype.name} {list(array.shape)}"


def shown_activations(activations: np.ndarray | Mapping[str, np.ndarray]) -> str:
    """Return the shape of an array, or of each array by its hook point."""
    if isinstance(activations, np.ndarray):
        return shown_array(activations)
    return "{" + listed(f"{name}: {shown_array(array)}" for name, array in activations.items()) + "}"


def listed(names: Iterable[str]) -> str:
    """Return the names with commas; of many the first ones, their number and the last."""
    all_names = list(names)
    if len(all_names) <= _MOST_NAMES:
        return ", ".join(all_names)
    return f"{', '.join(all_names[: _MOST_NAMES - 2])}, … {len(all_names) - _MOST_NAMES + 1} more …, {all_names[-1]}"


def shown_range(numbers: np.ndarray) -> str:
    """Return text such as `0 to 22` for numbers in order, `none` for no numbers."""
    return f"{numbers.min()} to {numbers.max()}" if len(numbers) else "none"


def shown_run(run: RunDescription, num_streams: int, num_rows: int | None) -> str:
    """Return the lines that say what a run is; `num_streams` are begun, `num_rows` committed, None if not counted."""
    config, planned = run.config, run.records_per_stream
    counted = "not counted yet: len(reader) reads the commits" if num_rows is None else f"{num_rows:,} committed"
    lines = {
        "model": config.model + (f" at {config.revision}" if config.revision else ""),
        "hook points": listed(config.hook_points),
        "streams": f"{num_streams:,} begun"
        + (f" of {len(planned):,}, with {count_of(sum(planned), 'record')} in all" if planned else ""),
        "rows": counted,
        "stored": f"{config.store_dtype}, positions {config.positions}",
    }
    return "\n".join(f"  {name:<12} {value}" for name, value in lines.items())
