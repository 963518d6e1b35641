"""Positions are places in the record: of a document over many windows and batches each token has one of its own."""

import json
import shutil
from itertools import chain

import numpy as np
import pytest
from tokenizers import Tokenizer

from extraction.core.errors import ConfigurationMismatch
from extraction.format.run_config import FORMAT
from extraction.read import datasets as hf
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffledReader, ShuffleOptions
from tests.helpers.workers import MODEL, extract, make_streams, python, text_of, verify, write_corpus

pytestmark = pytest.mark.slow

HOOK = "blocks.1.hook_resid_post"
LONG = 1801  # tokens, in windows of 256


@pytest.fixture(scope="module")
def texts():
    """A short document, one of 1,801 tokens as tokenizer.json alone has them, and two short ones."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    words = text_of(3, LONG)
    long = words[: tokenizer.encode(words).offsets[LONG - 1][1]]
    assert len(tokenizer.encode(long).ids) == LONG
    return [text_of(1, 30), long, text_of(2, 9), text_of(5, 50)]


@pytest.fixture(scope="module")
def output(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    streams = make_streams(write_corpus(folder / "corpus", texts), folder / "streams")
    result = extract(streams, folder / "run", 0, "--seq-len", "256", "--bos", "never")
    assert result.returncode == 0, result.stderr
    return str(folder / "run")


@pytest.fixture(scope="module")
def places(texts):
    """(stream, record, position) of every token of the run, in order."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    return [(0, record, place) for record, length in enumerate(lengths) for place in range(length)]


def triples(record, position):
    return [
        (*pair, place) for pair, place in zip(np.asarray(record).tolist(), np.asarray(position).tolist(), strict=True)
    ]


def test_the_reader_gives_each_token_its_place_in_the_record(output, places):
    reader = ActivationReader(output)
    record = reader.record("<urn:doc:1>")
    assert record.positions.tolist() == list(range(LONG))
    assert len(list(reader.all_refs())) > 3  # batches that it goes over
    rows = [triples(rows.record, rows.positions) for rows in reader.rows(HOOK)]
    assert list(chain.from_iterable(rows)) == places
    found = reader.statistics()[HOOK].largest
    assert abs(reader.record(found.record_id).activations[HOOK][found.position, found.coordinate]) == abs(found.value)


def test_shuffled_rows_torch_and_datasets_have_it_too(output, places):
    options = ShuffleOptions(batch_size=100, buffer=600)
    shuffled = [
        triples(rows.record, rows.positions) for rows in ShuffledReader(ActivationReader(output), HOOK, options)
    ]
    assert sorted(chain.from_iterable(shuffled)) == places
    rows = hf.iterable_dataset(output, [HOOK])
    assert [(row["stream"], row["record"], row["position"]) for row in rows] == places
    torch_activations = pytest.importorskip("extraction.read.torch").TorchActivations
    loaded = [triples(batch["record"], batch["positions"]) for batch in torch_activations(output, HOOK, options)]
    assert sorted(chain.from_iterable(loaded)) == places


def test_exports_have_it_too(output, places, tmp_path):
    for layout, more in (("npy", ()), ("openmoss", ("--context-size", "100"))):
        result = python(
            "extract_activations.py", "export", output, "--to", layout, "--folder", tmp_path / layout, *more
        )
        assert result.returncode == 0, result.stderr
    arrays = [np.load(tmp_path / f"npy/{name}.npy") for name in ("record", "positions")]
    assert triples(*arrays) == places
    rows = [json.loads(path.read_text()) for path in sorted((tmp_path / "openmoss" / HOOK).glob("*.meta.json"))]
    firsts = [(row["stream"], row["record"], row["first_token"]) for row in chain.from_iterable(rows)]
    assert firsts == [place for place in places if place[2] % 100 == 0]


def test_rows_of_a_part_are_exported_with_the_position_of_their_first_token(texts, tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", texts[1:2]), tmp_path / "streams")
    flags = ("--seq-len", "256", "--bos", "never", "--positions", "every:100")
    assert extract(streams, tmp_path / "run", 0, *flags).returncode == 0
    python(
        "extract_activations.py",
        "export",
        tmp_path / "run",
        "--to",
        "openmoss",
        "--folder",
        tmp_path / "out",
        "--context-size",
        "5",
    )
    (meta,) = (tmp_path / "out" / HOOK).glob("*.meta.json")
    assert [row["first_token"] for row in json.loads(meta.read_text())] == [0, 500, 1000, 1500]


def test_they_are_proven(output):
    result = verify(output, "--deep")
    assert (result.returncode, "proven" in result.stdout) == (0, True), result.stdout


def test_a_run_whose_positions_count_in_the_window_is_refused(output, texts, tmp_path):
    """By every reader and by a worker, in one line each, and nothing is changed."""
    old, streams = tmp_path / "old", make_streams(write_corpus(tmp_path / "corpus", texts), tmp_path / "streams")
    shutil.copytree(output, old)
    run = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps(run | {"format": 2}))
    said = f"{old}/run.json: format 2, this version reads and writes {FORMAT}: use the version that made the run"
    for arguments in (
        ("status", old),
        ("verify", old),
        ("report", old, "--html", tmp_path / "x.html"),
        ("export", old, "--to", "npy", "--folder", tmp_path / "out"),
    ):
        result = python("extract_activations.py", *arguments)
        assert (result.returncode, result.stderr.count("\n"), said in result.stderr) == (78, 2, True), result.stderr
    with pytest.raises(ConfigurationMismatch, match="format 2"):
        ActivationReader(str(old))
    result = extract(streams, old, 0, "--seq-len", "256", "--bos", "never")
    assert (result.returncode, said in result.stderr) == (78, True), result.stderr
    assert not (tmp_path / "out").exists()
