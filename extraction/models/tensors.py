"""The tensors of a model's safetensors files, read one by one from a folder or a bucket.

In: a `ModelFolder`. Out: NumPy arrays in the requested order, and a digest of the weights. Guarantee: names, shapes,
dtypes and lengths are checked against the headers before any tensor is read; each returned tensor is whole.

Cost: each tensor is read once, in parts of `PART_BYTES` by `NUM_READERS` threads, ahead of its use. Host memory is the
largest tensor and `MARGIN_BYTES`, independent of the size of the model. The digest needs no further read: it is made
of the hub's commit and etags, of the bucket's checksums and generations, or of the tensors of a local folder.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Self

import ml_dtypes
import numpy as np

from ..core.errors import DamagedData, InvalidRequest, ObjectNotFound
from ..core.git_lfs import refuse_pointer
from ..format.safetensors import MAX_HEADER, decode_header
from ..storage import ObjectInfo, Storage
from .location import ModelFolder, model_files

PART_BYTES = 8 << 20
NUM_READERS = 8
MARGIN_BYTES = 2 * NUM_READERS * PART_BYTES  # parts on their way, and small tensors read ahead
_ALIGNMENT = 64  # a CPU backend uses an aligned buffer without copying it
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
BYTES = {"U8": np.dtype(np.uint8)}  # of packed weights and their scales


@dataclass(frozen=True)
class TensorPlace:
    """The place of a tensor: `size` bytes from `start` of `file`; name and dtype as in its header."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class WeightFiles:
    """The tensors of a model; `places` maps their names in the files. A context manager."""

    def __init__(self, folder: ModelFolder):
        self._folder, self._storage = folder, folder.weights
        self.places: dict[str, TensorPlace] = {}
        self._digests: dict[str, str] = {}
        self._facts: dict[str, ObjectInfo] = {}
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="weights")
        try:
            for file in _files(folder, self._storage):
                if folder.bucket:
                    self._facts[file] = self._storage.stat(file)
                self._index(file)
        except BaseException:
            self._readers.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._readers.shutdown(cancel_futures=True)

    def where(self, file: str) -> str:
        """Return the name of the file in messages."""
        return f"{self._storage}/{file}"

    def __str__(self) -> str:
        return str(self._storage)

    def _index(self, file: str) -> None:
        for place in _read_header(self._storage, file):
            if place.name in self.places:
                other = self.where(self.places[place.name].file)
                raise DamagedData(f"{self.where(file)}: tensor {place.name} is doubled, also in {other}")
            self.places[place.name] = place

    def feed(self, wanted: Mapping[str, TensorPlace], use: Callable[[str, np.ndarray], None]) -> None:
        """Call `use` with each tensor in order, and read ahead within the bound on memory.

        `use` must not keep the array: its memory counts as free when `use` returns. Raises DamagedData.
        """
        window = max([NUM_READERS * PART_BYTES, *(place.size for place in wanted.values())])
        waiting: deque[tuple[np.ndarray, list[Future]]] = deque()
        places, in_hand, ahead = list(wanted.values()), 0, 0
        for name, place in wanted.items():
            while ahead < len(places) and in_hand + places[ahead].size <= window:
                in_hand += places[ahead].size
                waiting.append(self._start(places[ahead]))
                ahead += 1
            self._finish(name, *waiting.popleft(), use)
            in_hand -= place.size

    def _start(self, place: TensorPlace) -> tuple[np.ndarray, list[Future]]:
        """Return a buffer, and the reads that fill it."""
        padded = np.empty(place.size + _ALIGNMENT, np.uint8)
        first = -padded.ctypes.data % _ALIGNMENT
        buffer = padded[first : first + place.size]
        starts = range(0, place.size, PART_BYTES)
        parts = [
            self._readers.submit(self._read_part, place, buffer[start : start + PART_BYTES], start) for start in starts
        ]
        return buffer.view((DTYPES | BYTES)[place.dtype]).reshape(place.shape), parts

    def _finish(
        self, name: str, tensor: np.ndarray, parts: list[Future], use: Callable[[str, np.ndarray], None]
    ) -> None:
        for part in parts:
            part.result()
        if not self._facts and not self._folder.revision:
            digest = hashlib.sha256(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            digest.update(tensor.reshape(-1).view(np.uint8).data)
            self._digests[name] = digest.hexdigest()
        use(name, tensor)

    def _read_part(self, place: TensorPlace, into: np.ndarray, start: int) -> None:
        first = place.start + start
        data = self._storage.read(place.file, first, first + len(into))
        if len(data) != len(into):
            raise DamagedData(f"{self.where(place.file)}: tensor {place.name} ends early: the file has changed")
        into[:] = np.frombuffer(data, np.uint8)

    def digest(self) -> str:
        """Return a digest of the weights, after they have been read.

        From the hub: its commit, and names and etags of the files. From a bucket: name, size, crc32c (or etag) and
        generation of the files. From a folder: name in the table, dtype, shape and bytes of every tensor that was read.
        Raises DamagedData if an object in the bucket was replaced since it was opened.
        """
        lines = [f"{name} {self._digests[name]}\n" for name in sorted(self._digests)]
        if self._folder.revision:
            files = sorted({place.file for place in self.places.values()})
            lines = [f"{self._folder.revision}\n", *(f"{file} {_etag(self._folder, file)}\n" for file in files)]
        for file, facts in sorted(self._facts.items()):
            if self._storage.stat(file) != facts:
                raise DamagedData(f"{self.where(file)}: the object was replaced while it was read")
            lines.append(f"{file} {facts.size} {facts.crc32c or facts.etag} {facts.generation}\n")
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _etag(folder: ModelFolder, file: str) -> str:
    """Return the hub's etag of a file: in its cache a file of a snapshot is a link to a blob of that name."""
    return os.path.basename(os.path.realpath(folder.path / file))


def _files(folder: ModelFolder, storage: Storage) -> list[str]:
    """Return the files that transformers reads: the one file, those of the index, or every safetensors file."""
    there = folder.names()
    whole, index = "model.safetensors", "model.safetensors.index.json"
    if whole in there:
        return [whole]
    if index not in there:
        names = model_files(there)
        if not names:
            raise InvalidRequest(f"{storage}: no {whole}, {index} or other .safetensors file here")
        return names
    try:
        names = sorted(set(json.loads(storage.read(index))["weight_map"].values()))
        outside = [name for name in names if os.path.basename(name) != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedData(f"{storage}/{index}: not an index of safetensors files ({error})") from error
    if outside:
        raise DamagedData(f"{storage}/{index}: names a file outside its folder ({outside[0]})")
    for name in names:
        if name not in there:
            raise DamagedData(f"{storage}/{name}: named by the index, but not there")
    return names


def _read_header(storage: Storage, file: str) -> list[TensorPlace]:
    """Return the tensors of a file. Raises DamagedData unless they add up to its length."""
    where = f"{storage}/{file}"
    try:
        with closing(storage.open(file)) as handle:
            total = handle.seek(0, os.SEEK_END)
            handle.seek(0)
            head = handle.read(8)
            head += handle.read(min(int.from_bytes(head, "little"), MAX_HEADER))
    except ObjectNotFound as error:
        raise DamagedData(f"{where}: the file is missing") from error
    refuse_pointer(head, where)
    first, header = decode_header(head, where)
    try:
        entries = sorted(
            (*entry["data_offsets"], entry["dtype"], tuple(entry["shape"]), name)
            for name, entry in header.items()
            if name != "__metadata__"
        )
        places = [
            TensorPlace(file, name, dtype, shape, first + start, end - start)
            for start, end, dtype, shape, name in entries
        ]
        ends = [0, *(end for _, end, *_ in entries)]
        whole = [start for start, *_ in entries] == ends[:-1] and first + ends[-1] == total
        broken = next((place.name for place in places if not _is_of_its_size(place)), None)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedData(f"{where}: not a whole safetensors file ({error})") from error
    if broken is not None:
        raise DamagedData(f"{where}: tensor {broken} is not of the size that its header gives")
    if not whole:
        raise DamagedData(f"{where}: not a whole safetensors file, its tensors do not add up to its {total:,} bytes")
    return places


def _is_of_its_size(place: TensorPlace) -> bool:
    """Return whether a tensor's size fits its shape; a dtype that is not handled, as of a mask, is not checked."""
    if min(place.shape, default=0) < 0 or place.size < 0:
        return False
    dtype = (DTYPES | BYTES).get(place.dtype)
    return dtype is None or place.size == math.prod(place.shape) * dtype.itemsize
