"""Where people take a run next, each with the real package: torch, jax, datasets, SAELens."""

import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from extraction.adapters.torch import TorchActivations, to_tensor
from extraction.errors import InvalidRequest
from extraction.exports import ExportOptions, export
from extraction.reader import ActivationReader
from extraction.shuffle import ShuffledReader, ShuffleOptions
from extraction.storage import open_storage
from tests.runs import WIDTHS, activations_of, make_run, tokens_of
from tests.workers import ROOT, python

STREAMS = ([5, 3, 20, 0, 8, 1, 7, 7, 2, 16], [40, 1, 2, 30], [9] * 7)
HOOK, OTHER = WIDTHS
ALL_TOKENS = np.concatenate([tokens_of(w, i, n) for w, lengths in enumerate(STREAMS) for i, n in enumerate(lengths)])
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["extraction.adapters.torch"])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return str(folder)


def expected(tokens, name):
    return activations_of(np.asarray(tokens), WIDTHS[name]).astype(np.float32)


def tokens_in(batches):
    return [batch["tokens"].tolist() for batch in batches]


def loader_of(dataset, num_workers, kind=torch.utils.data.DataLoader):
    """Its processes come from a server without jax, which other tests in this process have started."""
    started = {"multiprocessing_context": SERVER, "persistent_workers": True} if num_workers else {}
    return kind(dataset, batch_size=None, num_workers=num_workers, **started)


def test_a_torch_loader_gives_every_token_once(output):
    dataset = TorchActivations(output, HOOK, ShuffleOptions(batch_size=7, buffer=50))
    batches = list(loader_of(dataset, num_workers=0))
    assert sorted(sum(tokens_in(batches), [])) == sorted(ALL_TOKENS.tolist())
    for batch in batches:
        assert batch["activations"].dtype == torch.bfloat16
        assert np.array_equal(batch["activations"].float().numpy(), expected(batch["tokens"], HOOK))


def test_ranks_with_loader_processes_share_each_epoch(output):
    """Two ranks with two processes each, that stay for a second epoch."""
    seen = [[], []]
    for rank in range(2):
        dataset = TorchActivations(output, HOOK, ShuffleOptions(batch_size=7, buffer=50, rank=rank, world_size=2))
        loader = loader_of(dataset, num_workers=2)
        for dataset.epoch in range(2):
            seen[dataset.epoch] += sum(tokens_in(loader), [])
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(ALL_TOKENS.tolist())
    assert seen[0] != seen[1]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_resumes_in_the_middle(output, num_workers):
    """Of 205 tokens, the first process has two batches and the second three; the last state is of when both ended."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    options = ShuffleOptions(batch_size=51, buffer=51)
    loader = loader_of(TorchActivations(output, HOOK, options), num_workers, StatefulDataLoader)
    whole = tokens_in(loader)
    for seen in (2, len(whole) - 1, len(whole)):
        batches = iter(loader)
        assert tokens_in(next(batches) for _ in range(seen)) == whole[:seen]
        resumed = loader_of(TorchActivations(output, HOOK, options), num_workers, StatefulDataLoader)
        resumed.load_state_dict(loader.state_dict())
        assert tokens_in(resumed) == whole[seen:]


def test_a_dataset_resumes_by_itself(output):
    def dataset(seed=0):
        return TorchActivations(output, HOOK, ShuffleOptions(batch_size=7, buffer=50, seed=seed))

    first, resumed = dataset(), dataset()
    first.epoch = 3
    batches = iter(first)
    next(batches), next(batches)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert tokens_in(resumed) == tokens_in(batches)
    resumed.load_state_dict(first.state_dict())
    assert tokens_in(resumed) == [], "the epoch had ended"
    assert sorted(sum(tokens_in(resumed), [])) == sorted(ALL_TOKENS.tolist())
    other = dataset(seed=1)
    other.load_state_dict(first.state_dict())
    with pytest.raises(InvalidRequest, match="no common order"):
        iter(other)


def test_several_hook_points_and_another_epoch(output):
    dataset = TorchActivations(output, [HOOK, OTHER], ShuffleOptions(batch_size=7, buffer=50))
    first = list(dataset)
    for name in (HOOK, OTHER):
        assert np.array_equal(first[0]["activations"][name].float().numpy(), expected(first[0]["tokens"], name))
    dataset.epoch = 1
    assert tokens_in(dataset) != tokens_in(first)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float16])
def test_other_dtypes_are_themselves(dtype):
    assert np.array_equal(to_tensor(np.arange(6, dtype=dtype).reshape(2, 3)).numpy(), np.arange(6).reshape(2, 3))


def test_jax_takes_rows_with_a_sharding(output):
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data", None))
    rows = next(iter(ShuffledReader(ActivationReader(output), HOOK, ShuffleOptions(batch_size=8, buffer=50))))
    array = jax.device_put(rows.activations, sharding)
    assert (array.dtype, array.sharding) == ("bfloat16", sharding)
    assert np.array_equal(np.asarray(array, np.float32), expected(rows.tokens, HOOK))


def test_npy_is_every_token_in_order(output, tmp_path):
    assert export(output, "npy", str(tmp_path / "out"), ExportOptions()) == len(ALL_TOKENS)
    tokens = np.load(tmp_path / "out/tokens.npy")
    assert np.array_equal(tokens, ALL_TOKENS)
    for name in WIDTHS:
        assert np.array_equal(np.load(tmp_path / f"out/{name}.npy"), expected(tokens, name))
    stream, index = np.load(tmp_path / "out/record.npy").T
    assert np.array_equal((tokens - 100 * index - 100_000 * stream) % 8, np.load(tmp_path / "out/position.npy"))


def test_openmoss_chunks_have_its_names_and_keys(output, tmp_path):
    export(output, "openmoss", str(tmp_path / "out"), ExportOptions((HOOK,)))
    chunks = [load_file(path) for path in sorted((tmp_path / "out" / HOOK).glob("chunk-*.safetensors"))]
    assert np.array_equal(torch.cat([chunk["tokens"] for chunk in chunks]), ALL_TOKENS)
    for chunk in chunks:
        assert np.array_equal(chunk["activation"].float().numpy(), expected(chunk["tokens"], HOOK))


def test_a_datasets_dataset_is_what_saelens_caches(output, tmp_path):
    from datasets import load_from_disk

    written = export(output, "saelens", str(tmp_path / "out"), ExportOptions((HOOK,), context_size=16))
    dataset = load_from_disk(str(tmp_path / "out")).with_format("numpy")
    tokens = np.concatenate(list(dataset["token_ids"]))
    assert written == len(tokens) == len(ALL_TOKENS) // 16 * 16
    assert np.array_equal(tokens, ALL_TOKENS[: len(tokens)])
    assert dataset.features[HOOK].shape == (16, WIDTHS[HOOK])
    assert np.array_equal(np.concatenate(list(dataset[HOOK])), expected(tokens, HOOK))


def test_an_sae_of_saelens_trains_on_it(output, tmp_path):
    """SAELENS_PYTHON may name an interpreter that has sae-lens, which does not go well with other packages."""
    interpreter = os.environ.get("SAELENS_PYTHON", sys.executable)
    if subprocess.run([interpreter, "-c", "import sae_lens"], capture_output=True).returncode:
        pytest.skip("the package sae-lens is not installed, nor in the interpreter that SAELENS_PYTHON names")
    export(output, "saelens", str(tmp_path / "out"), ExportOptions((HOOK,), context_size=8))
    command = [interpreter, ROOT / "tests/sae_training.py", tmp_path / "out", HOOK, "8", str(WIDTHS[HOOK])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, last = map(float, result.stdout.split()[-2:])
    assert last < 0.2 * first


def test_what_cannot_be_exported_is_said(output, tmp_path):
    with pytest.raises(InvalidRequest, match="one hook point"):
        export(output, "saelens", str(tmp_path / "a"), ExportOptions())
    with pytest.raises(InvalidRequest, match="--context-size 500"):
        export(output, "saelens", str(tmp_path / "a"), ExportOptions((HOOK,), context_size=500))
    assert not (tmp_path / "a").exists()
    with pytest.raises(InvalidRequest, match="exists"):
        export(output, "npy", str(tmp_path), ExportOptions())
    with pytest.raises(InvalidRequest, match="the run has"):
        export(output, "npy", str(tmp_path / "b"), ExportOptions(("x",)))


def test_the_command_writes_it(output, tmp_path):
    result = python("extract_activations.py", "export", output, "--to", "npy", "--folder", tmp_path / "out",
                    "--hook-point", OTHER)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{OTHER}.npy", "tokens.npy", "record.npy", "position.npy"}
