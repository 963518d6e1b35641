"""Annotations of arrays hold: the steps of models of every form, and the packer, with each call checked."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [package for package in ("jaxtyping", "beartype") if not find_spec(package)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (extra test)")
ROOT = Path(__file__).parents[2]
# Learned positions; embeddings of each layer; sinks and a mixture; a latent and groups; the delta rule.
MODELS = ["gpt2", "gemma-4-E2B-text", "openai--gpt-oss-20b", "deepseek_v2_lite", "Qwen3-Next-80B-A3B-Instruct"]
PACKING = """
from tests.helpers.checked_shapes import check_shapes
check_shapes()
import numpy as np
from extraction.batching.packing import BatchShape, pack_batches
from extraction.batching.token_selection import Selection, Selector
from extraction.format.records import Cursor, TokenizedRecord
records = [TokenizedRecord(i, str(i), np.arange(n, dtype=np.int32)) for i, n in enumerate((5, 3, 0, 9, 20))]
for positions in ("all", "mean", "every:2"):
    selector = Selector(Selection.parse(positions, True), ())
    print(sum(batch.num_records for batch in pack_batches(records, Cursor(0, 0), BatchShape(2, 2, 8), "split", selector)))
"""
WRONG = """
from tests.helpers.checked_shapes import check_shapes
check_shapes()
import numpy as np
from extraction.format.statistics import unscaled
from jaxtyping import TypeCheckError
codes = np.zeros((3, 2), np.int8)
unscaled(codes, np.ones(3, np.float32))
for wrong in ((codes, np.ones(4, np.float32)), (codes, np.ones(3, np.int32)), (codes[0], None)):
    try:
        unscaled(*wrong)
    except TypeCheckError:
        print("raised")
"""


def run(*arguments: str) -> list[str]:
    """Return the lines that a Python process prints; it must end well."""
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_steps_of_real_models_have_the_annotated_shapes():
    assert run("-m", "tests.helpers.checked_shapes", *MODELS) == MODELS


def test_packed_batches_have_the_annotated_shapes():
    assert len(run("-c", PACKING)) == 3


def test_another_length_dtype_or_number_of_axes_raises():
    assert run("-c", WRONG) == ["raised"] * 3
