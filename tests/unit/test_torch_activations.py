"""A run in torch: loaders with and without processes, ranks, resuming, and datasets that give tensors."""

import json
import multiprocessing

import ml_dtypes
import numpy as np
import pytest

from extraction.core.errors import InvalidRequest
from extraction.read import datasets as hf
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffleOptions
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import STREAMS, WIDTHS, all_tokens, expected, make_run

torch = pytest.importorskip("torch")
from extraction.read.torch import TorchActivations, to_tensor  # noqa: E402

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
    with pytest.raises(InvalidRequest, match="make the reader with the same"):
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


def test_a_streamed_dataset_goes_to_loader_processes(output):
    dataset = hf.iterable_dataset(output, [HOOK]).with_format("torch")
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context=SERVER)
    seen = []
    for batch in loader:
        assert np.array_equal(batch[HOOK].float().numpy(), expected(batch["token"], HOOK))
        seen += batch["token"].tolist()
    assert sorted(seen) == sorted(ALL_TOKENS.tolist())


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_rows_with_a_scale_are_values(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(runs, "DTYPE", np.dtype(dtype))
    make_run(open_storage(str(tmp_path)), STREAMS)
    rows = np.concatenate([rows.activations for rows in ActivationReader(str(tmp_path)).rows(HOOK)])
    (batch,) = TorchActivations(str(tmp_path), HOOK, ShuffleOptions(batch_size=1 << 12, buffer=1 << 12))
    assert batch["activations"].dtype == torch.float32
    assert sorted(batch["activations"][:, 0].tolist()) == sorted(rows[:, 0].tolist())
