"""A run in other libraries, each the real one: torch loaders, jax shardings, Hugging Face datasets."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from extraction.core.errors import InvalidRequest
from extraction.read import datasets as hf
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffleOptions
from extraction.read.torch import TorchActivations, to_tensor
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import STREAMS, WIDTHS, all_tokens, expected, make_run
from tests.helpers.workers import ROOT

pytestmark = pytest.mark.slow

HOOK, OTHER = WIDTHS
ALL_TOKENS = all_tokens(STREAMS)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["extraction.read.torch", "extraction.read.datasets"])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return str(folder)


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


# ---------------------------------------------------------------------------------------------- jax


def test_ranks_of_a_jax_job_make_global_arrays(output):
    """Two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    commands = [
        [sys.executable, ROOT / "tests/helpers/jax_ranks.py", output, HOOK, *map(str, (rank, 2, port))]
        for rank in range(2)
    ]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    (tokens, sums), (others, same) = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert sums == same == [expected(one + two, HOOK).sum() for one, two in zip(tokens, others, strict=True)]
    seen = sum(tokens + others, [])
    assert len(seen) == len(set(seen)) == 2 * (len(ALL_TOKENS) // 2 // 8 * 8)
    assert set(seen) <= set(ALL_TOKENS.tolist())


# ---------------------------------------------------------------------------------------------- datasets


def columns_are_right(rows, names=(HOOK, OTHER)):
    rows = {name: np.asarray(column) for name, column in rows.items()}
    tokens, first = rows["token"], 100 * rows["record"] + 100_000 * rows["stream"]
    for name in names:
        assert np.array_equal(rows[name], expected(tokens, name))
    assert np.array_equal(tokens - first, rows["position"])
    return tokens.tolist()


def test_a_streamed_dataset_is_every_token_in_order(output):
    dataset = hf.iterable_dataset(output)
    assert dataset.num_shards == len(list(ActivationReader(output).all_refs()))
    batches = list(dataset.with_format("numpy").iter(batch_size=50))
    assert sum(map(columns_are_right, batches), []) == ALL_TOKENS.tolist()
    (row,) = dataset.skip(7).take(1)
    assert columns_are_right({name: [value] for name, value in row.items()}) == [ALL_TOKENS[7]]
    assert set(hf.iterable_dataset(output, [OTHER]).features) == {OTHER, "token", "stream", "record", "position"}


def test_a_streamed_dataset_is_shuffled_mapped_shared_out_and_resumed(output):
    from datasets.distributed import split_dataset_by_node

    def norms(rows):
        return {"norm": np.linalg.norm(rows[HOOK], axis=1)}

    dataset = hf.iterable_dataset(output, [HOOK]).shuffle(seed=0, buffer_size=30).with_format("numpy")
    rows = list(dataset.map(norms, batched=True, batch_size=16))
    tokens = columns_are_right({name: [row[name] for row in rows] for name in rows[0]}, [HOOK])
    assert sorted(tokens) == sorted(ALL_TOKENS.tolist()) != tokens
    assert np.allclose([row["norm"] for row in rows], np.linalg.norm(expected(tokens, HOOK), axis=1))
    shares = [[int(row["token"]) for row in split_dataset_by_node(dataset, rank, 2)] for rank in range(2)]
    assert sorted(sum(shares, [])) == sorted(ALL_TOKENS.tolist())
    batches = (plain := hf.iterable_dataset(output, [HOOK]).batch(20)).__iter__()
    first = [next(batches)["token"] for _ in range(4)]
    resumed = hf.iterable_dataset(output, [HOOK]).batch(20)
    resumed.load_state_dict(plain.state_dict())
    assert sum(first + [row["token"] for row in resumed], []) == ALL_TOKENS.tolist()


def test_a_streamed_dataset_goes_to_loader_processes(output):
    dataset = hf.iterable_dataset(output, [HOOK]).with_format("torch")
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context=SERVER)
    assert sorted(sum((columns_are_right(batch, [HOOK]) for batch in loader), [])) == sorted(ALL_TOKENS.tolist())


def test_a_copied_dataset_is_every_token_and_follows_the_run(tmp_path):
    folder, cache = str(tmp_path / "run"), str(tmp_path / "cache")
    make_run(open_storage(folder), STREAMS, stop_after=1)
    begun = hf.dataset(folder, cache_dir=cache)
    assert 0 < len(begun) < len(ALL_TOKENS)
    assert hf.dataset(folder, cache_dir=cache).cache_files == begun.cache_files
    make_run(open_storage(folder), STREAMS)
    dataset = hf.dataset(folder, cache_dir=cache)
    assert columns_are_right(dataset.with_format("numpy")[:]) == ALL_TOKENS.tolist()
    assert columns_are_right(dataset.shuffle(seed=1).with_format("torch")[20:40])
    doubled = dataset.map(lambda rows: {"twice": [2 * token for token in rows["token"]]}, batched=True)
    assert doubled["twice"][:] == (2 * ALL_TOKENS).tolist()


def test_a_dataset_of_nothing_is_refused(tmp_path, output):
    make_run(open_storage(str(tmp_path)), [[]])
    with pytest.raises(InvalidRequest, match="holds no tokens"):
        hf.iterable_dataset(str(tmp_path))
    with pytest.raises(InvalidRequest, match="the run has"):
        hf.dataset(output, ["x"])


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_rows_with_a_scale_are_values_in_every_library(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(runs, "DTYPE", np.dtype(dtype))
    make_run(open_storage(str(tmp_path)), STREAMS)
    rows = np.concatenate([rows.activations for rows in ActivationReader(str(tmp_path)).rows(HOOK)])
    (batch,) = hf.iterable_dataset(str(tmp_path), [HOOK]).with_format("numpy").iter(batch_size=len(rows))
    assert np.array_equal(batch[HOOK], rows)
    (batch,) = TorchActivations(str(tmp_path), HOOK, ShuffleOptions(batch_size=1 << 12, buffer=1 << 12))
    assert batch["activations"].dtype == torch.float32
    assert sorted(batch["activations"][:, 0].tolist()) == sorted(rows[:, 0].tolist())
