"""Scans of states against transformers' recurrent forms, a document at a time; text models inside others; stacks of experts."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from extraction.core.errors import DamagedData, InvalidRequest
from extraction.models.config_file import read_model_config
from extraction.models.expert_stacks import split_stacks
from extraction.models.state_scan import ScanRows, scan_states
from extraction.models.tensors import TensorPlace
from extraction.models.weight_tables import EXPERT_STACKS
from tests.helpers.tiny_models import documents, error, load, run

pytestmark = pytest.mark.slow

KEY_HEADS, HEADS, KEY_WIDTH, WIDTH = 2, 4, 8, 6


def random_rows(length, decays=(0.01, 1.0), equal_keys=False):
    """q, k, v, log decays and rates of a row of this length; of equal keys the rates are almost 1."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, length, KEY_HEADS, KEY_WIDTH), np.float32) for _ in range(2))
    v = rng.standard_normal((1, length, HEADS, WIDTH), np.float32)
    decay = -rng.choice(decays, (1, length, HEADS)).astype(np.float32)
    rate = rng.uniform(0, 1, decay.shape).astype(np.float32)
    return (q, np.broadcast_to(k[:, :1], k.shape), v, decay, rate**0.01) if equal_keys else (q, k, v, decay, rate)


def recurrent(parts, start, end):
    """What the reference reads from the state of a document, token by token."""
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    q, k, v, decay, rate = (torch.from_numpy(part[:, start:end].copy()) for part in parts)
    return torch_recurrent_gated_delta_rule(q, k, v, g=decay, beta=rate, use_qk_l2norm_in_kernel=True)[0].numpy()


def added(parts, start, end):
    """What Mamba-2's reference reads from the state of a document, token by token."""
    torch = pytest.importorskip("torch")
    from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_selective_state_update

    q, k, v, decay, rate = (torch.from_numpy(part[:, start:end].copy()) for part in parts)
    state, read = torch.zeros(1, HEADS, WIDTH, KEY_WIDTH), []
    for t in range(end - start):
        speed = (decay[0, t] / rate[0, t])[:, None, None]
        step = rate[:, t, :, None].expand(1, HEADS, WIDTH)
        read.append(mamba2_selective_state_update(state, v[:, t], step, speed, k[:, t], q[:, t]))
    return torch.stack(read, 1).numpy()


@pytest.mark.parametrize("lengths", [(64, 64), (63, 1, 65, 2, 59), (1,) * 9 + (128,), (200,), (5,)])
@pytest.mark.parametrize(
    "settings", [{}, {"decays": (1e-3, 60.0)}, {"decays": (0.0, 1e-4), "equal_keys": True}], ids=["", "decays", "keys"]
)
@pytest.mark.parametrize("reference", [recurrent, added])
def test_documents_in_a_row_read_what_each_reads_alone(lengths, settings, reference):
    """A large decay beside small ones costs digits where sums are subtracted; equal keys make the hardest system."""
    ends = np.cumsum((0, *lengths))
    padded = ends[-1] + 7
    parts = random_rows(padded, **settings)
    segment_ids = np.zeros((1, padded), np.int32)
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False), start=1):
        segment_ids[:, start:end] = number
    scan = jax.jit(partial(scan_states, corrects=reference is recurrent))
    ours = np.asarray(scan(ScanRows(*parts, segment_ids)))
    assert np.isfinite(ours).all()
    for start, end in zip(ends, ends[1:], strict=False):
        assert error(ours[:, start:end], reference(parts, start, end)) < 1e-5, (start, end)


def test_a_delta_net_says_which_hook_points_it_lacks(models):
    config = read_model_config(models("qwen3_5_text").folder)
    with pytest.raises(InvalidRequest, match=r"attn.hook_q: .*layer 0 is a Gated DeltaNet.* these have it: 3$"):
        load(models("qwen3_5_text").folder, ("blocks.0.attn.hook_q",))
    assert [config.hook_width(f"blocks.{layer}.attn.hook_z") for layer in (2, 3)] == [4 * 8, 4 * 16]


def test_a_text_model_inside_another_is_read_with_the_kernels_of_experts_alone_or_in_stacks(models, tmp_path):
    """As the hub has them: a configuration in a configuration, a longer prefix, other towers and further layers."""
    model, stacks = models("qwen3_5_moe_text"), {}
    tensors = load_file(model.folder / "model.safetensors")
    for name in [name for name in tensors if ".mlp.experts." in name]:
        layer, _, rest = name.partition("experts.")
        expert, part, _ = rest.split(".")
        stacks.setdefault(layer, {})[int(expert), part] = tensors.pop(name)
    assert stacks
    for layer, kernels in stacks.items():
        both = [np.concatenate([kernels[e, "gate_proj"], kernels[e, "up_proj"]]) for e in range(5)]
        tensors[f"{layer}experts.gate_up_proj"] = np.stack(both)
        tensors[f"{layer}experts.down_proj"] = np.stack([kernels[e, "down_proj"] for e in range(5)])
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    others = {"model.visual.merger.norm.weight": np.ones(3), "mtp.layers.0.input_layernorm.weight": np.ones(3)}
    save_file(renamed | others, tmp_path / "model.safetensors")
    inner = json.loads((model.folder / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5_moe", "text_config": inner}))
    hooks = ("blocks.1.hook_attn_out", "ln_final.hook_normalized")
    ours, _ = run(load(tmp_path, hooks), documents())
    for hook in hooks:
        assert error(ours[hook], model.reference[hook]) < 1e-5, hook


@pytest.mark.parametrize("shape, others, message", [((4, 3, 2), {}, "has shape"), ((4, 2), {}, "has shape"),
    ((4, 6, 2), {"mlp.experts.3.up_proj.weight"}, "doubled")])  # fmt: skip
def test_a_stack_that_cannot_be_cut_is_damaged_data(shape, others, message):
    names = ["mlp.experts.gate_up_proj", *others]
    with pytest.raises(DamagedData, match=message):
        split_stacks({name: TensorPlace("a.safetensors", name, "F32", shape, 0, 96) for name in names}, EXPERT_STACKS)
