"""The weight loader: the tensors of a model -> the parameters of the parts that run, on the devices.

In: the tensors, the parts of the model with their tables of names, and the abstract parameters. Out: arrays in the
compute dtype with the sharding of `placement`, blocks stacked on a leading layer axis. Guarantee: a needed tensor of
another shape raises DamagedData that names file and tensor, before any tensor is read.

Cost: one read of the needed tensors in the order of the files. A tensor is sent to the device as stored, and is
transformed, cast and copied into its parameter there. Besides the parameters, a device holds one tensor as stored and
as transformed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.errors import DamagedData
from .layer_groups import ModelPart
from .sharding import Placement
from .tensors import BYTES, DTYPES, TensorPlace, WeightFiles
from .weight_tables import unchanged


class Parameter(NamedTuple):
    """A parameter to be filled: its path in the tree, its whole shape and its dtype."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


class Fill(NamedTuple):
    """One tensor's place in a parameter: `at` on its leading axes, () for all of it; `scales` of a packed tensor."""

    parameter: Parameter
    at: tuple[int, ...]
    transform: Callable[..., jax.Array]
    scales: tuple[str, ...] = ()


def load_params(
    files: WeightFiles, places: Mapping[str, TensorPlace], fills: dict[str, list[Fill]], placement: Placement
) -> dict[str, Any]:
    """Read the tensors and return the parameters as a nested dict, with the sharding of `placement`."""
    params: dict[tuple[str, ...], jax.Array] = {}
    scales: dict[str, jax.Array] = {}

    def use(name: str, tensor: np.ndarray) -> None:
        if name not in fills:  # scales, which are read right before their tensor
            scales[name] = placement.send(tensor.copy())
            return
        sources = [placement.send(tensor), *(scales.pop(each) for each in fills[name][0].scales)]
        for parameter, index, transform, _ in fills[name]:
            path, shape = parameter.path, parameter.shape
            like = jax.ShapeDtypeStruct(shape[len(index) :], parameter.dtype)
            part = placement.transform(path, sources, transform, like)
            if index and path not in params:
                params[path] = placement.empty(path, shape, parameter.dtype)
            params[path] = placement.fill(path, params[path], index, part) if index else part
        # The buffer on the host is reused after `use`: wait until the tensor is on the device.
        jax.block_until_ready([params[fill.parameter.path] for fill in fills[name]])

    in_order = sorted(fills, key=lambda name: (places[name].file, places[name].start))
    files.feed({each: places[each] for name in in_order for each in (*fills[name][0].scales, name)}, use)
    return nested(params)


def plan_fills(parts: Iterable[ModelPart], abstract: dict[str, Any]) -> dict[str, list[Fill]]:
    """Return the fills of each needed tensor. `abstract` holds whole shapes: blocks with their layer axis."""
    fills: dict[str, list[Fill]] = {}
    for part in parts:
        tree = reduce(getitem, part.path, abstract)
        leaves = {".".join(path): leaf for path, leaf in leaves_of(tree)}
        if set(leaves) != set(part.entries):
            raise ValueError(f"weight table and module differ in {sorted(set(leaves) ^ set(part.entries))}")
        for path, leaf in leaves.items():
            parameter = Parameter((*part.path, *path.split(".")), tuple(leaf.shape), np.dtype(leaf.dtype))
            entry = part.entries[path]
            for index, name in entry.names(part.layers or ()):
                fill = Fill(parameter, index, entry.transform, entry.scales(name))
                fills.setdefault(name, []).append(fill)
    return fills


def check_shapes(files: WeightFiles, places: Mapping[str, TensorPlace], fills: dict[str, list[Fill]]) -> None:
    """Raise DamagedData for a tensor of an unsupported dtype, or of a shape that does not fit its parameter."""
    for name, wanted in fills.items():
        for fill in wanted:
            _check(files, [places[each] for each in (name, *fill.scales)], fill)


def _check(files: WeightFiles, places: list[TensorPlace], fill: Fill) -> None:
    handled, place = BYTES if fill.scales else DTYPES, places[0]
    for each in places:
        if each.dtype not in handled:
            where = f"{files.where(each.file)}: tensor {each.name}"
            raise DamagedData(f"{where} is {each.dtype}; handled are {', '.join(handled)}")
    where = f"{files.where(place.file)}: tensor {place.name}"
    needed = fill.parameter.shape[len(fill.at) :]
    stored = [jax.ShapeDtypeStruct(each.shape, handled[each.dtype]) for each in places]
    try:
        shape = place.shape if fill.transform is unchanged else jax.eval_shape(fill.transform, *stored).shape
    except (TypeError, ValueError, IndexError) as error:
        raise DamagedData(
            f"{where} has shape {place.shape}, which does not fit; the configuration needs {needed}"
        ) from error
    if shape != needed:
        raise DamagedData(f"{where} has shape {place.shape}, which becomes {shape}; the configuration needs {needed}")


def leaves_of(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each leaf of a nested dict with its path."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves_of(value, (*path, name))
        else:
            yield (*path, name), value


def nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the nested dict of leaves by their paths."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
    return tree
