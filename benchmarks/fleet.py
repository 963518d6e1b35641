"""A fleet of 10,000 spot workers on 50,000 streams: work thrown away, requests, dollars and hours, for spot lifetimes.

In: the size of the fleet and of the run. Out: a table, results as JSON, and curves as SVG. A model in steps of ten
seconds, not the worker's code: a worker starts, chooses a free stream, commits a batch after every `batch_seconds`, is
preempted, and comes back elsewhere. What it loses is the batches that were not committed. The number of requests for
each event is counted from the code: 2 for a batch, 1 for `progress.json` at most every 10 s, 14 for a start and a
choice.

The bucket takes 1,000 writes and 5,000 reads a second at first and doubles that every 20 minutes while it is asked for
more (cloud.google.com/storage/docs/request-rate). No name is written twice a second: `progress.json`, the only object
that is overwritten, is written at most every 10 s. Lifetimes: Kadupitiya, Jadhao and Sharma, "Modeling The Temporally
Constrained Preemptions of Transient Cloud VMs" (arXiv 1911.05160, more than 1,500 preemptions of Google's VMs): the
chance to be preempted within t hours is A (1 - exp(-t / tau1) + exp((t - b) / tau2)), high in the first hours and again
at 24 hours. A number as lifetime is the mean, in hours, of an exponential one: 240 is one tenth of the fleet each day.

    python benchmarks/fleet.py --output benchmarks/results/fleet.json --curves docs/fleet.svg
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
from outcome import about, give, gives_results

STEP = 10.0  # seconds
START_SECONDS = 90.0  # imports, weights, compiled step from the cache
AWAY_SECONDS = 300.0  # mean time until another machine takes the place of a preempted one
IDLE_AFTER = 300.0  # --idle-after: a stream is free so long after the last sign of a worker that left no note
NOTICED = 0.8  # share of the preemptions whose notice reaches the worker, which then leaves a note
WRITES, READS, DOUBLING = 1000.0, 5000.0, 1200.0  # a second at first; seconds until the bucket takes twice as much
START_READS, START_WRITES = 12, 2
DOLLARS_WRITE, DOLLARS_READ = 5e-6, 4e-7  # Standard storage in one region, for each request
A, TAU1, TAU2, B = 0.45, 1.0, 0.8, 24.0  # hours
CURVES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
AWAY, STARTING, WORKING, WAITING = range(4)


@dataclass(frozen=True)
class Fleet:
    """What is simulated. `lifetime` is bathtub, never, or the mean in hours of an exponential one."""

    workers: int = 10_000
    streams: int = 50_000
    stream_seconds: float = 3600.0
    batch_seconds: float = 30.0
    lifetime: str = "bathtub"
    dollars_an_hour: float = 1.0


@dataclass
class Run:
    """What came of it.

    `lost_share` is of the seconds of computing, `idle_share` of the paid ones: starts, waiting, the end of the run.
    `throttled_seconds` are those that workers waited for the bucket. The dollars of machines are the paid hours times
    the price.
    """

    hours: float = 0.0
    preemptions: int = 0
    lost_share: float = 0.0
    idle_share: float = 0.0
    writes: float = 0.0
    reads: float = 0.0
    most_writes_a_second: float = 0.0
    throttled_seconds: float = 0.0
    machine_dollars: float = 0.0
    request_dollars: float = 0.0


def draw_lifetimes(kind: str, count: int, draw: np.random.Generator) -> np.ndarray:
    """Return lifetimes in seconds, float64 [count]."""
    if kind == "never":
        return np.full(count, np.inf)
    if kind != "bathtub":
        return draw.exponential(float(kind), count) * 3600
    hours = np.linspace(0, B, 2000)
    chance = A * (1 - np.exp(-hours / TAU1) + np.exp((hours - B) / TAU2))
    drawn = draw.random(count)
    return np.where(drawn < chance[-1], np.interp(drawn, chance, hours), B) * 3600


class Simulation:
    """The state of the fleet: arrays over workers and streams, moved on by `step`."""

    def __init__(self, fleet: Fleet, seed: int):
        self.fleet, self.draw, self.now = fleet, np.random.default_rng(seed), 0.0
        n = fleet.workers
        self.state, self.until = np.full(n, STARTING), self.draw.uniform(0, 300, n) + START_SECONDS
        self.dies = self.until + draw_lifetimes(fleet.lifetime, n, self.draw)
        self.stream, self.progress = np.full(n, -1), np.zeros(n)
        self.batches = np.full(fleet.streams, int(np.ceil(fleet.stream_seconds / fleet.batch_seconds)))
        self.free_at, self.taken = np.zeros(fleet.streams), np.zeros(fleet.streams, bool)
        self.run, self.lost, self.busy, self.paid = Run(), 0.0, 0.0, 0.0
        self.limit, self.total = WRITES, int(self.batches.sum())
        self.reads = self.writes = 0.0
        self.curve: list[tuple[float, float, float, float]] = []

    def step(self) -> None:
        """Move on by STEP seconds."""
        self.now += STEP
        self.reads = self.writes = 0.0
        self._preempt()
        arrived = (self.state == AWAY) & (self.until <= self.now)
        self.state[arrived], self.until[arrived] = STARTING, self.now + START_SECONDS
        self.dies[arrived] = self.now + draw_lifetimes(self.fleet.lifetime, int(arrived.sum()), self.draw)
        ready = (self.state == STARTING) & (self.until <= self.now)
        self._count(int(ready.sum()))
        self.state[ready] = WAITING
        self._work()
        self._choose()
        alive = self.state != AWAY
        self.paid += alive.sum() * STEP
        self.run.writes, self.run.reads = self.run.writes + self.writes, self.run.reads + self.reads
        rate = self.writes / STEP
        self.run.most_writes_a_second = max(self.run.most_writes_a_second, rate)
        if rate > 0.8 * self.limit:
            self.limit *= 2 ** (STEP / DOUBLING)
        self.curve.append((self.now / 3600, 1 - self.batches.sum() / self.total, rate, self.limit))

    def _count(self, starts: int) -> None:
        self.reads, self.writes = self.reads + START_READS * starts, self.writes + START_WRITES * starts

    def _preempt(self) -> None:
        gone = np.flatnonzero((self.state != AWAY) & (self.dies <= self.now))
        working = gone[self.state[gone] == WORKING]
        self.lost += self.progress[working].sum()
        streams = self.stream[working]
        noticed = self.draw.random(len(working)) < NOTICED
        self.free_at[streams] = self.now + np.where(noticed, 0.0, IDLE_AFTER)
        self.taken[streams] = False
        self.writes += noticed.sum()
        self.state[gone], self.stream[gone], self.progress[gone] = AWAY, -1, 0.0
        self.until[gone] = self.now + self.draw.exponential(AWAY_SECONDS, len(gone))
        self.run.preemptions += len(gone)

    def _work(self) -> None:
        working = np.flatnonzero(self.state == WORKING)
        batch = self.fleet.batch_seconds
        wanted = len(working) * (2 / batch + 1 / max(batch, 10.0)) * STEP
        share = min(1.0, max(self.limit * STEP - self.writes, 0.0) / wanted) if wanted else 1.0
        self.run.throttled_seconds += STEP * (1 - share) * len(working)
        self.progress[working] += STEP * share  # compute waits for the bucket when the queue of uploads is full
        self.busy += STEP * len(working)
        done = np.minimum(self.progress[working] // batch, self.batches[self.stream[working]]).astype(int)
        self.progress[working] -= done * batch
        self.batches[self.stream[working]] -= done
        self.writes += 2 * done.sum() + np.minimum(done, STEP / 10.0).sum()
        ended = working[self.batches[self.stream[working]] == 0]
        self.state[ended], self.stream[ended], self.progress[ended] = WAITING, -1, 0.0

    def _choose(self) -> None:
        waiting = np.flatnonzero(self.state == WAITING)
        free = np.flatnonzero((self.batches > 0) & ~self.taken & (self.free_at <= self.now))
        count = min(len(waiting), len(free))
        chosen, streams = waiting[:count], self.draw.permutation(free)[:count]
        self.state[chosen], self.stream[chosen], self.taken[streams] = WORKING, streams, True
        self._count(count)
        self.reads += (len(waiting) - count) * STEP / 30 * 5  # a look at one stream about every 30 s

    def result(self) -> Run:
        """Return what came of it, at the end."""
        done = self.total * self.fleet.batch_seconds
        return replace(
            self.run,
            hours=self.now / 3600,
            lost_share=self.lost / (done + self.lost),
            idle_share=1 - self.busy / self.paid,
            machine_dollars=self.paid / 3600 * self.fleet.dollars_an_hour,
            request_dollars=self.run.writes * DOLLARS_WRITE + self.run.reads * DOLLARS_READ,
        )


def simulate(fleet: Fleet, seed: int = 0) -> tuple[Run, list[tuple[float, float, float, float]]]:
    """Return the results of a fleet, and its curve: (hours, share done, writes a second, limit of the bucket)."""
    simulation = Simulation(fleet, seed)
    while simulation.batches.any():
        simulation.step()
    return simulation.result(), simulation.curve


def draw_curves(curves: dict[str, list[tuple[float, float]]], label: str, top: float) -> str:
    """Return a chart of 380 units as SVG: lines over hours."""
    right = max(points[-1][0] for points in curves.values())
    parts = [f'<text x="10" y="16" font-weight="bold">{label}</text><path d="M40 190H370M40 190V30" stroke="#888"/>']
    parts.append(
        f'<text x="370" y="206" text-anchor="end">{right:.1f} hours</text><text x="44" y="38">{top:,.0f}</text>'
    )
    for number, (name, points) in enumerate(curves.items()):
        some = points[:: max(1, len(points) // 120)] + points[-1:]
        line = " ".join(f"{40 + 330 * x / right:.1f},{190 - 155 * min(y / top, 1):.1f}" for x, y in some)
        colour = CURVES[number]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{60 + 150 * (number % 2)}" y="{222 + 14 * (number // 2)}" fill="{colour}">{name}</text>'
        )
    return "".join(parts)


@click.command()
@click.option("--curves", type=click.Path(dir_okay=False, path_type=Path), help="SVG file of the curves.")
@gives_results
def main(curves: Path | None, as_json: bool, output: Path | None) -> None:
    """Simulate the fleet for several lifetimes and lengths of a batch."""
    cases = {f"{lifetime}, {seconds:g} s": Fleet(lifetime=lifetime, batch_seconds=seconds)
             for lifetime in ("never", "240", "bathtub", "1") for seconds in (30.0, 10.0, 120.0)}  # fmt: skip
    found = {name: simulate(fleet) for name, fleet in cases.items()}
    if curves:
        done = {
            f"{kind}": [(x, 100 * y) for x, y, _, _ in found[f"{kind}, 30 s"][1]] for kind in ("never", "bathtub", "1")
        }
        rates = {"writes, 10 s": [(p[0], p[2]) for p in found["bathtub, 10 s"][1]],
                 "limit, 10 s": [(p[0], p[3]) for p in found["bathtub, 10 s"][1]],
                 "writes, 30 s": [(p[0], p[2]) for p in found["bathtub, 30 s"][1]]}  # fmt: skip
        charts = (draw_curves(done, "% of all batches committed", 100.0), draw_curves(rates, "writes a second", 4000.0))
        moved = "".join(f'<g transform="translate({400 * n} 0)">{chart}</g>' for n, chart in enumerate(charts))
        curves.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 245" font-family="sans-serif" font-size="11">'
            f'<rect width="800" height="245" fill="white"/>{moved}</svg>\n'
        )
    results = {name: {key: round(value, 4) for key, value in asdict(run).items()} for name, (run, _) in found.items()}
    lines = [f"{name:16} {run.hours:6.2f} h  lost {run.lost_share:7.3%}  {run.preemptions:7,} preempted  "
             f"{run.writes / 1e6:6.1f} M writes  ${run.machine_dollars:,.0f} + ${run.request_dollars:,.0f}"
             for name, (run, _) in found.items()]  # fmt: skip
    give(about() | {"fleet": asdict(Fleet()), "results": results}, "\n".join(lines), as_json, output)


if __name__ == "__main__":
    main()
