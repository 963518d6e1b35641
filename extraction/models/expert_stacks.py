"""The tensors of single experts inside tensors that hold the kernels of all experts of a layer. No jax.

In: the places of the tensors in the files, and the names of such stacks. Out: the places with those of each expert in
place of the stacks. Guarantee: a stack of a shape that cannot be cut raises DamagedData. Cost: none, since an expert's
kernels are consecutive bytes of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..core.errors import DamagedData
from .tensors import TensorPlace


def split_stacks(places: Mapping[str, TensorPlace], stacks: Mapping[str, Sequence[str]]) -> dict[str, TensorPlace]:
    """Return the places with `NAME.3.PART` for every expert and part in place of a stack `NAME.STACK`.

    Args:
        places: the place of each tensor, by its name.
        stacks: the last part of the name of a stack [E, parts * O, I] -> the names of its parts [O, I], in order.

    Raises DamagedData for a stack of another shape, and for an expert that is also stored alone.
    """
    found: dict[str, TensorPlace] = {}
    for name, place in places.items():
        prefix, _, last = name.rpartition(".")
        parts = _experts(prefix, place, stacks[last]) if last in stacks else [(name, place)]
        for part, own in parts:
            if part in found:
                raise DamagedData(f"{place.file}: tensor {part} is doubled, alone and in a stack of all experts")
            found[part] = own
    return found


def _experts(prefix: str, place: TensorPlace, parts: Sequence[str]) -> Iterator[tuple[str, TensorPlace]]:
    if len(place.shape) != 3 or place.shape[1] % len(parts) or not place.shape[0]:
        raise DamagedData(f"{place.file}: tensor {place.name} has shape {place.shape}, not [experts, rows, columns]")
    count, rows, columns = place.shape[0], place.shape[1] // len(parts), place.shape[2]
    size = place.size // (count * len(parts))
    for expert in range(count):
        for at, part in enumerate(parts):
            start = place.start + (expert * len(parts) + at) * size
            yield f"{prefix}.{expert}.{part}", replace(place, shape=(rows, columns), start=start, size=size)
