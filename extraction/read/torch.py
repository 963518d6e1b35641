"""A run as a torch dataset: shuffled, shared out over ranks and loader processes, resumable.

In: the output of a run. Out: tensors, in the stored dtype. Guarantee: over all ranks and loader processes an epoch is
every committed token once; they must all see the same commits, so a run that grows is read when it has ended. Cost: as
for `shuffle`, in each loader process; each opens the run anew for each epoch.

    dataset = TorchActivations("gs://bucket/run", "blocks.6.hook_resid_post", ShuffleOptions(batch_size=4096))
    for rows in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=4): ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import ml_dtypes
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .reader import ActivationReader
from .select import EVERYTHING, Select
from .shuffle import DEFAULTS, ShuffledReader, ShuffleOptions, State


class TorchRows(TypedDict):
    """`Rows` as tensors: activations [n, width], or a dict of them, tokens [n], record [n, 2], positions [n]."""

    activations: torch.Tensor | dict[str, torch.Tensor]
    tokens: torch.Tensor
    record: torch.Tensor
    positions: torch.Tensor


class TorchActivations(IterableDataset[TorchRows]):
    """Batches of `options.batch_size` tokens; give it to a loader with `batch_size=None`.

    `options.rank` and `world_size` are those of the training process; its loader processes share its part. Set `epoch`
    before each epoch for another order; loader processes see it, persistent ones too. In mid-epoch, `state_dict` and
    `load_state_dict` resume: without loader processes by themselves, with them through torchdata's StatefulDataLoader.
    """

    def __init__(
        self,
        output: str,
        hook_points: str | Sequence[str],
        options: ShuffleOptions = DEFAULTS,
        select: Select = EVERYTHING,
    ):
        super().__init__()
        self.output, self.hook_points, self.options, self.select = output, hook_points, options, select
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._reached: State | None = None
        self._resumed: State | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, which decides its order."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch.fill_(number)

    def state_dict(self) -> State | None:
        """Return the state of this process after the batch that it yielded last."""
        return self._reached

    def load_state_dict(self, state: State | None) -> None:
        """Begin the next iteration there. That raises InvalidRequest if the state is of another order."""
        self._resumed = state

    def __iter__(self) -> Iterator[TorchRows]:
        loader, options = get_worker_info(), self.options
        if loader is not None:  # each loader process is a rank of its own
            rank, size = options.rank * loader.num_workers + loader.id, options.world_size * loader.num_workers
            options = replace(options, rank=rank, world_size=size)
        shuffled = ShuffledReader(ActivationReader(self.output, self.select), self.hook_points, options)
        shuffled.epoch = self.epoch
        if self._resumed is not None:
            shuffled.restore(self._resumed)
        self._reached, self._resumed = shuffled.state(), None
        return self._batches(shuffled)

    def _batches(self, shuffled: ShuffledReader[Any]) -> Iterator[TorchRows]:
        for rows in shuffled:
            self._reached = shuffled.state()
            values = rows.activations
            yield {
                "activations": {name: to_tensor(array) for name, array in values.items()}
                if isinstance(values, dict)
                else to_tensor(values),
                "tokens": to_tensor(rows.tokens),
                "record": to_tensor(rows.record),
                "positions": to_tensor(rows.positions),
            }


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return the array as a tensor of its dtype; torch does not take bfloat16 from NumPy, but its bits."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
