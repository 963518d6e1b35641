"""The loader is strict: what is missing, unknown, doubled, misshapen or cut is named."""

import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from extraction.core.errors import DamagedData, InvalidRequest, PermissionDenied
from extraction.models import tensors
from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder, locate_model
from extraction.models.step import load_step
from extraction.models.step_options import StepOptions
from extraction.models.tensors import WeightFiles
from extraction.storage import open_storage
from tests.helpers.tiny_models import documents, error, load, run

pytestmark = pytest.mark.slow

LAST = ("blocks.2.hook_resid_post",)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(models, tmp_path):
    """A folder of our own with the tiny Llama."""
    return shutil.copytree(models("llama").folder, tmp_path / "model")


def rewrite(folder, change):
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def split(folder, index=True):
    """The one file as two, with or without an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"part-{i * 2 // len(names)}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def digest_of(folder, change=None):
    """The digest of the final norm alone, after a change."""
    if change:
        rewrite(folder, change)
    with WeightFiles(ModelFolder(folder, "", None)) as files:
        files.feed({"model.norm.weight": files.places["model.norm.weight"]}, lambda name, tensor: None)
        return files.digest()


def test_names_without_the_prefix_and_known_buffers_are_understood(models, tmp_path):
    """As in the GPT-2 of the hub: `h.0.attn.bias` is the causal mask, not a bias."""
    folder = shutil.copytree(models("gpt2").folder, tmp_path / "model")
    buffers = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32), "h.2.attn.masked_bias": np.float32([-1e4])}
    rewrite(folder, lambda t: [t.update({n.removeprefix("transformer."): t.pop(n)}) for n in list(t)])
    rewrite(folder, lambda t: t.update(buffers))
    ours, _ = run(load(folder, LAST), documents())
    assert error(ours[LAST[0]], models("gpt2").reference[LAST[0]]) < 1e-5


def test_old_rotary_buffers_are_known(model):
    before = load(model, ("blocks.0.hook_resid_pre",)).weights_digest
    buffer = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for layer in range(3)}
    rewrite(model, lambda t: t.update(buffer))
    assert load(model, ("blocks.0.hook_resid_pre",)).weights_digest == before


def test_the_buffers_and_the_head_of_old_gpt_neox_files_are_known(models, tmp_path):
    """With `embed_out` for the head, and masks, which are no biases, in each layer."""
    folder = shutil.copytree(models("gpt_neox").folder, tmp_path / "model")
    mask = {
        "attention.bias": np.ones((1, 1, 4, 4), np.float32),
        "attention.masked_bias": np.float32(-1e9),
        "attention.rotary_emb.inv_freq": np.ones(1, np.float32),
    }
    buffers = {f"gpt_neox.layers.{layer}.{name}": np.array(value) for layer in range(3) for name, value in mask.items()}
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    rewrite(folder, lambda t: t.update(buffers))
    ours, _ = run(load(folder, LAST), documents())
    assert error(ours[LAST[0]], models("gpt_neox").reference[LAST[0]]) < 1e-5


EXPERT = "model.layers.1.mlp.experts.{}.up_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(EXPERT.format(4)), r"experts\.4\.up_proj\.weight is missing"),
        (lambda t: t.update({EXPERT.format(5): t[EXPERT.format(4)]}), r"experts\.5\.up_proj\.weight is unknown"),
        (lambda t: t.update({EXPERT.format(4): t[EXPERT.format(4)][1:]}), r"experts\.4\.up_proj\.weight has shape"),
        (
            lambda t: t.update({"model.layers.0.mlp.shared_expert_gate.weight": t["model.norm.weight"]}),
            "gate.weight is unknown",
        ),
    ],
)
def test_there_are_as_many_experts_as_the_configuration_says(models, tmp_path, change, message):
    folder = shutil.copytree(models("qwen3_moe").folder, tmp_path / "model")
    rewrite(folder, change)
    with pytest.raises(DamagedData, match=message):
        load(folder, LAST)


@pytest.mark.parametrize("index", [True, False])
def test_the_digest_is_of_the_tensors_and_not_of_their_files(models, model, index):
    whole = load(model, ("blocks.0.hook_resid_pre",)).weights_digest
    split(model, index)
    assert load(model, ("blocks.0.hook_resid_pre",)).weights_digest == whole
    assert whole.startswith("sha256:") and len(whole) == 71


def test_the_digest_covers_bytes_shape_and_dtype(model):
    before = digest_of(model)
    assert digest_of(model, lambda t: t.update({UP: t[UP] + 1})) == before
    half = digest_of(model, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.float16)}))
    brain = digest_of(model, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].view(ml_dtypes.bfloat16)}))
    other = digest_of(model, lambda t: t.update({"model.norm.weight": t["model.norm.weight"][::-1].copy()}))
    assert len({before, half, brain, other}) == 4


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(UP), f"model: tensor {UP} is missing"),
        (
            lambda t: t.update({"model.layers.1.extra": t[UP]}),
            r"model\.safetensors: tensor model\.layers\.1\.extra is unknown",
        ),
        (lambda t: t.update({"model.norm.bias": t["model.norm.weight"]}), r"model\.norm\.bias is unknown"),
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing .*; save or download the model again"),
        (
            lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": t["model.norm.weight"]}),
            r"q_proj\.bias is unknown",
        ),
        (lambda t: t.update({UP: t[UP][:-1]}), rf"model\.safetensors: tensor {UP} has shape"),
        (lambda t: t.update({UP: np.ascontiguousarray(t[UP].T)}), f"{UP} has shape"),
        (lambda t: t.update({UP: t[UP].astype(np.int8)}), f"{UP} is I8"),
        (
            lambda t: t.update({"norm.weight": t["model.norm.weight"]}),
            r"tensor model\.norm\.weight is doubled, also stored as norm",
        ),
        (
            lambda t: t.pop("model.embed_tokens.weight"),
            r"model\.embed_tokens\.weight is missing .*; lm_head\.weight is there, but .* another matrix \(tie_word_embeddings\)",
        ),
        (
            lambda t: t.clear() or t.update({"bert.pooler.weight": np.ones(2, np.float32)}),
            r"no tensor is called model\.embed_tokens\.weight.* \(there are bert\.pooler\.weight, .* not of one model",
        ),
        (
            lambda t: t.update({f"draft.{name}": tensor for name, tensor in t.items()}),
            r"more than once, with draft\.model\.layers\.0\.\S+ and model\.layers\.0\.\S+; save one",
        ),
        (
            lambda t: t.update(
                {f"{UP[:-7]}.base_layer.weight": t.pop(UP), f"{UP[:-7]}.lora_A.default.weight": t["lm_head.weight"]}
            ),
            r"up_proj\.base_layer\.weight is unknown",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, change, message):
    rewrite(model, change)
    with pytest.raises(DamagedData, match=message):
        load(model, LAST)


FIRST = "model.embed_tokens.weight"


def renamed(prefix, own="model."):
    """Gives every tensor of the text model this prefix in place of its own."""
    return lambda t: [
        t.update({prefix + name.removeprefix(own): t.pop(name)}) for name in list(t) if name.startswith(own)
    ]


@pytest.mark.parametrize(
    "change",
    [
        renamed(""),
        renamed("transformer."),
        renamed("model.language_model."),
        renamed("language_model.model."),
        renamed("base_model.model.model."),
        renamed("_orig_mod.model."),
        renamed("module.model."),
        lambda t: t.update({"score.weight": t["lm_head.weight"][:1]}),
        lambda t: t.update({"v_head.summary.weight": t[UP], "v_head.summary.bias": t["model.norm.weight"]}),
        lambda t: t.update({"classifier.weight": t.pop("lm_head.weight").astype(np.int8)}),
        lambda t: t.update({name.replace("layers.1", "layers.3"): t[name] for name in list(t) if "layers.1." in name}),
        lambda t: t.update({"model.layers.3.embed_tokens.weight": t[FIRST], "model.layers.3.eh_proj.weight": t[UP]}),
        lambda t: t.update({f"model.mtp.layers.0.{name[15:]}": t[name] for name in list(t) if "layers.0." in name}),
        lambda t: t.update({"vision_tower.encoder.layers.0.self_attn.q_proj.weight": t[UP]}),
    ],
)
def test_other_prefixes_heads_layers_and_towers_change_nothing(model, change):
    before = load(model, LAST).weights_digest
    rewrite(model, change)
    assert load(model, LAST).weights_digest == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("model.layers.2.mlp.up_proj.weight"),
        lambda t: t.update({"model.layers.2.extra": t[UP]}),
    ],
)
def test_a_layer_that_does_not_run_is_not_looked_at(model, change):
    before = load(model, ("blocks.1.hook_resid_post",)).weights_digest
    rewrite(model, change)
    assert load(model, ("blocks.1.hook_resid_post",)).weights_digest == before
    with pytest.raises(DamagedData, match=r"model\.layers\.2\."):
        load(model, LAST)


@pytest.mark.parametrize("name", ["llama-biases-tied-llama3", "gpt2", "gpt_neox-in-turn-linear", "gemma2"])
def test_a_tied_model_that_was_saved_with_its_head_alone_is_whole(models, tmp_path, name):
    """`save_model` of safetensors keeps one name of a tensor that has two; which one is up to the alphabet."""
    save_model = pytest.importorskip("safetensors.torch").save_model
    folder = shutil.copytree(models(name).folder, tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    save_model(model, str(folder / "model.safetensors"))
    kept = load_file(folder / "model.safetensors")
    if name == "gpt_neox-in-turn-linear":  # as transformers 4 called it
        kept["embed_out.weight"] = kept.pop("lm_head.weight", None) or kept.pop("gpt_neox.embed_in.weight")
        save_file(kept, folder / "model.safetensors")
    assert len(stored.keys() - kept.keys()) == 1 and kept.keys() - stored.keys() <= {
        "lm_head.weight",
        "embed_out.weight",
    }
    ours, _ = run(load(folder, LAST), documents())
    assert error(ours[LAST[0]], models(name).reference[LAST[0]]) < 1e-5


def test_a_tied_model_with_neither_name_says_both(models, tmp_path):
    folder = shutil.copytree(models("gemma2").folder, tmp_path / "model")
    rewrite(folder, lambda t: t.pop(FIRST))
    with pytest.raises(
        DamagedData, match=r"embed_tokens\.weight is missing .* and so is the head .* \(lm_head\.weight\)"
    ):
        load(folder, LAST)


def test_a_tensor_in_two_files_is_refused(model):
    split(model, index=False)
    save_file({UP: np.zeros((48, 32), np.float32)}, model / "part-2.safetensors")
    with pytest.raises(DamagedData, match=rf"part-2\.safetensors: tensor {UP} is doubled, also in .*part-\d"):
        load(model, LAST)


def test_float8_is_refused_by_name(model):
    """Written by hand, since its scales lie elsewhere and NumPy would not even read it."""
    tensors = load_file(model / "model.safetensors")
    shape = tensors.pop(UP).shape
    save_file(tensors, model / "part-0.safetensors")
    (model / "model.safetensors").unlink()
    header = json.dumps({UP: {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [0, shape[0] * shape[1]]}}).encode()
    (model / "part-1.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(shape[0] * shape[1]))
    with pytest.raises(DamagedData, match=rf"part-1\.safetensors: tensor {UP}"):
        load(model, LAST)


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b[:4], lambda b: b"", lambda b: b[:8] + b"x" + b[9:]])
def test_a_damaged_file_is_named(model, damage):
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedData, match=r"model\.safetensors"):
        load(model, LAST)


@pytest.mark.parametrize(
    "index, message",
    [
        (
            '{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}',
            "model-00002-of-00002.safetensors",
        ),
        ('{"weight_map": {"model.norm.weight": "../model.safetensors"}}', "outside its folder"),
        ('{"weight_map": ', "not an index"),
        ("[]", "not an index"),
        ('{"weight_map": {"a": 3}}', "not an index"),
    ],
)
def test_a_damaged_index_is_named(model, index, message):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DamagedData, match=message):
        load(model, LAST)


def test_no_weights_at_all(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").touch()
    with pytest.raises(InvalidRequest, match=r"no model\.safetensors, .* or other \.safetensors file"):
        load(model, LAST)


def test_the_host_holds_the_largest_tensor_and_a_margin(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "PART_BYTES", 1 << 18)
    monkeypatch.setattr(tensors, "NUM_READERS", 2)
    sizes = {"big": 1 << 24, **{f"small-{i}": 3000 for i in range(50)}, **{f"middle-{i}": 1_500_000 for i in range(30)}}
    stored = {name: np.full(size // 4, i, np.float32) for i, (name, size) in enumerate(sizes.items())}
    save_file(stored, tmp_path / "model.safetensors")
    seen = []
    with WeightFiles(ModelFolder(tmp_path, "", None)) as files:
        tracemalloc.start()
        files.feed(
            {name: files.places[name] for name in list(sizes)[::-1]},
            lambda name, tensor: seen.append((name, tensor.shape, set(tensor[[0, -1]]))),
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seen == [(name, stored[name].shape, {stored[name][0]}) for name in list(sizes)[::-1]]
    assert (1 << 24) < peak < (1 << 24) + 2 * 2 * (1 << 18) + 300_000  # the last for what Python itself needs


@pytest.fixture
def in_bucket(models, gcs, monkeypatch, tmp_path):
    """Puts the tiny Llama in two files and an index into the bucket; returns its place and its objects."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = shutil.copytree(models("llama").folder, tmp_path / "upload")
    split(folder)
    storage = open_storage("gs://bucket/models/tiny")
    for path in folder.iterdir():
        storage.create(path.name, path.read_bytes())
    return "gs://bucket/models/tiny", storage


def test_a_model_in_a_bucket_is_read_in_ranges_and_only_small_files_are_kept(models, in_bucket, gcs, tmp_path):
    folder = locate_model(in_bucket[0])
    assert (folder.name, folder.revision) == ("tiny", None)
    kept = {path.name for path in (tmp_path / ".cache").rglob("*") if path.is_file()}
    assert "config.json" in kept and not any(name.endswith(".safetensors") for name in kept)
    gcs.history.clear()
    assert locate_model(in_bucket[0]) == folder
    assert not any(what.startswith("read") for _, _, what, _ in gcs.history)

    config, options = read_model_config(folder.path), StepOptions(LAST, 2, 150, "float32", "float32")
    ours, _ = run(load_step(folder, config, options), documents())
    assert error(ours[LAST[0]], models("llama").reference[LAST[0]]) < 1e-5


def digest_in_bucket(place):
    with WeightFiles(locate_model(place)) as files:
        return files.digest()


def test_the_digest_of_a_bucket_is_made_of_checksums_and_generations(in_bucket, gcs):
    place, storage = in_bucket
    before = digest_in_bucket(place)
    gcs.history.clear()
    assert digest_in_bucket(place) == before
    size = sum(info.size for info in storage.list())
    storage.replace("part-0.safetensors", storage.read("part-0.safetensors"))
    assert digest_in_bucket(place) != before and size == sum(info.size for info in storage.list())


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(in_bucket):
    place, storage = in_bucket
    with WeightFiles(locate_model(place)) as files:
        storage.replace("part-1.safetensors", storage.read("part-1.safetensors"))
        with pytest.raises(DamagedData, match=r"gs://bucket/models/tiny/part-1\.safetensors: the object was replaced"):
            files.digest()


def test_a_model_that_is_not_in_the_bucket_or_not_whole(in_bucket, gcs):
    place, storage = in_bucket
    with pytest.raises(InvalidRequest, match="--model gs://bucket/models/other: there is no config.json"):
        locate_model("gs://bucket/models/other")
    with pytest.raises(InvalidRequest, match="gs://nowhere: there is no such bucket"):
        locate_model("gs://nowhere/models/tiny")
    gcs.instruct("list", "*", "fail", status=403, count=9)
    with pytest.raises(PermissionDenied, match=r"storage\.objects\.list on gs://bucket"):
        locate_model(place)
    gcs.instructions.clear()
    gcs.instruct("read", "*part-0*", "fail", status=403, count=9)
    with pytest.raises(PermissionDenied, match=r"storage\.objects\.get on gs://bucket"):
        digest_in_bucket(place)
    gcs.instructions.clear()
    del gcs.objects["models/tiny/part-1.safetensors"]
    with pytest.raises(
        DamagedData, match=r"gs://bucket/models/tiny/part-1\.safetensors: named by the index, but not there"
    ):
        digest_in_bucket(place)
