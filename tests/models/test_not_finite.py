"""Values that are not finite: counted at the step, said, committed, shown and proven; float16 is refused where it
overflows from the start. The model is one whose embedding of one token is out of all proportion."""

import json
import re
import shutil
import signal

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import checkpoint
from extraction.audit.verify import audit_run
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from extraction.tools.report import gather, render
from extraction.tools.status import read_status
from tests.helpers.workers import (
    MODEL,
    committed,
    extract,
    extract_here,
    make_streams,
    python,
    text_of,
    verify,
    write_corpus,
)

pytestmark = pytest.mark.slow

HOOK = "blocks.1.hook_resid_post"
ODD = " Q"
LATE = 6  # the record that has it
LARGEST = 65504.0  # of float16


def make_model(folder, value):
    """The tiny model with this in place of the embedding of ODD, or that times its embedding."""
    shutil.copytree(MODEL, folder)
    tensors = {name: np.ascontiguousarray(array) for name, array in load_file(folder / "model.safetensors").items()}
    token = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(f"the{ODD}").ids[-1]
    row = tensors["model.embed_tokens.weight"][token].astype(np.float32)
    row = row * value if np.isfinite(value) else np.where(np.arange(len(row)) == 5, value, row)
    tensors["model.embed_tokens.weight"][token] = row.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """float16 does not hold what it computes at ODD, bfloat16 does."""
    return make_model(tmp_path_factory.mktemp("loud") / "model", 3e6)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What it computes at ODD is infinite, and NaN from there on."""
    return make_model(tmp_path_factory.mktemp("broken") / "model", np.inf)


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """Streams with ODD in one record, none in the first batches; and in the first one."""
    folder = tmp_path_factory.mktemp("late")
    texts = [text_of(i, 12 + i) + (f"{ODD} and{ODD} again" if i == LATE else "") for i in range(10)]
    return make_streams(write_corpus(folder / "corpus", texts), folder / "streams")


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    return make_streams(write_corpus(folder / "corpus", [f"the{ODD}", text_of(1, 30)]), folder / "streams")


def counts_of(values):
    return {"nan": int(np.isnan(values).sum()), "inf": int(np.isinf(values).sum())}


def commits_of(output):
    storage = open_storage(str(output))
    return [json.loads(storage.read(name)) for name in checkpoint.list_commits(storage, 0)]


def stored_values(output):
    """float64 [n, width] of all rows, as they are read, and (record id, position) of each."""
    batches = list(ActivationReader(str(output)).batches([HOOK]))
    places = [
        (batch.record_ids[int(np.searchsorted(batch.record_index, index))], int(position))
        for batch in batches for (_, index), position in zip(batch.record.tolist(), batch.positions, strict=True)
    ]  # fmt: skip
    return np.concatenate([batch.activations[HOOK].astype(np.float64) for batch in batches]), places


@pytest.fixture(scope="module")
def exact(loud, late, tmp_path_factory):
    """A run that stores the same in float32."""
    output = tmp_path_factory.mktemp("exact") / "run"
    extract_here(late, output, "--model", loud, "--store-dtype", "float32")
    return output


@pytest.fixture(scope="module")
def overflown(loud, late, tmp_path_factory):
    """A run that overflows in a later batch, and what its worker said."""
    output = tmp_path_factory.mktemp("overflown") / "run"
    result = extract(late, output, 0, "--model", loud, "--store-dtype", "float16")
    assert result.returncode == 0, result.stderr
    return output, result.stderr


def test_float16_is_refused_where_the_first_step_overflows(loud, early, tmp_path):
    flags = ("--model", loud, "--store-dtype")
    result = extract(early, tmp_path / "half", 0, *flags, "float16")
    said = rf"error: --store-dtype float16: {HOOK} has values of up to [\d.e+]+ in the first step, and float16 ends at 65504"
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert (result.returncode, bool(re.match(said, line))) == (2, True), result.stderr
    assert "Warning" not in result.stderr and commits_of(tmp_path / "half") == []
    assert not list((tmp_path / "half").rglob("*.safetensors"))
    extract_here(early, tmp_path / "brain", *flags, "bfloat16")
    values, _ = stored_values(tmp_path / "brain")
    largest = float(re.search(r"up to ([\d.e+]+)", line)[1])
    assert largest == pytest.approx(np.abs(values).max(), rel=1e-2) and largest > LARGEST
    assert [commit["not_finite"] for commit in commits_of(tmp_path / "brain")] == [{}]


def test_a_stream_that_begins_with_an_overflow_stops_no_other(loud, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [f"the{ODD}", *(text_of(i, 12) for i in range(3))])
    streams = make_streams(corpus, tmp_path / "streams", 4)
    flags = ("--stream", "any", "--model", loud, "--store-dtype", "float16")
    result = extract(streams, tmp_path / "run", 0, *flags)
    found = read_status(str(tmp_path / "run")).streams
    (bad,) = [stream for stream in found if stream.state != "finished"]
    assert (result.returncode, len(found), bad.state) == (2, 4, "failed"), result.stderr
    assert f"nothing of stream {bad.stream} is stored" in bad.message
    assert f"left stream {bad.stream}: --store-dtype float16: {HOOK} has values" in result.stderr


def test_what_overflows_later_is_counted_and_said_at_once_and_at_the_end(overflown, exact):
    output, said = overflown
    values, places = stored_values(exact)
    lost = np.abs(values) >= LARGEST + 16  # which rounds up
    assert lost.any() and np.abs(values).max() < 1e9
    found = {"nan": 0, "inf": int(lost.sum())}
    commits = commits_of(output)
    assert sum(bool(commit["not_finite"]) for commit in commits) == 1 and not commits[0]["not_finite"]
    assert commits[-1]["totals"]["not_finite"] == {HOOK: found}
    assert counts_of(stored_values(output)[0]) == found
    name, position = places[int(np.argmax(lost.any(axis=1)))]
    first, last = [line for line in said.splitlines() if "not finite" in line]
    batch = next(commit["batch"] for commit in commits if commit["not_finite"])
    counted = f"0 NaN and {found['inf']:,} infinite values"
    assert first.startswith(f"worker 0: warning: not finite: {HOOK} has {counted} in batch {batch}, first in record "
                            f"'{name}' at position {position}; values of up to ")  # fmt: skip
    assert first.endswith("were computed, and float16 ends at 65504: bfloat16 and float32 hold more")
    assert last == f"worker 0: warning: not finite in this stream: {counted} at {HOOK}"
    assert "Warning" not in said


def test_status_and_report_show_it_and_verify_agrees(overflown, tmp_path):
    output, _ = overflown
    found = commits_of(output)[-1]["totals"]["not_finite"]
    said = f"0 NaN and {found[HOOK]['inf']:,} infinite values at {HOOK}"
    (stream,) = json.loads(python("extract_activations.py", "status", output, "--json").stdout)["streams"]
    assert (stream["not_finite"], stream["message"], stream["state"]) == (found, f"not finite: {said}", "finished")
    assert "not finite: 0 NaN" in python("extract_activations.py", "status", output).stdout
    result = verify(output, "--deep", "--json")
    assert (result.returncode, json.loads(result.stdout)["not_finite"]) == (0, found)
    result = python("extract_activations.py", "report", output, "--html", tmp_path / "x.html")
    assert (result.returncode, result.stderr) == (0, "")
    section = (tmp_path / "x.html").read_text().partition("<h2>Values that are not finite</h2>")[2]
    assert said in section and f">{found[HOOK]['inf']:,}</td>" in section.partition("</section>")[0]


def test_a_chain_that_has_begun_goes_on_whatever_its_next_step_holds(loud, late, overflown, tmp_path):
    """The next attempt begins with the batch that overflows."""
    output, expected = tmp_path / "run", commits_of(overflown[0])
    batch = next(commit["batch"] for commit in expected if commit["not_finite"])
    flags = ("--model", loud, "--store-dtype", "float16")
    assert extract(late, output, 0, *flags, EXTRACT_KILL_AT=f"after-commit:{batch - 1}").returncode == -signal.SIGKILL
    result = extract(late, output, 0, *flags)
    assert (result.returncode, result.stderr.count("not finite: ")) == (0, 1), result.stderr
    assert committed(open_storage(str(output))) == committed(open_storage(str(overflown[0])))
    for key in ("not_finite", "totals"):
        assert commits_of(output)[-1][key].get(HOOK) == expected[-1][key].get(HOOK)
    assert commits_of(output)[-1]["totals"]["not_finite"] == expected[-1]["totals"]["not_finite"]


def test_another_count_than_the_data_holds_is_damage(overflown, tmp_path):
    output = shutil.copytree(overflown[0], tmp_path / "run")
    path = sorted((output / "worker-00000/commits").iterdir())[-1]
    commit = json.loads(path.read_text())
    for counts in (commit["not_finite"], commit["totals"]["not_finite"]):
        counts[HOOK] = {"nan": 3, "inf": counts.get(HOOK, {"inf": 0})["inf"]}
    path.write_text(json.dumps(commit))
    assert audit_run(str(output)).problems == []
    (problem,) = audit_run(str(output), deep=True).problems
    assert problem.endswith(f"{HOOK} has 0 NaN and 0 infinite values, its commit says 3 NaN and 0 infinite values")
    assert problem.startswith(commit["data"]["name"].join(["worker-00000/", ": "]))


@pytest.mark.parametrize("flags", [
    ("--store-dtype", "float16"), ("--store-dtype", "int8"), ("--store-dtype", "float8_e4m3fn"),
    ("--store-dtype", "float16", "--positions", "mean"),
], ids=" ".join)  # fmt: skip
def test_what_the_model_computes_so_is_counted_in_every_dtype(broken, early, tmp_path, capsys, flags):
    """From the first step on, and is stored; nothing on the way to the report stumbles over it."""
    extract_here(early, tmp_path / "run", "--model", broken, *flags)
    found = {HOOK: counts_of(stored_values(tmp_path / "run")[0])}
    assert sum(found[HOOK].values()) and commits_of(tmp_path / "run")[-1]["totals"]["not_finite"] == found
    assert "; as the model computed them\n" in capsys.readouterr().err
    audit = audit_run(str(tmp_path / "run"), deep=True)
    assert (audit.verdict, audit.to_json()["not_finite"]) == ("proven", found)
    ActivationReader(str(tmp_path / "run")).statistics()
    page = render(gather(str(tmp_path / "run")))
    assert "<h2>Values that are not finite</h2>" in page and '="nan"' not in page
