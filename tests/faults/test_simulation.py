"""The worker code in simulation: see tests/simulation. More seeds, and one seed in detail: benchmarks/simulation.py."""

import pytest

from benchmarks.simulation import find
from tests.simulation.planted_bugs import PLANTED, plant
from tests.simulation.simulator import Simulator
from tests.simulation.worker import launcher_numbers

SEEDS = 480


@pytest.mark.slow
def test_no_seed_breaks_a_promise():
    crashes, positions = 0, set()
    with Simulator() as simulator:
        for seed in range(SEEDS):
            outcome = simulator.run(seed)
            assert not outcome.violations, f"python benchmarks/simulation.py replay {seed}: {outcome.violations}"
            crashes += outcome.crashes
            positions |= outcome.positions
    assert crashes > 5 * SEEDS and len(positions) > 80, "workers are no longer killed where they were"


def test_a_seed_replays_exactly():
    logs: list[list[str]] = [[], []]
    with Simulator() as simulator:
        outcomes = [simulator.run(7, logs[0]), simulator.run(8), simulator.run(7, logs[1])]
    assert outcomes[0] == outcomes[2]
    assert logs[0] == logs[1] and len(logs[0]) > 50
    assert outcomes[0].digest != outcomes[1].digest


@pytest.mark.parametrize("bug", PLANTED)
def test_each_bug_can_be_planted_in_the_source_as_it_is(bug, tmp_path):
    plant(bug, tmp_path)  # raises if the source has changed
    assert (tmp_path / "extraction").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["commit before data", "adoption without comparison"])
def test_a_planted_bug_is_found(bug, tmp_path):
    plant(bug, tmp_path)
    assert find(tmp_path, seeds=100)


def test_the_simulated_launcher_has_the_numbers_of_the_script():
    assert launcher_numbers().keys() >= {"FIRST_PAUSE", "LONGEST_PAUSE", "FAILURES", "KILLS", "QUICK"}
