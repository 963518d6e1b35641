"""Rotary frequencies against transformers': each type, far positions, packed documents."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from extraction.models.config import Rope
from extraction.models.config_file import read_model_config
from extraction.models.families.reading import rope as rope_of
from extraction.models.rope import rope_frequencies, rotation
from extraction.models.used_config_keys import ModelView
from tests.helpers.tiny_configs.settings import DYNAMIC, LINEAR, LLAMA3, LONGROPE, SIZES, YARN

torch = pytest.importorskip("torch")
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "parameters, rope",
    [
        ({"rope_type": "default", "rope_theta": 1e6}, Rope(1e6)),
        (LINEAR, Rope(1e4, "linear", 4.0)),
        (LLAMA3, Rope(1e4, "llama3", 8.0, 1.0, 4.0, 64)),
        (YARN, Rope(1e4, "yarn", 4.0, original_max_positions=64, attention_factor=0.1 * np.log(4.0) + 1)),
        (
            {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25, "factor": 2.0},
            Rope(1e6, "proportional", 2.0, fraction=0.25),
        ),
        (
            YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 1.0},
            Rope(
                1e4,
                "yarn",
                4.0,
                original_max_positions=64,
                truncate=False,
                attention_factor=(0.07 * np.log(4.0) + 1) / (0.1 * np.log(4.0) + 1),
            ),
        ),
    ],
)
def test_rotations_are_those_of_the_reference_at_far_positions(parameters, rope):
    """A frequency one place off would be a visible angle at position 100,000."""
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    reference = LlamaRotaryEmbedding(config)
    theirs = reference.inv_freq.numpy()
    assert rope_of(parameters, ModelView(config), Path()) == rope
    assert rope.attention_factor == pytest.approx(reference.attention_scaling, rel=1e-12)
    assert np.abs(1e5 * (rope_frequencies(64, rope).astype(np.float64) - theirs)).max() < 1e-3


@pytest.mark.parametrize("length", [63, 64, 65, 100, 4000])
@pytest.mark.parametrize("parameters", [DYNAMIC, LONGROPE])
def test_frequencies_of_a_document_are_those_of_a_model_that_sees_it_first(parameters, length):
    config = transformers.LlamaConfig(
        **(SIZES | {"max_position_embeddings": 64}), rope_parameters=parameters | {"rope_theta": 1e4}
    )
    rope, reference = rope_of(config.rope_parameters, ModelView(config), Path()), LlamaRotaryEmbedding(config)
    cos, _ = reference(torch.zeros(1), torch.arange(length)[None])
    ours = rope_frequencies(8, rope, length).astype(np.float64)
    assert np.abs(1e5 * (ours - reference.inv_freq.numpy())).max() < 2e-2  # a power in float32 differs by one place
    lengths = [5, length, 0, 7]
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)])[None].astype(np.int32)
    packed, _ = rotation(jnp.asarray(positions), jnp.asarray(segments), 8, rope)
    np.testing.assert_allclose(packed[0, 5 : 5 + length, 0], cos[0, :, :4], atol=2e-3)
    alone, _ = rotation(jnp.asarray(positions[:, :5]), jnp.asarray(segments[:, :5]), 8, rope)
    np.testing.assert_array_equal(packed[0, :5], alone[0])
    np.testing.assert_array_equal(packed[0, -7:-2], alone[0])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("parameters", [LLAMA3, YARN, LONGROPE], ids=lambda each: each["rope_type"])
def test_original_positions_beside_the_parameters_are_those_of_the_rotation(parameters, inside, tmp_path, capsys):
    """As Phi-3's files have them; the reference takes them also where the parameters have others."""
    written = parameters | {"rope_theta": 1e4, "original_max_position_embeddings": 64}
    if not inside:
        del written["original_max_position_embeddings"]
    value = SIZES | {"model_type": "llama", "max_position_embeddings": 128, "original_max_position_embeddings": 32}
    (tmp_path / "config.json").write_text(json.dumps(value | {"rope_scaling": written}))
    (rope,) = {kind.rope for kind in read_model_config(tmp_path).layers}
    reference = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(tmp_path))
    assert rope.original_max_positions == 32 and "ignored" not in capsys.readouterr().err
    assert rope.attention_factor == pytest.approx(reference.attention_scaling, rel=1e-12)
    width = SIZES["hidden_size"] // SIZES["num_attention_heads"]
    assert rope_frequencies(width, rope) == pytest.approx(reference.inv_freq.numpy(), rel=1e-6)
