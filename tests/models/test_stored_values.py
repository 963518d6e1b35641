"""The models against stored values of transformers, where there is no torch to ask: on the newest Python and jax."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.stored_models import FAMILIES, LENGTHS, hook_points_of, picked, reference_values, stored, write_model
from tests.helpers.tiny_models import documents, error, load, run
from tests.helpers.workers import ROOT

pytestmark = pytest.mark.slow

MESHED = ("llama", "gemma2", "qwen3_moe")
ON_A_MESH = """
import json, sys
from pathlib import Path
from extraction.models.mesh import MeshShape
from tests.helpers.stored_models import LENGTHS, hook_points_of, picked
from tests.helpers.tiny_models import documents, load, run
for name in sys.argv[2:]:
    folder = Path(sys.argv[1], name)
    values, _ = run(load(folder, hook_points_of(folder), rows=8, mesh=MeshShape(2, 4)), documents(LENGTHS), rows=8)
    print(json.dumps({hook: picked(found) for hook, found in values.items()}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{family: model folder}."""
    base = tmp_path_factory.mktemp("stored")
    return {name: write_model(name, base / name, entry["shapes"]) for name, entry in stored().items()}


def distances(ours, name):
    """{hook point: the relative distance from the stored values}."""
    return {hook: error(np.array(ours[hook]), np.array(values)) for hook, values in stored()[name]["values"].items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_values_are_the_stored_ones(folders, name):
    hooks = hook_points_of(folders[name])
    values, _ = run(load(folders[name], hooks), documents(LENGTHS))
    assert max(distances({hook: picked(found) for hook, found in values.items()}, name).values()) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stored_values_are_those_of_transformers(folders, name):
    """If not, `python -m tests.helpers.stored_models` writes the file again."""
    pytest.importorskip("torch")
    assert max(distances(reference_values(folders[name]), name).values()) < 1e-5


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="with torch, test_mesh.py compares more")
def test_on_eight_devices_the_values_are_the_stored_ones(folders):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    command = [sys.executable, "-c", ON_A_MESH, folders[MESHED[0]].parent, *MESHED]
    result = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name, line in zip(MESHED, result.stdout.splitlines(), strict=True):
        assert max(distances(json.loads(line), name).values()) < 1e-5, name
