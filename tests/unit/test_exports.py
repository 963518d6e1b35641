"""Where people take a run next as files, each with the real package: NumPy, SAELens, OpenMOSS' Llamascopium."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from extraction.core.errors import InvalidRequest
from extraction.read import exports
from extraction.read.exports import ExportOptions, export
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import STREAMS, WIDTHS, all_tokens, expected, make_run, record_id, tokens_of
from tests.helpers.stream_runs import relink
from tests.helpers.workers import ROOT, python

HOOK, OTHER = WIDTHS
ALL_TOKENS = all_tokens(STREAMS)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(open_storage(str(folder)), STREAMS)
    return str(folder)


def test_npy_is_every_token_in_order(output, tmp_path):
    assert export(output, "npy", str(tmp_path / "out"), ExportOptions()) == len(ALL_TOKENS)
    tokens = np.load(tmp_path / "out/tokens.npy")
    assert np.array_equal(tokens, ALL_TOKENS)
    for name in WIDTHS:
        assert np.array_equal(np.load(tmp_path / f"out/{name}.npy"), expected(tokens, name))
    stream, index = np.load(tmp_path / "out/record.npy").T
    assert np.array_equal(tokens - 100 * index - 100_000 * stream, np.load(tmp_path / "out/positions.npy"))


@pytest.mark.slow
def test_rows_with_a_scale_are_exported_as_values(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "DTYPE", np.dtype(np.int8))
    make_run(open_storage(str(tmp_path / "run")), STREAMS)
    rows = np.concatenate([rows.activations for rows in ActivationReader(str(tmp_path / "run")).rows(HOOK)])
    for layout in ("npy", "openmoss"):
        export(str(tmp_path / "run"), layout, str(tmp_path / layout), ExportOptions((HOOK,)))
    exported = np.load(tmp_path / f"npy/{HOOK}.npy")
    assert exported.dtype == np.float32 and np.array_equal(exported, rows)
    assert {str(chunk["activation"].dtype) for chunk in chunks_of(tmp_path / "openmoss", HOOK)} == {"torch.float32"}


def chunks_of(folder, name):
    """Whole files, as torch reads them."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    return [load_file(path) for path in sorted((folder / name).glob("chunk-*.safetensors"))]


@pytest.mark.slow
def test_openmoss_chunks_have_its_names_and_keys(output, tmp_path):
    torch = pytest.importorskip("torch")
    assert export(output, "openmoss", str(tmp_path / "out"), ExportOptions()) == len(ALL_TOKENS)
    for name in WIDTHS:
        chunks = chunks_of(tmp_path / "out", name)
        assert np.array_equal(torch.cat([chunk["tokens"] for chunk in chunks]), ALL_TOKENS)
        for chunk in chunks:
            assert chunk["activation"].dtype == torch.bfloat16
            assert np.array_equal(chunk["activation"].float().numpy(), expected(chunk["tokens"], name))
            assert chunk["mask"].tolist() == chunk["attention_mask"].tolist() == [1] * len(chunk["tokens"])


@pytest.mark.slow
def test_openmoss_rows_are_records_padded_and_masked(tmp_path, monkeypatch):
    """The run says that token 100 begins records, which OpenMOSS does not train on; a file holds 4 rows."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    run, size = tmp_path / "run", 12
    monkeypatch.setattr(exports, "_CHUNK", 4 * size)
    make_run(storage := open_storage(str(run)), STREAMS)
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"special_tokens": {"ids": {}, "record_prefix": [100]}}))
    relink(storage, storage.replace)
    assert export(str(run), "openmoss", str(tmp_path / "out"), ExportOptions(context_size=size)) == len(ALL_TOKENS)
    rows = []
    for path in sorted((tmp_path / "out" / OTHER).glob("chunk-*.meta.json")):
        chunk = load_file(path.with_name(path.name.replace(".meta.json", ".safetensors")))
        meta = json.loads(path.read_text())
        assert chunk["activation"].shape == (len(meta), size, WIDTHS[OTHER]) and len(meta) <= 4
        rows += zip(meta, *(chunk[key].float().numpy() for key in ("tokens", "mask", "activation")), strict=True)
    for meta, tokens, mask, activations in rows:
        stream, index, first = meta["stream"], meta["record"], meta["first_token"]
        part = tokens_of(stream, index, STREAMS[stream][index])[first : first + size]
        assert meta["record_id"] == record_id(stream, index)
        assert np.array_equal(tokens, np.pad(part, (0, size - len(part))))
        assert np.array_equal(mask, np.pad(part != 100, (0, size - len(part))))
        assert np.array_equal(activations[: len(part)], expected(part, OTHER)) and not activations[len(part) :].any()
    assert sum(int(mask.sum()) for _, _, mask, _ in rows) == len(ALL_TOKENS) - 1


@pytest.mark.slow
def test_an_sae_of_openmoss_trains_on_it(output, tmp_path):
    """LLAMASCOPIUM_PYTHON may name an interpreter that has llamascopium with transformer-lens 3."""
    interpreter = os.environ.get("LLAMASCOPIUM_PYTHON", sys.executable)
    if subprocess.run([interpreter, "-c", "import llamascopium"], capture_output=True).returncode:
        pytest.skip("llamascopium (with transformer-lens < 4) is not installed, nor where LLAMASCOPIUM_PYTHON says")
    export(output, "openmoss", str(tmp_path / "flat"), ExportOptions())
    export(output, "openmoss", str(tmp_path / "rows"), ExportOptions(context_size=12))
    widths = [str(part) for pair in WIDTHS.items() for part in pair]
    folders = [tmp_path / name for name in ("flat", "rows", "result")]
    command = [interpreter, ROOT / "tests/helpers/openmoss_training.py", *folders, *widths]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    before, after = map(float, result.stdout.split()[-2:])
    assert after < 0.2 * before
    found = np.load(tmp_path / "result.npz")
    for name in ("flat", "tokens of rows"):
        assert np.array_equal(found[f"{name} tokens"], ALL_TOKENS)
        assert all(np.array_equal(found[f"{name} {hook}"], expected(ALL_TOKENS, hook)) for hook in WIDTHS)
    real = found["rows mask"].astype(bool)
    assert np.array_equal(found["rows tokens"][real], ALL_TOKENS)
    assert np.array_equal(found[f"rows {OTHER}"][real], expected(ALL_TOKENS, OTHER))
    assert len(found["records"]) == len(real)


def test_a_datasets_dataset_is_what_saelens_caches(output, tmp_path, capsys):
    from datasets import load_from_disk

    written = export(output, "saelens", str(tmp_path / "out"), ExportOptions((HOOK,), context_size=16))
    dataset = load_from_disk(str(tmp_path / "out")).with_format("numpy")
    tokens = np.concatenate(list(dataset["token_ids"]))
    assert written == len(tokens) == len(ALL_TOKENS) // 16 * 16
    assert np.array_equal(tokens, ALL_TOKENS[: len(tokens)])
    left = len(ALL_TOKENS) - len(tokens)
    assert left and f"the last {left} tokens were left out: they do not fill a row of 16\n" in capsys.readouterr().err
    assert dataset.features[HOOK].shape == (16, WIDTHS[HOOK])
    assert np.array_equal(np.concatenate(list(dataset[HOOK])), expected(tokens, HOOK))


@pytest.mark.slow
def test_saes_of_saelens_train_on_it_and_on_the_run(output, tmp_path):
    """SAELENS_PYTHON may name an interpreter that has sae-lens, which does not go well with other packages."""
    interpreter = os.environ.get("SAELENS_PYTHON", sys.executable)
    if subprocess.run([interpreter, "-c", "import sae_lens"], capture_output=True).returncode:
        pytest.skip("the package sae-lens is not installed, nor in the interpreter that SAELENS_PYTHON names")
    export(output, "saelens", str(tmp_path / "out"), ExportOptions((HOOK,), context_size=8))
    command = [
        interpreter,
        ROOT / "tests/helpers/sae_training.py",
        tmp_path / "out",
        output,
        HOOK,
        "8",
        str(WIDTHS[HOOK]),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines()[-2:]:
        first, last = map(float, line.split())
        assert last < 0.2 * first, line


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


@pytest.mark.slow
def test_the_command_writes_it(output, tmp_path):
    result = python(
        "extract_activations.py", "export", output, "--to", "npy", "--folder", tmp_path / "out", "--hook-point", OTHER
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{OTHER}.npy", "tokens.npy", "record.npy", "positions.npy"}
