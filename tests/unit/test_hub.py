"""A model by its hub id: pinned to a commit, only the files that are needed, refusals that say what to do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from extraction.format.digests import digest_of
from extraction.models.config_file import read_model_config
from tests.helpers.fake_hub import COMMIT, FakeHub
from tests.helpers.workers import MODEL, ROOT, make_streams, python, text_of, verify, write_corpus

pytestmark = pytest.mark.slow

UNREAD = {"pytorch_model.bin", "consolidated.safetensors", "modeling_tiny.py"}
FLAGS = ("--layers", "1", "--seq-len", "32", "--batch-size", "2", "--no-progress", "--worker-id", "0")


@pytest.fixture
def hub(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "published")
    (folder / "pytorch_model.bin").write_bytes(b"what nobody here reads")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights by other names")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code from a hub ran')")
    with FakeHub(folder) as hub:
        yield hub


def environment(hub: FakeHub, tmp_path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_a_worker_takes_its_model_from_the_hub_and_later_from_the_cache(hub, tmp_path):
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(i, 20) for i in range(6)]), tmp_path / "streams")
    where = environment(hub, tmp_path)
    flags = ("--model", "lab/tiny", "--streams", streams, *FLAGS)
    first = python("extract_activations.py", *flags, "--output", tmp_path / "first", **where)
    assert first.returncode == 0, first.stderr
    assert verify(tmp_path / "first").returncode == 0
    config = json.loads((tmp_path / "first/run.json").read_text())["config"]
    assert (config["model"], config["revision"]) == ("lab/tiny", COMMIT)
    etag = hashlib.sha1((hub.folder / "model.safetensors").read_bytes()).hexdigest()
    files = digest_of(f"{COMMIT}\nmodel.safetensors {etag}\n".encode())
    assert config["weights_digest"] == digest_of(f"{files} {read_model_config(MODEL).digest}".encode())
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched and not fetched & UNREAD

    hub.refuse = (503, "")
    offline = python("extract_activations.py", *flags, "--output", tmp_path / "second", **where, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    files = [f"worker-00000/batches/{n:08d}.safetensors" for n in range(1)]
    assert [(tmp_path / "second" / f).read_bytes() for f in files] == [
        (tmp_path / "first" / f).read_bytes() for f in files
    ]


@pytest.mark.parametrize(
    "model, revision, refuse, expected",
    [
        (
            "lab/other",
            None,
            None,
            "InvalidRequest: --model lab/other: no such folder, and no such repository on the hub; if it is private, set",
        ),
        ("lab/tiny", "v9", None, "InvalidRequest: --revision v9"),
        ("lab/tiny", None, (403, "GatedRepo"), "PermissionDenied: --model lab/tiny: access must be granted"),
        ("lab/tiny", None, (403, ""), "PermissionDenied: --model lab/tiny: the hub refuses; set HF_TOKEN to a token"),
        ("lab/tiny", None, (503, ""), "TryAgain: --model lab/tiny: no such folder here, and the hub does not answer"),
    ],
)
def test_what_the_hub_refuses_becomes_the_error_that_says_what_to_do(hub, tmp_path, model, revision, refuse, expected):
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    hub.refuse = refuse
    code = f"""
from extraction.core.errors import ExtractionError
from extraction.models.location import locate_model
try:
    print(locate_model({model!r}, {revision!r}))
except ExtractionError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment(hub, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(expected), result.stdout + result.stderr


def test_a_gated_model_ends_a_worker_with_77_and_nothing_is_said_of_buckets(hub, tmp_path):
    hub.refuse = (401, "GatedRepo")
    streams = make_streams(write_corpus(tmp_path / "corpus", [text_of(0, 5)]), tmp_path / "streams")
    where = ("--model", "lab/tiny", "--streams", streams, "--output", tmp_path / "output")
    result = python("extract_activations.py", *where, *FLAGS, **environment(hub, tmp_path))
    assert result.returncode == 77, result.stderr
    said = "error: --model lab/tiny: access must be granted on its page, and HF_TOKEN set"
    assert result.stderr.strip().splitlines()[-1].endswith(said)
