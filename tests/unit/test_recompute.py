"""Batches computed again on other hardware: what rounding explains, and what it does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from extraction.audit.compare_recomputed import TOLERANCES, worst_row

RESID, LOSS, EXPERTS = "blocks.0.hook_resid_post", "hook_loss", "blocks.0.mlp.hook_expert_indices"
BFLOAT16 = TOLERANCES["bfloat16"]


def worst(name, stored, ours):
    config = SimpleNamespace(hook_points=(name,))
    files = (SimpleNamespace(arrays={name: np.array(values)}) for values in (stored, ours))
    return worst_row(*files, config)


def test_a_row_is_measured_by_its_norm():
    assert worst(RESID, [[3.0, 4.0], [0.0, 0.0]], [[3.0, 4.5], [0.0, 0.0]]) == (
        pytest.approx(0.5 / 5.408, 1e-3),
        RESID,
        0,
    )
    assert worst(RESID, [[np.nan, 1.0]], [[np.nan, 1.0]])[0] == 0
    assert worst(RESID, [[np.nan, 1.0]], [[0.0, 1.0]])[0] == np.inf


def test_a_loss_near_zero_may_differ_by_one_place_of_the_logits():
    stored, ours = [[1.2207e-4], [0.0], [np.nan]], [[1.2589e-4], [3.8e-6], [np.nan]]
    assert worst(LOSS, stored, ours)[0] < TOLERANCES["float32"]
    assert worst(LOSS, [[0.01]], [[2.0]])[0] > BFLOAT16


@pytest.mark.parametrize("changed, passes", [(0, True), (1, True), (20, True), (50, False), (100, False)])
def test_some_rows_may_have_other_experts_in_any_order(changed, passes):
    stored = np.tile([5, 61], (100, 1))
    ours = stored[:, ::-1].copy()
    ours[:changed] = [5, 12]
    assert (worst(EXPERTS, stored, ours)[0] <= BFLOAT16) == passes
