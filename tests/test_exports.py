"""Where people take a run next as files, each with the real package: NumPy, SAELens, OpenMOSS' Llamascopium."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from extraction.errors import InvalidRequest
from extraction.exports import ExportOptions, export
from extraction.storage import open_storage
from tests.runs import WIDTHS, activations_of, make_run, tokens_of
from tests.workers import ROOT, python

STREAMS = ([5, 3, 20, 0, 8, 1, 7, 7, 2, 16], [40, 1, 2, 30], [9] * 7)
HOOK, OTHER = WIDTHS
ALL_TOKENS = np.concatenate([tokens_of(w, i, n) for w, lengths in enumerate(STREAMS) for i, n in enumerate(lengths)])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return str(folder)


def expected(tokens, name):
    return activations_of(np.asarray(tokens), WIDTHS[name]).astype(np.float32)


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
