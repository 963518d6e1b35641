"""What llamascopium of OpenMOSS makes of an exported run, and an SAE that its own trainer trains on it.

    python openmoss_training.py FLAT ROWS RESULT HOOK_POINT WIDTH HOOK_POINT WIDTH

FLAT and ROWS are exports without and with a context size. RESULT.npz gets what its factory makes of them, and the last
line of the output is the loss of one batch before and after.
"""

import sys
import warnings

warnings.simplefilter("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from llamascopium import (  # noqa: E402
    ActivationFactory,
    ActivationFactoryActivationsSource,
    ActivationFactoryConfig,
    ActivationFactoryTarget,
    Trainer,
    TrainerConfig,
)
from llamascopium.initializer import Initializer, InitializerConfig  # noqa: E402
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder  # noqa: E402

flat, rows, result = sys.argv[1:4]
widths = {sys.argv[4]: int(sys.argv[5]), sys.argv[6]: int(sys.argv[7])}
hooks = list(widths)


def batches(folder: str, target: ActivationFactoryTarget, batch_size: int = 16):
    """The batches that its factory makes of a folder of cached activations."""
    source = ActivationFactoryActivationsSource(name="run", path=folder, num_workers=0, prefetch=None)
    config = ActivationFactoryConfig(sources=[source], target=target, hook_points=hooks, batch_size=batch_size)
    return list(ActivationFactory(config).process())


found = {}
for name, folder, target in [
    ("flat", flat, ActivationFactoryTarget.ACTIVATIONS_1D),
    ("rows", rows, ActivationFactoryTarget.ACTIVATIONS_2D),
    ("tokens of rows", rows, ActivationFactoryTarget.ACTIVATIONS_1D),
]:
    seen = batches(folder, target)
    for key in ("tokens", "mask", *hooks):
        found[f"{name} {key}"] = torch.cat([batch[key] for batch in seen]).float().numpy()
    if name == "rows":
        found["records"] = [entry["record_id"] for batch in seen for entry in batch["meta"]]
np.savez(result, **found)

torch.manual_seed(0)
hook = hooks[0]
sae = SparseAutoEncoder(SAEConfig(d_model=widths[hook], expansion_factor=8, hook_point_in=hook, hook_point_out=hook))
Initializer(InitializerConfig()).initialize_parameters(sae)
stream = [batch | {hook: batch[hook].float()} for batch in batches(flat, ActivationFactoryTarget.ACTIVATIONS_1D)] * 10
sae.set_dataset_average_activation_norm({hook: float(stream[0][hook].norm(dim=1).mean())})
trainer = Trainer(
    TrainerConfig(
        lr=0.01,
        lr_warm_up_steps=1,
        l1_coefficient=1e-4,
        total_training_tokens=16 * len(stream),
        n_checkpoints=0,
        exp_result_path=f"{result}-training",
        skip_metrics_calculation=True,
    )
)


@torch.no_grad()
def loss() -> float:
    return float(sae.compute_loss(sae.normalize_activations(stream[0]))["loss"].mean())


before = loss()
trainer.fit(sae=sae, activation_stream=stream)
print(before, loss())
