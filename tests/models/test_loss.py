"""Hook points that are stored in one dtype alone: losses, NaN at the last token of a record, and experts as integers."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import checkpoint
from extraction.audit.verify import audit_run
from extraction.core.errors import InvalidRequest
from extraction.format.commit import parse_commit
from extraction.format.safetensors import decode
from extraction.models.config_file import read_model_config
from extraction.models.location import ModelFolder
from extraction.read.reader import ActivationReader
from extraction.storage import crc32c_base64, open_storage
from extraction.tools.parity import TorchReference
from tests.helpers.stream_runs import edited
from tests.helpers.tiny_models import documents, error, load, run
from tests.helpers.workers import extract_here, make_streams, text_of, write_corpus

pytestmark = pytest.mark.slow

LOSS = "hook_loss"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run with windows of 16 tokens, records of 0 to 90 words, and batches that end inside of records."""
    folder = tmp_path_factory.mktemp("losses")
    texts = [text_of(number, length) for number, length in enumerate((3, 90, 1, 0, 40, 16, 7))]
    streams = make_streams(write_corpus(folder / "corpus", texts), folder / "streams")
    flags = ("--hooks", "loss,resid_post", "--seq-len", "16", "--store-dtype", "int8")
    extract_here(streams, folder / "run", *flags)
    return str(folder / "run")


def test_only_the_last_token_of_a_record_has_no_loss(output):
    records = list(ActivationReader(output).records([LOSS]))
    assert max(len(record.tokens) for record in records) > 64
    for record in records:
        losses = record.activations[LOSS][:, 0]
        assert losses.dtype == np.float32
        assert np.flatnonzero(np.isnan(losses)).tolist() == [len(losses) - 1] * (len(losses) > 0)


def test_its_statistics_are_of_the_tokens_with_a_loss_and_nothing_is_counted_as_not_finite(output):
    losses = np.concatenate([rows.activations[:, 0] for rows in ActivationReader(output).rows(LOSS)]).astype(np.float64)
    found = ActivationReader(output).statistics([LOSS])[LOSS]
    assert found.count == np.isfinite(losses).sum() < len(losses)
    assert found.mean[0] == pytest.approx(np.nanmean(losses), rel=1e-5)
    assert found.largest.value == np.nanmax(losses)
    storage = open_storage(output)
    commits = [parse_commit(storage.read(name), name) for name in checkpoint.list_commits(storage, 0)]
    assert len(commits) > 3 and all(commit.not_finite == {} for commit in commits)
    audit = audit_run(output, deep=True)
    assert audit.problems == [] and audit.exit_code == 0


def test_verify_finds_a_loss_at_the_last_token_of_a_record(output, tmp_path):
    """Its file and its commit are changed alike: size and checksum fit."""
    folder = tmp_path / "run"
    shutil.copytree(output, folder)
    storage = open_storage(str(folder))
    name = checkpoint.list_commits(storage, 0)[-1]  # so that no commit follows that has its digest
    file = folder / "worker-00000" / parse_commit(storage.read(name), name).data.name
    data = bytearray(file.read_bytes())
    decode(data).arrays[LOSS][np.isnan(decode(data).arrays[LOSS])] = 1.0
    file.write_bytes(data)
    value = json.loads(storage.read(name))["data"] | {"crc32c": crc32c_base64(bytes(data))}
    (folder / name).write_bytes(edited(storage.read(name), data=value))
    problems = audit_run(str(folder), deep=True).problems
    assert any("hook_loss is not NaN at the last token of each record" in str(each) for each in problems), problems


def test_a_loss_over_windows_is_of_the_next_token_of_the_record(models):
    """The last token of a window predicts the first one of the next."""
    (document,) = documents([40])
    step = load(models("llama").folder, (LOSS,), rows=2, seq_len=20)
    ours = run(step, [document], rows=2, seq_len=20)[0][LOSS][:, 0]
    alone = run(load(models("llama").folder, (LOSS,), rows=1, seq_len=21), [document[:21]], rows=1, seq_len=21)
    assert ours[19] == pytest.approx(alone[0][LOSS][19, 0], rel=1e-5) and np.isnan(ours[39])


def test_experts_are_stored_as_integers_whatever_the_dtype(models):
    model = models("qwen3_moe")
    hook = "blocks.1.mlp.hook_expert_indices"
    ours, _ = run(load(model.folder, (hook, hook.replace("indices", "weights")), store_dtype="bfloat16"), documents())
    assert ours[hook].dtype == np.int32 and np.array_equal(ours[hook], model.reference[hook])
    weights = hook.replace("indices", "weights")
    assert ours[weights].dtype.name == "bfloat16" and error(ours[weights], model.reference[weights]) < 0.01


def test_neither_has_a_mean_over_windows(models):
    with pytest.raises(InvalidRequest, match="--positions mean: hook_loss has no mean"):
        load(models("llama").folder, (LOSS,), pool=True)


def test_the_softcap_of_the_head_is_read(tmp_path):
    import transformers

    transformers.Gemma2Config(final_logit_softcapping=30.0).save_pretrained(tmp_path)
    assert read_model_config(tmp_path).logit_softcap == 30.0


def test_a_head_that_is_stored_beside_the_embedding_of_a_tied_model_is_the_head(models, tmp_path):
    """As transformers, which ties no matrices that the files tell apart."""
    folder = shutil.copytree(models("llama-biases-tied-llama3").folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tied, _ = run(load(folder, (LOSS,)), documents())
    other = np.random.default_rng(0).standard_normal((97, 32)).astype(np.float32)
    save_file(tensors | {"lm_head.weight": other}, folder / "model.safetensors")
    ours, _ = run(load(folder, (LOSS,)), documents())
    pytest.importorskip("torch")
    reference = TorchReference.load(ModelFolder(folder, str(folder), None), (LOSS,))
    theirs = np.concatenate([reference(tokens)[LOSS] for tokens in documents()])
    assert error(ours[LOSS], theirs) < 1e-5 < error(tied[LOSS], theirs)
