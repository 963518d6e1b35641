"""A run as a dataset of Hugging Face `datasets`: one row for each token, streamed or as an Arrow copy on disk.

In: the output of a run. Out: rows of a column for each hook point, float32 [width] (float16 where it is stored so;
Arrow has no bfloat16), and `token`, `stream`, `record`, `position`. Guarantee: every token that is committed at the
call, once, in the order of the run. Each data object is a shard, so `shuffle`, `shard`, loader processes and
`split_dataset_by_node` share the reading too. Cost: streaming reads each object whole and widens it; a copy takes the
disk of float32 values, and is made again when more was committed.

    for row in iterable_dataset("gs://bucket/run", ["blocks.6.hook_resid_post"]).shuffle(seed=0): ...
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import cast

import datasets
import pyarrow as pa

from ..core.errors import InvalidRequest
from ..format.batch_file import BatchRef
from .reader import ActivationReader
from .row_types import Batch
from .select import EVERYTHING, Select

_ROWS = 4096  # tokens in an Arrow table


def iterable_dataset(
    output: str, hook_points: Sequence[str] | None = None, select: Select = EVERYTHING
) -> datasets.IterableDataset:
    """Return the run as an iterable dataset. Raises InvalidRequest for a run without rows or an unknown hook."""
    found = _Builder(ActivationReader(output, select), hook_points).as_streaming_dataset(split="train")
    return cast(datasets.IterableDataset, found)


def dataset(
    output: str,
    hook_points: Sequence[str] | None = None,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    select: Select = EVERYTHING,
) -> datasets.Dataset:
    """Return a copy in the cache of `datasets`, with random access. Raises as `iterable_dataset`."""
    builder = _Builder(ActivationReader(output, select), hook_points, cache_dir)
    builder.download_and_prepare(num_proc=num_proc)
    return cast(datasets.Dataset, builder.as_dataset(split="train"))


class _Builder(datasets.ArrowBasedBuilder):
    """Makes both forms; `datasets` sends it to other processes."""

    def __init__(self, reader: ActivationReader, hook_points: Sequence[str] | None, cache_dir: str | None = None):
        self._output, self._names, self._select = str(reader.storage), reader.checked(hook_points), reader.select
        self._refs = list(reader.all_refs())
        self._features = features_of(reader, self._names)
        content = repr((self._output, reader.run.fingerprint, self._names, self._refs, self._select))
        super().__init__(cache_dir, "activations", hash=hashlib.sha256(content.encode()).hexdigest())

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self._features)

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", gen_kwargs={"refs": self._refs})]

    def _generate_tables(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, refs: list[BatchRef]
    ) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        for shard, batch in enumerate(ActivationReader(self._output, self._select).read(refs, self._names)):
            for part, first in enumerate(range(0, len(batch.tokens), _ROWS)):
                yield (shard, part), arrow_table(batch, slice(first, first + _ROWS), self._features)


_KINDS = {"float16": "float16", "int32": "int32"}  # dtypes that stay; others become float32


def features_of(reader: ActivationReader, names: Sequence[str]) -> datasets.Features:
    """Return the columns of these hook points, and of the places of rows. Raises InvalidRequest for an empty run."""
    first = next(reader.headers(), None)
    if first is None:
        raise InvalidRequest(f"{reader.storage} holds no tokens yet")
    kinds = {name: _KINDS.get(first.array(name, 0, 0).dtype.name, "float32") for name in names}
    vectors = {name: datasets.List(datasets.Value(kinds[name]), length=first.widths[name]) for name in names}
    whole = {"token": "int32", "stream": "int64", "record": "int64", "position": "int32"}
    return datasets.Features(vectors | {name: datasets.Value(kind) for name, kind in whole.items()})


def arrow_table(batch: Batch, rows: slice, features: datasets.Features) -> pa.Table:
    """Return some rows of a batch as a table of these columns."""
    kinds = {name: vector.feature.dtype for name, vector in features.items() if name in batch.activations}
    values = {name: batch.activations[name][rows].astype(kind, copy=False) for name, kind in kinds.items()}
    vectors = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        for name, array in values.items()
    }
    places, tokens, positions = batch.record[rows], batch.tokens[rows], batch.positions[rows]
    whole = {"token": tokens, "stream": places[:, 0], "record": places[:, 1], "position": positions}
    return pa.table(vectors | whole).cast(features.arrow_schema)
