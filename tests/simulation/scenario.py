"""What is drawn for one execution, and what came of it.

In: a generator. Out: `Scenario`; `Outcome` for the results.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.workload import NUM_WORKLOADS


@dataclass(frozen=True)
class Scenario:
    """What is disturbed, and how much. The defaults disturb nothing."""

    workload: int
    any_stream: bool = False
    workers: int = 0
    flavours: int = 1
    fault_rate: float = 0.0
    refusals: bool = False
    kills: int = 0
    machines: int = 1
    freezes: int = 0
    outages: int = 0
    page_size: int = 1000
    resumable: bool = False
    retry_deadline: float = 120.0
    idle_after: float = 60.0

    @classmethod
    def draw(cls, draw: random.Random) -> "Scenario":
        """Return a scenario."""
        return cls(
            workload=draw.randrange(NUM_WORKLOADS),
            any_stream=draw.random() < 0.4,
            workers=draw.choice((0, 0, 1, 2, 3)),
            flavours=draw.choice((1, 1, 2)),
            fault_rate=draw.choice((0.0, 0.02, 0.1, 0.1, 0.3)),
            refusals=draw.random() < 0.1,
            kills=draw.choice((0, 6, 25, 100, 100, 100)),
            machines=draw.choice((1, 3, 30, 30, 30)),
            freezes=draw.choice((0, 0, 1, 3)),
            outages=draw.choice((0, 0, 1, 3)),
            page_size=draw.choice((1, 2, 5, 1000)),
            resumable=draw.random() < 0.2,
            retry_deadline=draw.choice((2.0, 5.0, 30.0, 120.0)),
            idle_after=draw.choice((5.0, 20.0, 60.0)),
        )


@dataclass
class Outcome:
    """What came of an execution.

    `positions` are the places in the code at which workers were killed, `exits` counts their exit codes ("killed" for
    none), `faults` the faults that their requests met.
    """

    seed: int
    violations: list[str] = field(default_factory=list)
    workers: int = 0
    crashes: int = 0
    machines_lost: int = 0
    notices: int = 0
    freezes: int = 0
    requests: int = 0
    steps: int = 0
    seconds: float = 0.0
    digest: int = 0
    positions: set[str] = field(default_factory=set)
    exits: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
