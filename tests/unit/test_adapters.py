"""A run in other libraries, each the real one: jax shardings and Hugging Face datasets; torch has a file of its own."""

import json
import os
import socket
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from extraction.core.errors import InvalidRequest
from extraction.read import datasets as hf
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import STREAMS, WIDTHS, all_tokens, expected, make_run
from tests.helpers.workers import ROOT

pytestmark = pytest.mark.slow

HOOK, OTHER = WIDTHS
ALL_TOKENS = all_tokens(STREAMS)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return str(folder)


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


def test_a_copied_dataset_is_every_token_and_follows_the_run(tmp_path):
    folder, cache = str(tmp_path / "run"), str(tmp_path / "cache")
    make_run(open_storage(folder), STREAMS, stop_after=1)
    begun = hf.dataset(folder, cache_dir=cache)
    assert 0 < len(begun) < len(ALL_TOKENS)
    assert hf.dataset(folder, cache_dir=cache).cache_files == begun.cache_files
    make_run(open_storage(folder), STREAMS)
    dataset = hf.dataset(folder, cache_dir=cache)
    assert columns_are_right(dataset.with_format("numpy")[:]) == ALL_TOKENS.tolist()
    assert columns_are_right(dataset.shuffle(seed=1).with_format("numpy")[20:40])
    doubled = dataset.map(lambda rows: {"twice": [2 * token for token in rows["token"]]}, batched=True)
    assert doubled["twice"][:] == (2 * ALL_TOKENS).tolist()


def test_a_dataset_of_nothing_is_refused(tmp_path, output):
    make_run(open_storage(str(tmp_path)), [[]])
    with pytest.raises(InvalidRequest, match="holds no tokens"):
        hf.iterable_dataset(str(tmp_path))
    with pytest.raises(InvalidRequest, match="the run has"):
        hf.dataset(output, ["x"])


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_rows_with_a_scale_are_values_in_datasets(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(runs, "DTYPE", np.dtype(dtype))
    make_run(open_storage(str(tmp_path)), STREAMS)
    rows = np.concatenate([rows.activations for rows in ActivationReader(str(tmp_path)).rows(HOOK)])
    (batch,) = hf.iterable_dataset(str(tmp_path), [HOOK]).with_format("numpy").iter(batch_size=len(rows))
    assert np.array_equal(batch[HOOK], rows)
