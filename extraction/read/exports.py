"""A run in the layouts of other tools: plain .npy, SAELens' cached activations, OpenMOSS' cached activations.

In: the output of a run, hook points, and a folder that does not exist yet. Out: that folder. Guarantee: every
committed token of the selection once, in the order of streams (SAELens takes whole contexts only: the last tokens of
less than one are left out; OpenMOSS' rows of one record each leave out a record that is not committed whole); the
folder gets its name when it is complete. Cost: reads the run once, .npy once for each hook point.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.count_of import count_of
from ..core.errors import InvalidRequest
from ..core.logs import say
from ..format.safetensors import allocate
from .reader import ActivationReader
from .row_types import RecordActivations
from .select import EVERYTHING, Select

_CHUNK = 1 << 16  # tokens in a file of rows


@dataclass(frozen=True)
class ExportOptions:
    """`context_size`: tokens in a row; 128 for SAELens, no rows for OpenMOSS if it is None.

    Values are written as float32 where bfloat16 is not known.
    """

    hook_points: tuple[str, ...] | None = None
    context_size: int | None = None
    select: Select = EVERYTHING


def export(output: str, layout: str, folder: str, options: ExportOptions) -> int:
    """Write the run at `output` into `folder`; how many tokens. Raises InvalidRequest if the folder is there."""
    target = Path(folder)
    if target.exists():
        raise InvalidRequest(f"{folder} exists: give the name of a new folder")
    reader, unfinished = ActivationReader(output, options.select), target.with_name(f".{target.name}.unfinished")
    names = reader.checked(options.hook_points)
    if not reader.num_rows():
        raise InvalidRequest(f"{output} holds no tokens of this selection yet")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokens = LAYOUTS[layout](reader, names, unfinished, options)
    unfinished.rename(target)
    return tokens


def _to_npy(reader: ActivationReader, names: Sequence[str], folder: Path, options: ExportOptions) -> int:
    """Write `<hook point>.npy` float32 [N, width], `tokens.npy` [N], `record.npy` [N, 2], `positions.npy` [N]."""
    total = reader.num_rows()
    for number, name in enumerate(names):
        arrays: dict[str, np.memmap] = {}
        at = 0
        for rows in reader.rows(name):
            parts = {name: rows.activations.astype(np.float32)}
            if number == 0:
                parts |= {"tokens": rows.tokens, "record": rows.record, "positions": rows.positions}
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
    """Write `<hook point>/chunk-NNNNNNNN.safetensors`: `activation` [n, width] as stored, `tokens` and `mask` [n].

    As `CachedActivationLoader` of llamascopium (once lm-saes) reads it. With a context size the first axis becomes
    [rows, context_size], one record or a part of it in a row, and `chunk-NNNNNNNN.meta.json` says of which. As in the
    caches that it writes itself, the mask is 0 for padding and for the token that begins a record.
    """
    ignored, size = list(reader.run.special_tokens.record_prefix), options.context_size
    chunks = _flat_chunks(reader, names) if size is None else _rows_of(reader, names, size)
    for name in names:
        (folder / name).mkdir()
    written = 0
    for number, (tokens, real, activations, meta) in enumerate(chunks):
        mask = (real & ~np.isin(tokens, ignored)).astype(np.int32)
        written += int(real.sum())
        for name, values in activations.items():
            path = folder / name / f"chunk-{number:08d}.safetensors"
            arrays = {"activation": values, "tokens": tokens, "mask": mask, "attention_mask": mask}
            shard = allocate({key: (array.shape, array.dtype) for key, array in arrays.items()}, {})
            for key, array in arrays.items():
                shard.arrays[key][:] = array
            path.write_bytes(shard.data)
            if meta is not None:
                path.with_suffix(".meta.json").write_text(json.dumps(meta, ensure_ascii=False))
    return written


Chunk = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], list[dict[str, object]] | None]


def _flat_chunks(reader: ActivationReader, names: Sequence[str]) -> Iterator[Chunk]:
    """Yield for each batch tokens int64 [n] without padding, activations, and nothing about rows."""
    for batch in reader.batches(names):
        yield batch.tokens.astype(np.int64), np.ones(len(batch.tokens), bool), batch.activations, None


def _rows_of(reader: ActivationReader, names: Sequence[str], size: int) -> Iterator[Chunk]:
    """Yield rows [rows, size] of about `_CHUNK` tokens: tokens, activations, and the record of each row."""
    rows: list[tuple[RecordActivations, int]] = []
    for record in reader.records(names):
        for first in range(0, len(record.tokens), size):
            rows.append((record, first))
            if len(rows) * size >= _CHUNK:
                yield _pad(rows, size)
                rows = []
    if rows:
        yield _pad(rows, size)


def _pad(rows: list[tuple[RecordActivations, int]], size: int) -> Chunk:
    tokens, real = np.zeros((len(rows), size), np.int64), np.zeros((len(rows), size), bool)
    first_record = rows[0][0]
    activations = {
        name: np.zeros((len(rows), size, values.shape[1]), values.dtype)
        for name, values in first_record.activations.items()
    }
    for row, (record, first) in enumerate(rows):
        part = slice(first, min(first + size, len(record.tokens)))
        here = slice(0, part.stop - first)
        tokens[row, here], real[row, here] = record.tokens[part], True
        for name, values in record.activations.items():
            activations[name][row, here] = values[part]
    meta = [
        {"stream": r.stream, "record": r.index, "record_id": r.id, "first_token": int(r.positions[first])}
        for r, first in rows
    ]
    return tokens, real, activations, meta


def _to_saelens(reader: ActivationReader, names: Sequence[str], folder: Path, options: ExportOptions) -> int:
    """Write a `datasets.Dataset`: the hook point [context_size, width] float32, and `token_ids` [context_size]."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    if len(names) != 1:
        raise InvalidRequest(f"SAELens reads one hook point, not {len(names)}: name it with --hook-point")
    (name,), size = names, options.context_size or 128
    if reader.num_rows() < size:
        raise InvalidRequest(f"--context-size {size}: the run has {count_of(reader.num_rows(), 'token')}")
    width = next(reader.rows(name)).activations.shape[1]
    features = Features({name: Array2D((size, width), "float32"), "token_ids": Sequence(Value("int32"), length=size)})
    cache = folder.with_name(f"{folder.name}-cache")
    arguments = {"output": str(reader.storage), "name": name, "size": size, "select": options.select}
    try:
        dataset = Dataset.from_generator(_saelens_rows, features=features, cache_dir=str(cache), gen_kwargs=arguments)
        dataset.save_to_disk(str(folder))
        if left := reader.num_rows() % size:
            say(f"the last {count_of(left, 'token was', 'tokens were')} left out: they do not fill a row of {size}")
        return len(dataset) * size
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _saelens_rows(output: str, name: str, size: int, select: Select) -> Iterator[dict[str, np.ndarray]]:
    """Yield rows; the arguments are plain values, since `datasets` pickles them."""
    for values, tokens in _contexts(ActivationReader(output, select), name, size):
        yield {name: values.astype(np.float32), "token_ids": tokens}


def _contexts(reader: ActivationReader, name: str, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `size` tokens in a row at a time, over the ends of records and batches."""
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
