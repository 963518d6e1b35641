"""A run as a torch dataset: shuffled, shared out over ranks and loader processes.

In: the output of a run. Out: tensors, in the stored dtype. Guarantee: over all ranks and loader processes an epoch is
every committed token once. Cost: as for `shuffle`, in each loader process.

    dataset = TorchActivations("gs://bucket/run", "blocks.6.hook_resid_post", ShuffleOptions(batch_size=4096))
    for rows in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=4): ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..reader import ActivationReader
from ..shuffle import ShuffledReader, ShuffleOptions


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor of its dtype; torch does not take bfloat16 from NumPy, but its bits."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


class TorchActivations(IterableDataset):
    """Batches of `options.batch_size` tokens: `activations` (a dict of them for several hook points), `tokens`,
    `record` and `position`, as in `Rows`. The next epoch has another order if `epoch` is raised."""

    def __init__(self, output: str, hook_points: str | Sequence[str], options: ShuffleOptions):
        super().__init__()
        self.output, self.hook_points, self.options, self.epoch = output, hook_points, options, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | dict[str, torch.Tensor]]]:
        loader, options = get_worker_info(), self.options
        if loader is not None:  # each loader process is a rank of its own
            rank, size = options.rank * loader.num_workers + loader.id, options.world_size * loader.num_workers
            options = replace(options, rank=rank, world_size=size)
        shuffled = ShuffledReader(ActivationReader(self.output), self.hook_points, options)
        shuffled.epoch = self.epoch
        for rows in shuffled:
            activations = rows.activations
            if isinstance(activations, dict):
                tensors = {name: to_tensor(values) for name, values in activations.items()}
            else:
                tensors = to_tensor(activations)
            others = {"tokens": rows.tokens, "record": rows.record, "position": rows.position}
            yield {"activations": tensors} | {name: to_tensor(values) for name, values in others.items()}
