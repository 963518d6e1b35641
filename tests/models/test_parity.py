"""The distance from the reference: what is measured, on which records, and what is said when it cannot be."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from extract_activations import cli
from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.format.records import Record
from extraction.tools.parity import Distance
from extraction.tools.reference_ids import OurIds, compare_ids
from tests.helpers.workers import MODEL, ROOT, make_streams, text_of, write_corpus

pytest.importorskip("torch")

pytestmark = pytest.mark.slow

HOOKS = ("--hook-points", "blocks.1.hook_resid_post,blocks.3.attn.hook_z,ln_final.*")
EXACT = ("--store-dtype", "float32", "--compute-dtype", "float32")


def parity(*flags):
    """The command in this process: its result, or the domain error that it raises."""
    result = CliRunner().invoke(cli, ["parity", "--model", str(MODEL), "--seq-len", "48", *map(str, flags)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\n\n".join(text_of(i, n) for i, n in enumerate((30, 1, 200, 7))) + "\n\n\n\n")
    return path


def test_every_hook_point_is_measured_and_near_zero_in_float32(text, tmp_path):
    result = parity("--text", text, *HOOKS, *EXACT, "--json", "--output", tmp_path / "run", "--max-error", "1e-5")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = ["blocks.1.hook_resid_post", "blocks.3.attn.hook_z", "ln_final.hook_normalized"]
    assert list(found["hook_points"]) == names
    assert (found["setting"]["records"], found["setting"]["compute_dtype"]) == (4, "float32")
    for distance in found["hook_points"].values():
        assert 0 < distance["relative_error"] < 1e-5 and distance["mean_cosine"] > 1 - 1e-9
    (stored,) = (tmp_path / "run").iterdir()
    assert stored.name.startswith("parity-") and json.loads(stored.read_text()) == found


def test_values_as_they_are_stored_are_measured_by_default_and_a_limit_is_held(text):
    result = parity("--text", text, *HOOKS, "--max-error", "1e-4")
    assert result.exit_code == 1 and "above --max-error 0.0001" in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 5 and all("e-03" in line.split()[1] for line in lines[1:4])


def test_the_first_records_of_a_stream(tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(i, 20) for i in range(6)]), tmp_path / "streams")
    result = parity("--streams", streams, "--records", "3", "--layers", "0", *EXACT, "--json")
    found = json.loads(result.stdout)
    assert found["setting"]["records"] == 3
    assert found["hook_points"]["blocks.0.hook_resid_post"]["worst_token"]["record"].startswith("<urn:doc:")


def test_distances_are_over_all_documents_and_name_the_worst_token():
    distance = Distance()
    theirs = np.float32([[3, 4], [0, 5], [8, 6]])
    distance.add("a", theirs + np.float32([[0, 0], [1, 0], [0, 0]]), theirs)
    distance.add("b", -theirs[:1], theirs[:1])
    found = distance.to_json()
    assert found["relative_error"] == pytest.approx(np.sqrt((1 + 100) / (25 + 25 + 100 + 25)))
    assert found["mean_cosine"] == pytest.approx((1 + 5 / 26**0.5 + 1 - 1) / 4)
    assert found["worst_token"] == {"relative_error": 2.0, "record": "b", "position": 0}
    with pytest.raises(DamagedData, match="record c: position 1"):
        distance.add("c", np.float32([[1, 1], [np.nan, 1]]), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(
    "flags, error, message",
    [
        ((), InvalidRequest, "give --streams or --text"),
        (("--text", "/nowhere"), InvalidRequest, "--text /nowhere: cannot be read"),
        (("--text", "/dev/null"), InvalidRequest, "no tokens to compare"),
        (("--text", "/dev/null", "--layers", "9"), InvalidRequest, "--layers 9"),
        (("--text", "/dev/null", "--mesh", "4"), InvalidRequest, "--mesh 4"),
    ],
)
def test_what_cannot_be_measured(flags, error, message):
    with pytest.raises(error, match=message):
        parity(*flags)


def test_a_tokenizer_that_is_not_of_the_model_is_refused(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / MODEL.name)
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    with pytest.raises(InvalidRequest, match="ids up to 2047, the embedding has 1000 rows"):
        parity("--text", "README.md", "--model", model)


def test_a_model_in_a_bucket_has_to_be_copied_first(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    gcs.land("model/config.json", (MODEL / "config.json").read_bytes(), None)
    with pytest.raises(InvalidRequest, match="parity needs a folder on this machine"):
        parity("--text", "/dev/null", "--model", "gs://bucket/model")


def test_without_torch_it_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import extract_activations; extract_activations.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "parity", "--model", MODEL, "--text", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr.splitlines()[0]) == (
        2,
        "error: parity compares with torch, which is not installed here: pip install torch",
    )


# --------------------------------------------------------------------------------------------------- token ids


@pytest.fixture
def renamed(tmp_path):
    """The tiny model, whose digits are split first, under the class that SmolLM2's folder names."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>"}')
    return model


def test_ids_that_autotokenizer_would_give_otherwise_are_told_of(renamed, text):
    text.write_text("the words of it\n\nSteps:\n\n1. Do    12\n\nin 1984    1,")
    flags = ("--model", renamed, "--text", text, "--hook-points", "ln_final.*", *EXACT)
    result = parity(*flags, "--json", "--max-error", "1e-5")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["token_ids"]
    assert (found["records"], found["trained_with"], found["record_prefix"]) == (4, "tokenizer.json", [])
    other = found["autotokenizer"]
    assert (other["class"], other["differing"], other["example"]["record"]) == ("GPT2Tokenizer", 2, "paragraph 2")
    assert other["example"]["trained_with"] != other["example"]["autotokenizer"]
    said = parity(*flags).stdout.splitlines()[2:]
    assert said[0] == (
        "token ids: 2 of 4 records have other ids with AutoTokenizer (GPT2Tokenizer); the model was "
        "trained with those of tokenizer.json, which are used here"
    )
    assert said[1].startswith("  paragraph 2, token ") and len(said) == 2


def test_a_beginning_that_autotokenizer_leaves_out_is_told_of(renamed, text):
    result = parity("--model", renamed, "--text", text, "--hook-points", "ln_final.*", "--bos", "always")
    assert result.stdout.splitlines()[2:] == [
        "token ids: those of tokenizer.json, with AutoTokenizer (GPT2Tokenizer) the same",
        "records begin with the ids [0] here, with [] there",
    ]


def test_an_error_in_our_ids_is_no_small_distance():
    """The reference does not take our word for the ids that both models see."""
    records = [Record(0, "first", "some words"), Record(1, "second", "in 1984")]
    right = [ids.tokens.tolist() for ids in RecordTokenizer(MODEL).tokenize(records)]
    assert compare_ids(MODEL, records, OurIds([], right), 2048).autotokenizer["differing"] == 0
    with pytest.raises(DamagedData, match="record second: our token ids are not those that tokenizer.json alone"):
        compare_ids(MODEL, records, OurIds([], [right[0], right[1][::-1]]), 2048)


def test_an_autotokenizer_that_does_not_load_is_told_of(renamed, text):
    (renamed / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": 7}')
    said = parity("--model", renamed, "--text", text, "--hook-points", "ln_final.*").stdout.splitlines()
    assert said[2].startswith("token ids: those of tokenizer.json; AutoTokenizer does not load: ")
