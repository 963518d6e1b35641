"""`extraction.extract`: one call from texts to a reader, interrupted, repeated, and called with other arguments."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import jax
import numpy as np
import pandas
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tokenizers import Tokenizer

import extraction
from extraction.audit.verify import audit_run
from tests.helpers.corpora import contents
from tests.helpers.workers import MODEL, ROOT, text_of

pytestmark = pytest.mark.slow

TEXTS = [text_of(number, 5 + 9 * number % 40) for number in range(12)]
SMALL = {"layers": [1, -1], "seq_len": 32, "batch_size": 2, "steps_per_batch": 1, "progress": False}


def call(output: Path, texts: object = TEXTS, **changes: object) -> extraction.ActivationReader:
    return extraction.extract(MODEL, texts, output=output, **SMALL | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "run"
    return call(output), output


def test_each_text_is_a_record_with_the_ids_of_the_tokenizer(run):
    reader, output = run
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found = {record.id: record.tokens.tolist() for record in reader.records()}
    assert found == {str(number): tokenizer.encode(text).ids for number, text in enumerate(TEXTS)}
    assert reader.hook_points == ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
    assert audit_run(str(output), deep=True).verdict == "proven"


def test_a_key_that_is_ignored_is_named_once(tmp_path, capfd):
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "config.json").write_text(json.dumps(json.loads((MODEL / "config.json").read_bytes()) | {"of_others": 1}))
    extraction.extract(model, TEXTS[:1], output=tmp_path / "run", **SMALL)
    assert capfd.readouterr().err.count("does not read it: of_others") == 1


def test_an_interrupted_call_continues_with_the_same_bytes(run):
    _, output = run
    before = contents(output / "worker-00000/batches")
    assert len(before) > 3
    for kind in ("batches", "commits"):  # as a kill after the second commit leaves them
        for path in sorted((output / "worker-00000" / kind).iterdir())[2:]:
            path.unlink()
    assert call(output).num_rows() == sum(len(record.tokens) for record in run[0].records())
    assert contents(output / "worker-00000/batches") == before


def test_a_finished_call_again_changes_nothing(run):
    _, output = run
    before = contents(output / "worker-00000/commits")
    assert [record.id for record in call(output).records()] == [str(number) for number in range(12)]
    assert contents(output / "worker-00000/commits") == before


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers": [0]}, "hook_points: .* in the run, .* now"),
        ({"seq_len": 64}, "seq_len: 32 in the run, 64 now"),
        ({"texts": [*TEXTS, "more"]}, "has the texts of another call"),
    ],
)
def test_other_arguments_are_another_run(run, changes, words):
    with pytest.raises(extraction.ConfigurationMismatch, match=words):
        call(run[1], **changes)


@pytest.fixture
def settings(tmp_path):
    """What a user has set jax to."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path / "cache of the user"),
        "jax_persistent_cache_enable_xla_caches": "all",
        "jax_persistent_cache_min_compile_time_secs": 7.0,
        "jax_persistent_cache_min_entry_size_bytes": 99,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for values in (chosen, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is chosen:
            yield chosen


@pytest.mark.parametrize("failing", [None, "models.step.check_attention", "worker.worker.check_answer"])
def test_a_call_leaves_jax_and_the_port_as_they_were(tmp_path, monkeypatch, capsys, settings, failing):
    def fail(*arguments):
        raise extraction.InvalidRequest("no")

    if failing is not None:
        monkeypatch.setattr(f"extraction.{failing}", fail)
    jax.jit(lambda x: x + 1)(1)  # jax looks at its settings once
    flags = {"compile_cache": str(tmp_path / "compiled"), "metrics_port": 0}
    for _ in range(2):
        with pytest.raises(extraction.InvalidRequest, match="no") if failing else contextlib.nullcontext():
            call(tmp_path / "run", **flags)
        said = capsys.readouterr().err
        assert {name: getattr(jax.config, name) for name in settings} == settings
        flags["metrics_port"] = port = int(said.partition("metrics at http://127.0.0.1:")[2].partition("/")[0])
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port))
    assert failing or "step from the cache" in said


def test_a_file_of_the_user_that_hides_a_module_is_named_before_anything_is_written(tmp_path):
    (tmp_path / "checkpoint.py").write_text("def save(): ...")
    (tmp_path / "use.py").write_text(
        "import extraction\n"
        "try:\n"
        f"    extraction.extract({str(MODEL)!r}, ['one text'], layers=[1], output='run')\n"
        "except extraction.InvalidRequest as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "use.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = f"{tmp_path}/checkpoint.py hides this project's module of the same name: rename it and start again\n"
    assert (result.stdout, result.returncode) == (said, 0), result.stderr
    assert not (tmp_path / "run").exists()


def test_pairs_and_a_column_of_datasets(tmp_path):
    pairs = call(tmp_path / "pairs", (pair for pair in [("a", "one text"), (7, "another")]), layers=np.int64(0))
    assert [record.id for record in pairs.records()] == ["a", "7"]
    table = datasets.Dataset.from_dict({"text": ["one text", "another"]})
    column = call(tmp_path / "column", table["text"], layers="0", hooks=["resid_pre", "mlp_out"])
    assert column.hook_points == ("blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out")
    both = [[record.tokens.tolist() for record in reader.records()] for reader in (pairs, column)]
    assert both[0] == both[1]
    with pytest.raises(extraction.InvalidRequest, match='a row with text: give a column, dataset\\["…"\\]'):
        call(tmp_path / "rows", table)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"position": "last"}, "position= is not known; did you mean positions="),
        ({"seq_len": 0}, "seq_len=0: "),
        ({"store_dtype": "int3"}, "store_dtype='int3': "),
        ({"layers": [99]}, "99"),
        ({"positions": "lasst"}, "positions='lasst': texts have no spans"),
        ({"compile_cache": "ftp://steps"}, "ftp://steps"),
        ({"streams": "elsewhere"}, "streams= is chosen by extract"),
        ({"worker_id": 5}, "worker_id= is chosen by extract"),
        ({"idle_after": 5.0}, "idle_after= is chosen by extract"),
        ({"layers": None, "hooks": ["mlp_in"], "hook_points": "ln_final.*"}, "hooks mlp_in: of which layers"),
        ({"texts": "one text"}, "texts is one string"),
        ({"texts": []}, "texts is empty"),
        ({"texts": [("a", "b", "c")]}, "text 0 is a tuple of 3"),
        ({"texts": {"a": "one text"}}, "texts is a dict with a: give .items"),
        ({"texts": datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["one"]}))}, "choose a split"),
        ({"texts": pandas.DataFrame({"text": ["one"]})}, "texts is a DataFrame with text: give a column"),
    ],
)
def test_a_wrong_argument_leaves_nothing(tmp_path, changes, words):
    with pytest.raises(extraction.InvalidRequest, match=words):
        call(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists() or not contents(tmp_path / "run")


def test_the_environment_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRACT_SEQ_LEN", "7")
    call(tmp_path / "run", ["one text"], layers=0, seq_len=None, batch_size=None)
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["seq_len"] == 512
