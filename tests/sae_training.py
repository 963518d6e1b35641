"""Train an SAE of SAELens on an exported run, with its own store and its own loss; prints the first and last loss.

    python sae_training.py FOLDER HOOK_POINT CONTEXT_SIZE WIDTH
"""

import sys
import warnings

import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.activations_store import ActivationsStore

warnings.simplefilter("ignore")
folder, hook, size, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
store = ActivationsStore(
    model=None, dataset=None, streaming=False, hook_name=hook, hook_head_index=None, context_size=size, d_in=width,
    n_batches_in_buffer=4, total_training_tokens=1000, store_batch_size_prompts=2, train_batch_size_tokens=8,
    prepend_bos=False, normalize_activations="none", device=torch.device("cpu"), dtype="float32",
    cached_activations_path=folder,
)
sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=width, d_sae=32, l1_coefficient=1e-4))
optimizer = torch.optim.Adam(sae.parameters(), lr=0.02)
losses = []
for step in range(40):
    values = store.next_batch().reshape(-1, width)
    output = sae.training_forward_pass(TrainStepInput(
        sae_in=values, coefficients={"l1": 1e-4}, dead_neuron_mask=None, n_training_steps=step, is_logging_step=False,
    ))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    losses.append(float(output.losses["mse_loss"]))
print(losses[0], losses[-1])
