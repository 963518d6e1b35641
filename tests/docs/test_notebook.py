"""The notebook of examples/: its cells run in order, as a reader would run them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.workers import ROOT

CELLS = [
    "".join(cell["source"])
    for cell in json.loads((ROOT / "examples/first_look.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]


def run(cells: list[str], folder: Path) -> str:
    """In another folder than the project: a notebook runs in its own."""
    environment = os.environ | {"OUTPUT": f"{folder}/run", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(cells)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_its_probe_tells_more_than_the_frequent_answer(tmp_path):
    printed = run([cell for cell in CELLS if "sae_lens" not in cell], tmp_path)
    accuracy, frequent = map(float, re.search(r"accuracy ([\d.]+); .* ([\d.]+)", printed).groups())
    assert accuracy > frequent


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("sae_lens"), reason="the package sae-lens is not installed (extra bench)"
)
def test_its_autoencoder_explains_most_of_the_variance(tmp_path):
    assert float(re.search(r"variance explained: ([\d.]+)", run(CELLS, tmp_path))[1]) > 0.5
