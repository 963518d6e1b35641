"""Compiled steps that are kept: whole or absent, agreed in run.json, and held against the run's known answer."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from extraction.core.errors import ConfigurationMismatch
from extraction.format.digests import digest_of
from extraction.format.run_config import KnownAnswer, read_run
from extraction.storage import open_storage
from extraction.worker.compile_cache import CompileCache
from extraction.worker.known_answer import check_answer
from tests.helpers.workers import MODEL, extract

pytestmark = pytest.mark.slow

SHARED = "gs://bucket/compiled"
A, B = "jit_step-a-cache", "jit_step-b-cache"
AGREED = {A: digest_of(b"a")}


def stored_name(name: str, data: bytes) -> str:
    return f"{name}.{digest_of(data).partition(':')[2]}"


def fill(location: str, name: str = A, data: bytes = b"a", agreed: dict | None = None) -> CompileCache:
    """A start that compiles one step."""
    with CompileCache(location, agreed) as cache:
        Path(cache.folder, name).write_bytes(data)
        Path(cache.folder, name.replace("-cache", "-atime")).write_bytes(b"now")
    return cache


@pytest.fixture(params=["local", "shared"])
def location(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "cache")
    request.getfixturevalue("gcs")
    return SHARED


def test_an_entry_is_kept_under_its_digest_and_found_again(location):
    first = fill(location)
    assert (first.held_step, first.entries) == (False, AGREED)
    assert [info.name for info in open_storage(location).list()] == [stored_name(A, b"a")]
    with CompileCache(location, first.entries) as second:
        assert {path.name: path.read_bytes() for path in Path(second.folder).iterdir()} == {A: b"a"}
        assert os.stat(second.folder).st_mode & 0o77 == 0
    assert second.held_step and second.entries == AGREED and not Path(second.folder).exists()


def test_the_start_that_begins_a_run_uses_no_entry(location):
    fill(location)
    with CompileCache(location, None) as cache:
        assert os.listdir(cache.folder) == []


@pytest.mark.parametrize("damage", [b"", b"a cut entr"])
def test_a_damaged_entry_is_not_used_and_is_replaced(location, gcs, tmp_path, damage, capsys):
    """As a kill or a full disk leaves one that was not written by create."""
    fill(location)
    name = stored_name(A, b"a")
    if location == SHARED:
        gcs.remove(f"compiled/{name}")
        gcs.land(f"compiled/{name}", damage, None)
    else:
        Path(location, name).write_bytes(damage)
    cache = fill(location, agreed=AGREED)
    assert not cache.held_step and "is damaged" in capsys.readouterr().err
    assert open_storage(location).read(name) == b"a"
    with CompileCache(location, AGREED) as cache:
        pass
    assert cache.held_step


def test_of_a_shared_prefix_only_agreed_entries_are_used(gcs):
    fill(SHARED, data=b"of somebody else")
    with CompileCache(SHARED, AGREED) as cache:
        assert os.listdir(cache.folder) == []
    fill(SHARED, B, b"b")
    with CompileCache(SHARED, AGREED | {B: digest_of(b"b")}) as cache:
        assert os.listdir(cache.folder) == [B]


def test_a_bucket_that_is_not_there_costs_a_compilation_only(gcs, capsys):
    cache = fill("gs://no-such-bucket/compiled", agreed={})
    said = capsys.readouterr().err
    assert "compiled steps are not read" in said and "compiled steps are not kept" in said and not cache.held_step


def test_no_location_keeps_nothing():
    with CompileCache("", {}) as cache:
        assert cache.folder is None
    assert not cache.held_step and cache.entries == {}


def start(undisturbed, output, **environment):
    result = extract(undisturbed[0], output, 0, "--compile-cache", SHARED, "--max-records", 2, **environment)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_a_second_machine_of_a_run_gets_the_step_from_the_bucket(gcs, undisturbed, tmp_path):
    assert "step compiled, after" in start(undisturbed, tmp_path / "run", HOME=str(tmp_path / "one"))
    compiled = json.loads((tmp_path / "run/run.json").read_text())["compiled"]
    stored = {info.name for info in open_storage(SHARED).list()}
    assert {f"{name}.{digest.partition(':')[2]}" for name, digest in compiled.items()} <= stored
    assert "step from the cache" in start(undisturbed, tmp_path / "run", HOME=str(tmp_path / "two"))


def test_a_wrong_step_under_an_agreed_name_is_not_used_for_a_batch(undisturbed, gcs, tmp_path):
    """An attacker who writes both run.json and the cache: the known answer still differs, and the step is compiled."""
    start(undisturbed, tmp_path / "run")
    path = tmp_path / "run/run.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"known_answer": value["known_answer"] | {"digest": "sha256:0"}}))
    shutil.rmtree(tmp_path / "run/worker-00000")  # its commits name the run.json of before
    said = start(undisturbed, tmp_path / "run")
    assert "step compiled again, because the cached step gives other values than the run" in said
    assert "rounds otherwise than that of the run" in said


def test_a_step_of_a_model_with_another_epsilon_is_compiled_anew(undisturbed, tmp_path):
    """It has the same shapes, so that it would run; its entry is whole and has the right name."""
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    config = json.loads((MODEL / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-1}))
    for name, *model in (("right",), ("wrong", "--model", other)):
        flags = ("--compile-cache", tmp_path / f"{name}-cache", "--max-records", 4, *model)
        assert extract(undisturbed[0], tmp_path / name, 0, *flags).returncode == 0
    steps = {name: next((tmp_path / f"{name}-cache").glob("jit_step-*")) for name in ("right", "wrong")}
    names = {name: step.name.rpartition(".")[0] for name, step in steps.items()}
    assert names["right"] != names["wrong"]
    data = steps["wrong"].read_bytes()
    steps["right"].with_name(stored_name(names["right"], data)).write_bytes(data)
    steps["right"].unlink()

    stored = {file: file.read_bytes() for file in (tmp_path / "right").rglob("*.safetensors")}
    shutil.rmtree(tmp_path / "right/worker-00000")
    flags = ("--compile-cache", tmp_path / "right-cache", "--max-records", 4)
    said = extract(undisturbed[0], tmp_path / "right", 0, *flags).stderr
    assert "step compiled again, because the cached step gives other values than the run" in said
    assert stored and {file: file.read_bytes() for file in stored} == stored


def test_an_answer_that_rounding_does_not_explain_ends_the_start(capsys):
    stored = KnownAnswer("sha256:0", {"x": [1.0, 2.0], "y": [3.0]})
    check_answer(stored, stored, "float32")
    check_answer(stored, KnownAnswer("sha256:1", {"x": [1.0, 2.0001], "y": [3.0]}), "float32")
    assert "rounds otherwise" in capsys.readouterr().err
    for norms in ({"x": [1.0, 2.1], "y": [3.0]}, {"x": [1.0], "y": [3.0]}, {"x": [1.0, 2.0], "z": [3.0]}):
        with pytest.raises(ConfigurationMismatch, match="known answer"):
            check_answer(stored, KnownAnswer("sha256:1", norms), "float32")


def test_an_answer_that_overflows_is_one_that_run_json_can_hold(undisturbed, tmp_path):
    """A token that no record has overflows float16 in the known answer, and the run goes on."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][0] = 60_000
    tensors["model.embed_tokens.weight"][0, 0] = 1e6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    flags = ("--model", model, "--layers", "0", "--hooks", "resid_pre", "--store-dtype", "float16")
    for _ in range(2):
        result = extract(undisturbed[0], tmp_path / "run", 0, *flags, "--compile-cache", "", "--max-records", 4)
        assert result.returncode == 0, result.stderr
    norms = read_run(open_storage(str(tmp_path / "run"))).known_answer.norms
    assert max(norms["blocks.0.hook_resid_pre"]) >= 65504


def test_without_a_temporary_folder_the_step_is_compiled(monkeypatch, capsys):
    def refuse(prefix):
        raise OSError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with CompileCache(SHARED, None) as cache:
        assert cache.folder is None
    assert "compiled steps are not read from" in capsys.readouterr().err


def test_an_edited_configuration_is_another_model(undisturbed, tmp_path):
    """Its values differ by less than a known answer in bfloat16 would notice."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    flags = ("--model", model, "--compile-cache", "", "--max-records", 2)
    assert extract(undisturbed[0], tmp_path / "run", 0, *flags).returncode == 0
    config = json.loads((MODEL / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert extract(undisturbed[0], tmp_path / "run", 0, *flags).returncode == 0
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2 * config["rms_norm_eps"]}))
    result = extract(undisturbed[0], tmp_path / "run", 0, *flags)
    assert result.returncode == 78 and "weights_digest" in result.stderr
