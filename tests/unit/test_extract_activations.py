"""The command as a user meets it: a run and its proof, and what it says to bad input."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import checkpoint
from extraction.format.safetensors import decode
from extraction.storage import open_storage
from tests.helpers.workers import MODEL, ROOT, committed, extract, make_streams, python, text_of, verify, write_corpus

pytestmark = pytest.mark.slow

TEXTS = [text_of(i, n) for i, n in enumerate([3, 30, 0, 12, 45, 7, 150, 1, 20, 26, 9, 14])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two workers: (streams, output)."""
    folder = tmp_path_factory.mktemp("finished")
    streams = make_streams(write_corpus(folder / "corpus", TEXTS, row_group_size=3), folder / "streams", 2)
    for worker in (0, 1):
        result = extract(streams, folder / "output", worker)
        assert result.returncode == 0, result.stderr
    return streams, folder / "output"


@pytest.fixture
def copy_of(finished, tmp_path):
    streams, output = finished
    shutil.copytree(output, tmp_path / "copy")
    return streams, tmp_path / "copy"


def objects_of(output, worker_id):
    storage = open_storage(str(output))
    for name in checkpoint.list_commits(storage, worker_id):
        commit = json.loads(storage.read(name))
        if commit["data"]:
            yield decode(storage.read(f"{checkpoint.worker_folder(worker_id)}/{commit['data']['name']}"))


def assert_one_line(result, code, *words):
    """The right exit code, an error of one line (and one of advice) with these words, no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0]


def test_every_token_of_every_record_is_there_once(finished):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = {}
    for worker in (0, 1):
        for shard in objects_of(finished[1], worker):
            offsets = shard.arrays["record_offsets"]
            for i, record_id in enumerate(json.loads(shard.metadata["record_ids"])):
                found.setdefault(record_id, []).extend(shard.arrays["tokens"][offsets[i] : offsets[i + 1]].tolist())
    assert found == {f"<urn:doc:{i}>": tokenizer(text)["input_ids"] for i, text in enumerate(TEXTS)}


def test_the_activations_are_those_of_the_reference_model(finished):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    shard = next(objects_of(finished[1], 0))
    offsets, tokens = shard.arrays["record_offsets"], shard.arrays["tokens"]
    for i in range(len(offsets) - 1):
        window = tokens[offsets[i] : min(offsets[i + 1], offsets[i] + 32)]
        if len(window):
            with torch.no_grad():
                states = model(torch.tensor(window.astype(np.int64))[None], output_hidden_states=True).hidden_states
            theirs = states[2][0].numpy()
            ours = shard.arrays["blocks.1.hook_resid_post"][offsets[i] : offsets[i] + len(window)].astype(np.float32)
            assert np.linalg.norm(ours - theirs) < 4e-3 * np.linalg.norm(theirs)  # rounding of bfloat16


def test_the_sums_are_those_of_the_stored_values(finished):
    for shard in objects_of(finished[1], 1):
        values = shard.arrays["blocks.1.hook_resid_post"].astype(np.float64)
        np.testing.assert_allclose(shard.arrays["blocks.1.hook_resid_post.sum"], values.sum(0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(
            shard.arrays["blocks.1.hook_resid_post.sum_of_squares"], (values**2).sum(0), rtol=1e-4
        )


def test_verify_proves_a_finished_run(finished):
    result = verify(finished[1], "--deep", "--json")
    summary = json.loads(result.stdout)
    assert (result.returncode, summary["verdict"], summary["num_records"]) == (0, "proven", len(TEXTS))


def test_a_finished_worker_started_again_does_nothing(finished):
    before = committed(open_storage(str(finished[1])))
    result = extract(*finished)
    assert (result.returncode, "complete" in result.stderr) == (0, True)
    assert committed(open_storage(str(finished[1]))) == before


def test_verify_says_in_progress_while_a_stream_is_unfinished(copy_of):
    shutil.rmtree(copy_of[1] / "worker-00001")
    result = verify(copy_of[1])
    assert result.returncode == 75
    assert "not finished: stream 1" in result.stdout


@pytest.mark.parametrize("command, code", [("verify", 69), ("status", 69), ("repair", 75)])
def test_storage_that_does_not_answer_is_no_run_that_is_not_finished(command, code):
    away = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "EXTRACT_RETRY_DEADLINE": "0.2"}
    result = python("extract_activations.py", command, "gs://bucket/run", **away)
    assert_one_line(result, code, "gs://bucket/run/run.json: no success within 0.2 s")
    assert result.stdout == "" and "start the same command again" in result.stderr


@pytest.mark.parametrize(
    "name, damage",
    [
        ("commits/00000001.json is missing", lambda commits, batches: commits[1].unlink()),
        (
            "batches/00000001.safetensors: ",
            lambda commits, batches: batches[1].write_bytes(batches[1].read_bytes()[:-1] + b"!"),
        ),
    ],
)
def test_verify_names_what_is_wrong(copy_of, name, damage):
    folder = copy_of[1] / "worker-00000"
    damage(*(sorted((folder / kind).iterdir()) for kind in ("commits", "batches")))
    result = verify(copy_of[1])
    assert result.returncode == 65
    assert f"wrong: worker-00000/{name}" in result.stdout


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--layers", "99"), ["--layers", "99"]),
        (("--layers", "x"), ["--layers", "'x'"]),
        (("--hooks", "nothing"), ["--hooks", "nothing"]),
        (("--worker-id", "7"), ["2"]),
        (("--model", "/nowhere/model"), ["/nowhere/model"]),
        (("--streams", "/nowhere/streams"), ["/nowhere/streams"]),
        (("--seq-len", "0"), ["--seq-len"]),
        (("--seq-len", "2000000000"), ["--seq-len", "slots"]),
        (("--store-dtype", "int3"), ["--store-dtype"]),
        (("--bos", "perhaps"), ["--bos"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_2(finished, flags, words):
    result = extract(*finished, 0, *flags)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_another_configuration_is_exit_78_and_names_the_field(copy_of):
    before = committed(open_storage(str(copy_of[1])))
    result = extract(*copy_of, 0, "--seq-len", "64")
    assert_one_line(result, 78, "seq_len: 32 in the run, 64 now")
    assert committed(open_storage(str(copy_of[1]))) == before


def changed_model(tmp_path, change):
    model = shutil.copytree(MODEL, tmp_path / "model")
    change(model)
    return model


def edit_config(**changes):
    def edit(model):
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    "change, code, words",
    [
        (edit_config(model_type="mamba"), 2, ["mamba", "llama"]),
        (edit_config(model_type="not-a-model"), 2, ["not-a-model"]),
        (lambda model: (model / "model.safetensors").unlink(), 2, ["safetensors"]),
        (lambda model: (model / "tokenizer.json").unlink(), 2, ["tokenizer.json"]),
        (lambda model: (model / "config.json").write_text("{"), 65, ["config.json"]),
        (lambda model: (model / "model.safetensors").write_bytes(b"torso"), 65, ["model.safetensors"]),
        (edit_config(hidden_act="gelu_new_and_improved"), 2, ["gelu_new_and_improved"]),
    ],
)
def test_a_wrong_model_is_one_line(finished, tmp_path, change, code, words):
    result = extract(*finished, 0, "--model", changed_model(tmp_path, change))
    assert_one_line(result, code, *words)


def test_odd_records_go_through(tmp_path):
    """One without text, and one that is as long as many batches."""
    texts = ["one", "", "two", text_of(3, 20_000), "three"]
    streams = make_streams(write_corpus(tmp_path / "corpus", texts), tmp_path / "streams")
    result = extract(streams, tmp_path / "output", 0, "--batch-size", "8", "--seq-len", "512")
    assert result.returncode == 0, result.stderr
    found = verify(tmp_path / "output", "--json")
    assert (found.returncode, json.loads(found.stdout)["num_records"]) == (0, len(texts))


def test_an_empty_stream_is_complete_at_once(tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", ["only one"]), tmp_path / "streams", 2)
    result = extract(streams, tmp_path / "output", 0)
    assert result.returncode == 0, result.stderr
    assert "stream complete, 0 records" in result.stderr


def test_invalid_utf8_stops_with_65_and_keeps_what_was_committed(gcs, tmp_path):
    """In a bucket, where the texts are not read when the streams are made."""
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 30) for i in range(12)])
    path = corpus / "corpus.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    broken = pa.array(
        [t.encode() if i != 10 else b"\xff\xfe" for i, t in enumerate(table["text"].to_pylist())], pa.binary()
    )
    table = table.set_column(table.schema.get_field_index("text"), "text", broken.view(pa.string()))
    pq.write_table(table, path, row_group_size=4)
    open_storage("gs://bucket/web").create("corpus.parquet", path.read_bytes())
    streams = make_streams("gs://bucket/web", tmp_path / "streams")
    result = extract(streams, tmp_path / "output")
    assert_one_line(result, 65, "not UTF-8", "corpus.parquet", "record 10")
    assert len(committed(open_storage(str(tmp_path / "output")))) >= 2


def test_a_truncated_input_file_stops_with_65_and_is_named(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 30) for i in range(12)])
    streams = make_streams(corpus, tmp_path / "streams")
    path = corpus / "corpus.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_line(extract(streams, tmp_path / "output"), 65, "corpus.parquet")


def test_a_bucket_that_does_not_exist_is_named(finished, gcs):
    result = extract(finished[0], "gs://no-such-bucket/run", STORAGE_EMULATOR_HOST=gcs.address)
    assert_one_line(result, 2, "no-such-bucket")


def test_a_full_disk_is_try_again_and_loses_nothing(finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        result = extract(finished[0], disk / "output")
        assert_one_line(result, 75, "disk")
        done = committed(open_storage(str(disk / "output")))
        assert done == committed(open_storage(str(finished[1])))[: len(done)]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_flags_are_read_from_the_environment(finished, tmp_path):
    result = python(
        "extract_activations.py",
        "--model",
        MODEL,
        "--streams",
        finished[0],
        "--output",
        tmp_path / "o",
        EXTRACT_LAYERS="0",
        EXTRACT_SEQ_LEN="16",
        EXTRACT_BATCH_SIZE="2",
        TPU_WORKER_ID="1",
    )
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "o/run.json").read_text())["config"]
    assert (config["seq_len"], config["hook_points"]) == (16, ["blocks.0.hook_resid_post"])
    assert (tmp_path / "o/worker-00001").is_dir()


def test_help_needs_no_heavy_import():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['x', 'run', '--help']; import extract_activations\n"
        "try: extract_activations.cli()\nexcept SystemExit: pass\n"
        "assert not {'jax', 'transformers', 'pyarrow', 'google.cloud'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("flags", [["--layers", "99"], ["--positions", "foo"], ["--mesh", "rows=2"]], ids=str)
def test_a_flag_that_cannot_be_leaves_nothing_in_the_output(finished, tmp_path, flags):
    assert extract(finished[0], tmp_path / "run", 0, *flags).returncode == 2
    assert not (tmp_path / "run").exists()
