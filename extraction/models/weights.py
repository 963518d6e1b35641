"""One strict loader: safetensors of a Hugging Face folder -> the parameters of the parts that run.

In: the folder, a table of names, and the abstract parameters. Out: arrays on the device in the compute dtype, blocks
stacked on a leading layer axis, and a digest of what was read. Guarantee: every tensor of the table is there once with
the right shape, and every tensor in the files is in the table, of a layer that does not run, or known not to be needed;
anything else raises DamagedData naming file and tensor.

Cost: one read and one digest of the needed tensors; host memory is the stacked parameter that is being filled, in the
compute dtype, and one tensor.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import DamagedData, InvalidRequest

_DTYPES = {np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16)}


def unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def transposed(tensor: np.ndarray) -> np.ndarray:
    return tensor.T


@dataclass(frozen=True)
class Entry:
    """Where a parameter comes from: a tensor's name, `{l}` for the layer, and what is done to it."""

    name: str
    transform: Callable[[np.ndarray], np.ndarray] = unchanged


class WeightFiles:
    """The tensors of a folder by name, without the prefix that some files leave out. Use as a context manager."""

    def __init__(self, folder: Path, prefix: str):
        self._open, self._places, self._digests = ExitStack(), {}, {}
        self._folder = folder
        for path in _files(folder):
            self._index(path, prefix)

    def _index(self, path: Path, prefix: str) -> None:
        try:
            file = self._open.enter_context(safe_open(path, "np"))
            names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise DamagedData(f"{path}: not a whole safetensors file ({error})") from error
        for name in names:
            full = name if name.startswith((prefix, "lm_head.")) else prefix + name
            if full in self._places:
                raise DamagedData(f"{path}: tensor {name} is there twice, also in {self._places[full][0]}")
            self._places[full] = (path, file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def places(self) -> Iterable[tuple[str, Path]]:
        """Each tensor's full name and its file."""
        return ((name, path) for name, (path, _, _) in self._places.items())

    def read(self, name: str, shape: tuple[int, ...], entry: Entry) -> np.ndarray:
        """A tensor, transformed. Raises DamagedData if it is missing or does not have this shape."""
        if name not in self._places:
            raise DamagedData(f"{self._folder}: tensor {name} is missing from the safetensors files")
        path, file, stored_name = self._places[name]
        try:
            stored = file.get_tensor(stored_name)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedData(f"{path}: tensor {stored_name} cannot be read ({error})") from error
        if stored.dtype not in _DTYPES:
            raise DamagedData(f"{path}: tensor {stored_name} is {stored.dtype}; handled are float32, bfloat16 and float16")
        facts = f"{name} {stored.dtype} {stored.shape} ".encode()
        digest = hashlib.sha256(facts)
        digest.update(np.ascontiguousarray(stored).reshape(-1).view(np.uint8))
        self._digests[name] = digest.hexdigest()
        tensor = entry.transform(stored)
        if tensor.shape != shape:
            raise DamagedData(f"{path}: tensor {stored_name} has shape {tensor.shape}, the configuration needs {shape}")
        return tensor

    @property
    def digest(self) -> str:
        """Over name, dtype, shape and bytes of every tensor that was read, in the order of names."""
        lines = "".join(f"{name} {self._digests[name]}\n" for name in sorted(self._digests))
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _files(folder: Path) -> list[Path]:
    """What transformers would read: the one file, or what the index names, or else every safetensors file there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            outside = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedData(f"{index}: not an index of safetensors files ({error})") from error
        if outside:
            raise DamagedData(f"{index}: names a file outside its folder ({outside[0]})")
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise InvalidRequest(f"{folder}: no model.safetensors, model.safetensors.index.json or other .safetensors file here")
    for name in names:
        if not (folder / name).exists():
            raise DamagedData(f"{folder / name}: named by the index, but not there")
    return [folder / name for name in names]


def check_names(files: WeightFiles, table: dict[str, dict[str, Entry]], num_layers: int, not_needed: Iterable[str]) -> None:
    """Raise DamagedData for a tensor that no table entry, of any layer, knows."""
    known = {
        entry.name.format(l=layer) for entries in table.values() for entry in entries.values() for layer in range(num_layers)
    }
    for name, path in files.places:
        if name not in known and not any(re.fullmatch(pattern, name) for pattern in not_needed):
            raise DamagedData(f"{path}: tensor {name} is unknown to this architecture")


def load_part(
    files: WeightFiles, entries: dict[str, Entry], abstract: dict[str, Any], num_layers: int | None,
    put: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """The parameters of one part as a nested dict like `abstract`; stacked over `num_layers` layers unless None."""
    paths = {".".join(path): leaf for path, leaf in _leaves(abstract)}
    if set(paths) != set(entries):
        raise ValueError(f"weight table and module differ in {sorted(set(paths) ^ set(entries))}")
    loaded: dict[str, Any] = {}
    for path, leaf in paths.items():
        entry = entries[path]
        if num_layers is None:
            array = files.read(entry.name, leaf.shape, entry).astype(leaf.dtype, copy=False)
        else:
            array = np.empty((num_layers, *leaf.shape), leaf.dtype)
            for layer in range(num_layers):
                array[layer] = files.read(entry.name.format(l=layer), leaf.shape, entry)
        _set(loaded, path.split("."), put(array))
    return loaded


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
