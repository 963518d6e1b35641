"""Configurations as they are found in public: each gets its verdict, and one that is accepted has the published size.

Nothing is allocated: the parameters are shapes. A count is in the precision in which it was published.
"""

import json
import shutil
from math import prod

import pytest

from extraction.core.errors import InvalidRequest
from extraction.models.config import Experts, PerLayer, Rope
from extraction.models.config_file import read_model_config
from extraction.models.families import FAMILIES
from extraction.models.step import Model
from extraction.models.step_options import StepOptions
from extraction.models.weights import leaves_of
from tests.helpers.known_models import ACCEPTED, FOLDER, KNOWN, REFUSED, WITHOUT_A_FILE, field_of
from tests.helpers.workers import python

# Unless a file says otherwise.
TIED = ("gpt2", "gpt_neo", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "gemma3", "mistral3", "cohere", "cohere2")


@pytest.fixture
def config_of(tmp_path):
    """A function that reads one of the stored configurations."""

    def read(name):
        shutil.copy(FOLDER / f"{name}.json", tmp_path / "config.json")
        return read_model_config(tmp_path)

    return read


def parameters(config):
    """The whole shape of every parameter of the model, without a head, by path."""
    options = StepOptions(("ln_final.hook_normalized",), 1, 16, "bfloat16")
    params = Model.of(config, options).shapes
    return {".".join(path): leaf.shape for path, leaf in leaves_of(params)}


def rounded(count, published):
    """The count in as many digits as the published number has."""
    digits = len(published.split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{count:.{digits - 1}e}")


def test_every_stored_configuration_has_a_verdict_and_every_family_is_among_them():
    assert {path.stem for path in FOLDER.glob("*.json")} == KNOWN.keys()
    stored = {json.loads((FOLDER / f"{name}.json").read_bytes())["model_type"] for name in ACCEPTED}
    assert stored == FAMILIES.keys() - WITHOUT_A_FILE


@pytest.mark.filterwarnings("ignore:`rope_scaling`:FutureWarning")  # a class without rotation warns of the key
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_real_model_has_a_loss_and_as_many_parameters_as_its_authors_say(config_of, name):
    config, entry = config_of(name), ACCEPTED[name]
    assert config.no_loss is None
    shapes = parameters(config)
    written = json.loads((FOLDER / f"{name}.json").read_bytes())
    embedding = prod(shapes["embedding.table"])
    tied = written.get("tie_word_embeddings", written["model_type"] in TIED)
    assert config.tied == tied
    count = sum(map(prod, shapes.values()))
    if whole := entry.get("parameters"):
        assert rounded(count + (0 if tied else embedding), whole) == float(whole)
    if inner := entry.get("inner"):
        assert rounded(count - embedding, inner) == float(inner)


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_model_that_is_not_handled_is_refused_by_its_name(config_of, name):
    with pytest.raises(InvalidRequest) as caught:
        config_of(name)
    assert REFUSED[name] in str(caught.value)


@pytest.mark.slow
def test_a_refused_model_ends_the_command_with_2(tmp_path):
    shutil.copy(FOLDER / "phi-2.json", tmp_path / "config.json")
    result = python("extract_activations.py", "plan", "--model", tmp_path, "--accelerator", "v5e-8")
    assert result.returncode == 2 and "config.json: model type 'phi-msft' is not supported" in result.stderr


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Llama-3.1-8B", {"rope": Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192), "window": None, "num_kv_heads": 8}),
        ("Mistral-7B-v0.1", {"window": 4096, "head_width": 128}),
        ("Qwen2.5-7B", {"window": None, "qkv_bias": True, "output_bias": False}),
        ("Qwen3-30B-A3B", {"window": None, "qk_norm": "head", "mlp_width": 768}),
        ("gemma-2-9b", {"window": (4096, None) * 21, "softcap": 50.0, "attention_scale": 1 / 16}),
        (
            "gemma-3-1b-pt",
            {
                "window": ((512,) * 5 + (None,)) * 4 + (512, 512),
                "rope": ((Rope(1e4),) * 5 + (Rope(1e6),)) * 4 + (Rope(1e4),) * 2,
                "softcap": None,
            },
        ),
        (
            "gemma-3-4b-pt",
            {
                "family": "gemma3",
                "rope": ((Rope(1e4),) * 5 + (Rope(1e6, "linear", 8.0),)) * 5 + (Rope(1e4),) * 4,
                "window": ((1024,) * 5 + (None,)) * 5 + (1024,) * 4,
                "num_heads": 8,
                "vocab_size": 262208,
            },
        ),
        (
            "gemma-4-E2B-text",
            {
                "kv_of": (None,) * 15 + ((13,) * 4 + (14,)) * 4,
                "kv_kept_as": (None,) * 13 + (13, 14) + (None,) * 20,
                "mlp_width": (6144,) * 15 + (12288,) * 20,
                "head_width": ((256,) * 4 + (512,)) * 7,
                "rope": ((Rope(1e4),) * 4 + (Rope(1e6, "proportional", fraction=0.25),)) * 7,
                "per_layer": PerLayer(256, 262144),
            },
        ),
        (
            "google--gemma-4-26B-A4B",
            {
                "family": "gemma4",
                "experts": Experts(128, 8, True, 704),
                "v_is_k": ((False,) * 5 + (True,)) * 5,
                "num_kv_heads": ((8,) * 5 + (2,)) * 5,
                "kv_kept_as": None,
                "per_layer": None,
                "attention_scale": 1.0,
            },
        ),
        ("pythia-160m", {"parallel": True, "rope": Rope(1e4, fraction=0.25), "qkv_bias": True}),
        ("OLMo-2-1124-7B", {"qk_norm": "width", "norm_epsilon": 1e-6}),
        ("Mixtral-8x7B-v0.1", {"window": None, "mlp_width": 14336}),
    ],
)
def test_what_the_forward_pass_needs_is_read_from_it(config_of, name, expected):
    config = config_of(name)
    assert {name: field_of(config, name) for name in expected} == expected
