"""Models that need no torch: their weights are drawn from the names of the tensors, their reference values are stored.

In: `tests/models/stored_values.json`. Out: model folders, and a few values of transformers at their hook points.
`python -m tests.helpers.stored_models` writes the file again; it needs torch.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder
from tests.helpers.tiny_configs import CONFIGS

FILE = Path(__file__).parents[1] / "models/stored_values.json"
FAMILIES = (
    "llama",
    "llama-biases-tied-llama3",
    "gpt2",
    "gpt_neox",
    "gemma2",
    "gemma4_text",
    "qwen3",
    "qwen3_moe",
    "qwen3_5_text",
)
POINTS = ("hook_embed", "blocks.1.attn.hook_q", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_expert_weights",
          "blocks.1.hook_mlp_out", "blocks.2.hook_resid_post", "ln_final.hook_normalized", "hook_loss")  # fmt: skip
LENGTHS = (40, 17)


def stored() -> dict[str, dict]:
    """{family: {"shapes": {tensor: shape}, "values": {hook point: what `picked` gives}}}."""
    return json.loads(FILE.read_text())


def write_model(name: str, folder: Path, shapes: dict[str, list[int]]) -> Path:
    """A model with tensors of these shapes. NumPy promises that a RandomState gives the same numbers in each version."""
    tensors = {}
    for tensor, shape in shapes.items():
        drawn = np.random.RandomState(zlib.crc32(tensor.encode())).standard_normal(shape) * 0.2
        tensors[tensor] = (drawn + (len(shape) == 1)).astype(np.float32)
    CONFIGS[name]().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def hook_points_of(folder: Path) -> tuple[str, ...]:
    """Those of POINTS that the model has."""
    return tuple(hook for hook in POINTS if hook in read_model_config(folder).hook_points)


def picked(values: np.ndarray) -> list[float]:
    """Of the values of the documents in order, three for the last token but one of each document."""
    tokens = np.cumsum(LENGTHS) - 2
    columns = np.linspace(0, values.shape[1] - 1, 3).astype(int)
    return [float(f"{value:.8g}") for value in values[np.ix_(tokens, columns)].ravel()]


def reference_values(folder: Path) -> dict[str, list[float]]:
    """What transformers computes from the saved model, by hook point. Needs torch."""
    from extraction.tools.parity import TorchReference
    from tests.helpers.tiny_models import documents

    reference = TorchReference.load(ModelFolder(folder, str(folder), None), hook_points_of(folder))
    alone = [reference(tokens) for tokens in documents(LENGTHS)]
    return {hook: picked(np.concatenate([values[hook] for values in alone])) for hook in alone[0]}


def renew(work: Path) -> None:
    """Write the file."""
    from tests.helpers.tiny_models import make_model

    found = {}
    for name in FAMILIES:
        make_model(name, work / f"drawn-{name}")
        shapes = {
            tensor: list(array.shape) for tensor, array in load_file(work / f"drawn-{name}/model.safetensors").items()
        }
        folder = write_model(name, work / name, shapes)
        found[name] = {"shapes": shapes, "values": reference_values(folder)}
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        renew(Path(work))
