"""Configurations of real models, as their authors put them on the hub: each builds, and has the published size.

Nothing is allocated: the parameters are shapes. A count is in the precision in which it was published.
"""

import json
import shutil
from math import prod
from pathlib import Path

import pytest

from extraction.forward import CapturePlan, ForwardOptions, StepShape, _abstract_model
from extraction.models.config import Rope
from extraction.models.config_file import read_model_config
from extraction.models.families import FAMILIES
from extraction.models.weights import leaves_of

FOLDER = Path(__file__).parent / "model_configs"
# Parameters in all, those without the embedding (and the head, where it is another matrix), and who says so.
PUBLISHED = {
    "Llama-3.1-8B": ("8.03e9", None, "the hub's count of the tensors, meta-llama/Llama-3.1-8B"),
    "Llama-3.2-1B": ("1.24e9", None, "the hub's count; the model card rounds it down to 1.23B"),
    "SmolLM2-135M": ("135e6", None, "its name and model card"),
    "Mistral-7B-v0.1": ("7.24e9", None, "the hub's count of the tensors"),
    "Qwen2.5-0.5B": ("0.49e9", "0.36e9", "model card"),
    "Qwen2.5-7B": ("7.62e9", "6.53e9", "the hub's count (the model card has 7.61B) and model card"),
    "Qwen3-0.6B": ("0.6e9", "0.44e9", "model card"),
    "Qwen3-30B-A3B": ("30.5e9", "29.9e9", "model card"),
    "gemma-2-9b": ("9241705984", "8324201984", "Gemma 2 report, table 2"),
    "gemma-3-1b-pt": ("1.00e9", "698e6", "Gemma 3 report, table 1"),
    "gemma-3-4b-pt": (None, "3209e6", "Gemma 3 report, table 1, where the vision encoder is counted apart"),
    "gpt2": ("124e6", None, "README of openai/gpt-2, which corrects the paper's 117M"),
    "pythia-160m": ("162322944", "85056000", "model card"),
    "OLMo-2-1124-7B": ("7.3e9", None, "the hub's count of the tensors"),
    "Mixtral-8x7B-v0.1": ("46.7e9", None, "the announcement by Mistral AI, 2023-12-11"),
}


@pytest.fixture
def config_of(tmp_path):
    """A function that reads one of the stored configurations."""

    def read(name):
        shutil.copy(FOLDER / f"{name}.json", tmp_path / "config.json")
        return read_model_config(tmp_path)

    return read


def parameters(config):
    """The whole shape of every parameter of the model, without a head, by path."""
    options = ForwardOptions(("ln_final.hook_normalized",), StepShape(1, 16), compute_dtype="bfloat16")
    _, params = _abstract_model(config, CapturePlan.of(options.hook_points, config), options)
    return {".".join(path): leaf.shape for path, leaf in leaves_of(params)}


def rounded(count, published):
    """The count in as many digits as the published number has."""
    digits = len(published.split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{count:.{digits - 1}e}")


def test_every_stored_configuration_has_a_published_count_and_every_family_one():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PUBLISHED)
    stored = {json.loads(path.read_bytes())["model_type"] for path in FOLDER.glob("*.json")}
    assert stored == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_real_model_has_as_many_parameters_as_its_authors_say(config_of, name):
    whole, inner, _ = PUBLISHED[name]
    shapes = parameters(config_of(name))
    written = json.loads((FOLDER / f"{name}.json").read_bytes())
    embedding = prod(shapes["embedding.table"])
    tied = written.get("tie_word_embeddings", written["model_type"] in ("gpt2", "gemma2", "gemma3_text", "gemma3"))
    count = sum(map(prod, shapes.values()))
    if whole is not None:
        assert rounded(count + (0 if tied else embedding), whole) == float(whole)
    if inner is not None:
        assert rounded(count - embedding, inner) == float(inner)


@pytest.mark.parametrize("name, expected", [
    ("Llama-3.1-8B", {"rope": Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192), "window": None, "num_kv_heads": 8}),
    ("Mistral-7B-v0.1", {"window": 4096, "windowed": (True,) * 32, "head_width": 128}),
    ("Qwen2.5-7B", {"window": None, "qkv_bias": True, "output_bias": False}),
    ("Qwen3-30B-A3B", {"window": None, "qk_norm": "head", "mlp_width": 768}),
    ("gemma-2-9b", {"window": 4096, "windowed": (True, False) * 21, "softcap": 50.0, "attention_scale": 1 / 16}),
    ("gemma-3-1b-pt", {"window": 512, "windowed": ((True,) * 5 + (False,)) * 4 + (True, True), "rope": Rope(1e6),
                       "window_rope": Rope(1e4), "softcap": None}),
    ("gemma-3-4b-pt", {"family": "gemma3", "rope": Rope(1e6, "linear", 8.0), "window_rope": Rope(1e4), "window": 1024,
                       "windowed": ((True,) * 5 + (False,)) * 5 + (True,) * 4, "num_heads": 8, "vocab_size": 262208}),
    ("pythia-160m", {"parallel": True, "rope": Rope(1e4, fraction=0.25), "qkv_bias": True}),
    ("OLMo-2-1124-7B", {"qk_norm": "width", "norm_epsilon": 1e-6}),
    ("Mixtral-8x7B-v0.1", {"window": None, "mlp_width": 14336}),
])
def test_what_the_forward_pass_needs_is_read_from_it(config_of, name, expected):
    config = config_of(name)
    assert {field: getattr(config, field) for field in expected} == expected
