"""Train SAEs of SAELens: on an exported run through its own store, and on the run itself through its own trainer.

    python sae_training.py FOLDER OUTPUT HOOK_POINT CONTEXT_SIZE WIDTH

The last two lines have the losses of both: of the first and of the last batch.
"""

import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import SAETrainer, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.activations_store import ActivationsStore

sys.path.insert(0, str(Path(__file__).parents[2]))
from extraction.read.shuffle import ShuffleOptions  # noqa: E402
from extraction.read.torch import TorchActivations  # noqa: E402

warnings.simplefilter("ignore")
folder, run, hook, size, width = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])


def loss_of(sae: StandardTrainingSAE, values: torch.Tensor):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=values,
            coefficients={"l1": 1e-4},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def train_on_export() -> list[float]:
    store = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=hook,
        hook_head_index=None,
        context_size=size,
        d_in=width,
        n_batches_in_buffer=4,
        total_training_tokens=1000,
        store_batch_size_prompts=2,
        train_batch_size_tokens=8,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=folder,
    )
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=width, d_sae=32, l1_coefficient=1e-4))
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=0.02), []
    for _ in range(40):
        output = loss_of(sae, store.next_batch().reshape(-1, width))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.losses["mse_loss"]))
    return losses


def batches() -> Iterator[torch.Tensor]:
    """Epoch after epoch of the run, each in an order of its own."""
    dataset = TorchActivations(run, hook, ShuffleOptions(batch_size=8, buffer=64, drop_last=True))
    for dataset.epoch in itertools.count():
        for rows in dataset:
            yield rows["activations"].float()


def train_on_run() -> list[float]:
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=width, d_sae=32, l1_coefficient=1e-4))
    config = SAETrainerConfig(total_training_samples=400, train_batch_size_samples=8, lr=0.02, lr_end=0.002)
    test = next(batches())
    before = float(loss_of(sae, test).losses["mse_loss"])
    SAETrainer(config, sae, batches()).fit()
    return [before, float(loss_of(sae, test).losses["mse_loss"])]


torch.manual_seed(0)
for losses in (train_on_export(), train_on_run()):
    print(losses[0], losses[-1])
