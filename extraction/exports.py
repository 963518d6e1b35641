"""A run in the layouts of other tools: plain .npy, SAELens' cached activations, OpenMOSS' cached activations.

In: the output of a run, hook points, and a folder that does not exist yet. Out: that folder. Guarantee: every
committed token once, in the order of streams (SAELens takes whole contexts only: the last tokens that do not fill one
are left out); the folder gets its name when it is complete. Cost: reads the run once for each hook point.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InvalidRequest
from .reader import ActivationReader
from .shards import allocate


@dataclass(frozen=True)
class ExportOptions:
    """`context_size`: tokens in a row of SAELens' layout. Values are written as float32 where bfloat16 is not known."""

    hook_points: tuple[str, ...] | None = None
    context_size: int = 128


def export(output: str, layout: str, folder: str, options: ExportOptions) -> int:
    """Write the run at `output` into `folder`; how many tokens. Raises InvalidRequest if the folder is there."""
    target = Path(folder)
    if target.exists():
        raise InvalidRequest(f"{folder} exists: give the name of a new folder")
    reader, unfinished = ActivationReader(output), target.with_name(f".{target.name}.unfinished")
    names = reader.checked(options.hook_points)
    if not reader.num_tokens():
        raise InvalidRequest(f"{output} holds no tokens yet")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokens = LAYOUTS[layout](reader, names, unfinished, options)
    unfinished.rename(target)
    return tokens


def _to_npy(reader: ActivationReader, names: Sequence[str], folder: Path, options: ExportOptions) -> int:
    """`<hook point>.npy` float32 [N, width], `tokens.npy` [N], `record.npy` [N, 2], `position.npy` [N]."""
    total = reader.num_tokens()
    for number, name in enumerate(names):
        arrays: dict[str, np.memmap] = {}
        at = 0
        for rows in reader.rows(name):
            parts = {name: rows.activations.astype(np.float32)}
            if number == 0:
                parts |= {"tokens": rows.tokens, "record": rows.record, "position": rows.position}
            for key, values in parts.items():
                if key not in arrays:
                    shape = (total, *values.shape[1:])
                    arrays[key] = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", values.dtype, shape)
                arrays[key][at : at + len(values)] = values
            at += len(rows.tokens)
        for array in arrays.values():
            array.flush()
    return total


def _to_openmoss(reader: ActivationReader, names: Sequence[str], folder: Path, options: ExportOptions) -> int:
    """`<hook point>/chunk-NNNNNNNN.safetensors` with `activation` [n, width] in the stored dtype and `tokens` [n].

    As `CachedActivationLoader` of OpenMOSS/Language-Model-SAEs reads it (activations in one dimension of tokens).
    """
    for name in names:
        (folder / name).mkdir()
        for number, rows in enumerate(reader.rows(name)):
            layout = {"activation": (rows.activations.shape, rows.activations.dtype),
                      "tokens": (rows.tokens.shape, np.dtype(np.int64))}  # fmt: skip
            shard = allocate(layout, {})
            shard.arrays["activation"][:] = rows.activations
            shard.arrays["tokens"][:] = rows.tokens
            (folder / name / f"chunk-{number:08d}.safetensors").write_bytes(shard.data)
    return reader.num_tokens()


def _to_saelens(reader: ActivationReader, names: Sequence[str], folder: Path, options: ExportOptions) -> int:
    """A `datasets.Dataset` on disk: the hook point [context_size, width] float32, and `token_ids` [context_size]."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    if len(names) != 1:
        raise InvalidRequest(f"SAELens reads one hook point, not {len(names)}: name it with --hook-point")
    (name,), size = names, options.context_size
    if reader.num_tokens() < size:
        raise InvalidRequest(f"--context-size {size}: the run has {reader.num_tokens()} tokens")
    width = next(reader.rows(name)).activations.shape[1]
    features = Features({name: Array2D((size, width), "float32"), "token_ids": Sequence(Value("int32"), length=size)})
    cache = folder.with_name(f"{folder.name}-cache")
    arguments = {"output": str(reader.storage), "name": name, "size": size}
    try:
        dataset = Dataset.from_generator(_saelens_rows, features=features, cache_dir=str(cache), gen_kwargs=arguments)
        dataset.save_to_disk(str(folder))
        return len(dataset) * size
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _saelens_rows(output: str, name: str, size: int) -> Iterator[dict]:
    """A function of plain values, since `datasets` pickles it."""
    for values, tokens in _contexts(ActivationReader(output), name, size):
        yield {name: values.astype(np.float32), "token_ids": tokens}


def _contexts(reader: ActivationReader, name: str, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs of `size` tokens, over the ends of records and batches."""
    left_values, left_tokens = None, np.zeros(0, np.int32)
    for rows in reader.rows(name):
        values = rows.activations if left_values is None else np.concatenate([left_values, rows.activations])
        tokens = np.concatenate([left_tokens, rows.tokens])
        whole = len(tokens) // size * size
        for first in range(0, whole, size):
            yield values[first : first + size], tokens[first : first + size]
        left_values, left_tokens = values[whole:].copy(), tokens[whole:]


Layout = Callable[[ActivationReader, Sequence[str], Path, ExportOptions], int]
LAYOUTS: dict[str, Layout] = {"npy": _to_npy, "openmoss": _to_openmoss, "saelens": _to_saelens}
