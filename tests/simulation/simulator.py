"""Executions by their seeds: the real worker code on a simulated bucket, clock, scheduler and network.

In: a seed. Out: an `Outcome`; after the execution every object of the bucket is compared with a run of the same workload
that nobody disturbed. Guarantee: the same seed and the same code give the same execution, step by step. Cost: some 80
milliseconds for an execution.

    with Simulator() as simulator:
        outcome = simulator.run(seed)
"""

import contextlib
import gc
import logging
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Self

from extraction.audit import verify
from extraction.format.commit import Commit, data_name
from extraction.format.run_config import KnownAnswer
from extraction.storage import gcs, retries
from extraction.worker import worker
from tests.simulation import shims
from tests.simulation.network import Transport, make_client
from tests.simulation.scenario import Outcome, Scenario
from tests.simulation.scheduler import Killed
from tests.simulation.worker import clear
from tests.simulation.workload import NUM_WORKLOADS, StandInStep, Workload
from tests.simulation.world import World, commits_of

COLLECT_EVERY = 100  # executions
LOAD_SECONDS = 12.0  # at most, to load the model
_OTHER_NAMES = re.compile(r"run\.json|worker-\d{5}/(progress\.json|attempts/[0-9a-f]{32}\.(begin|end)\.json)")
_DATA_NAME = re.compile(r"worker-(\d{5})/batches/(\d{8})(?:-([0-9a-f]{32}))?\.safetensors")
_SAME = (
    "cursor_before", "cursor_after", "num_records", "num_rows", "num_tokens", "end_of_stream", "record_ids_digest",
    "fingerprint", "not_finite", "reconstruction_error",
)  # fmt: skip
Batches = dict[tuple[int, int], tuple[Commit, bytes | None]]


class Simulator:
    """Runs executions, one after the other. Use as a context manager, outside of which the product is as it was."""

    def __init__(self) -> None:
        self._opened = contextlib.ExitStack()
        self._world: World | None = None
        self._executed = 0
        self._undisturbed: dict[tuple[int, int], Batches] = {}

    def __enter__(self) -> Self:
        self._folder = Path(self._opened.enter_context(tempfile.TemporaryDirectory(dir=_fast_folder())))
        # As `gcs._make_client` sets it: otherwise the client asks for the bucket's metadata on a thread of its own.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        self._opened.enter_context(shims.installed())
        for module, name, stand_in in (
            (gcs, "_make_client", self._make_client),
            (gcs, "_SINGLE_REQUEST", gcs._SINGLE_REQUEST),
            (retries, "_GRANTED", shims.ProcessSet()),
            (worker, "load_step", self._load_step),
            (worker, "answer_of", lambda step, vocab_size: KnownAnswer()),
            (worker, "open_stream", self._open_stream),
            (verify, "open_stream", self._open_stream),
            (sys, "unraisablehook", _ignore_killed),
            (logging.getLogger("concurrent.futures"), "disabled", True),  # it reports the end of a killed thread
            (verify, "load_manifest", lambda location: self._here.workload.manifest),
        ):
            self._opened.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, stand_in)
        self._opened.callback(gc.enable if gc.isenabled() else gc.disable)
        gc.disable()  # collections happen between executions, not at moments that depend on the ones before
        gc.freeze()
        self._opened.callback(gc.unfreeze)
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def run(self, seed: int, log: list[str] | None = None) -> Outcome:
        """Run the execution of a seed; `log` gets a line for each thing that happens."""
        scenario = Scenario.draw(random.Random(seed))
        world = self._execute(World(seed, scenario, self._workloads[scenario.workload], self._folder), log)
        if not world.outcome.violations:
            world.outcome.violations += self._differences(world)
        return world.outcome

    def _execute(self, world: World, log: list[str] | None = None) -> World:
        self._world, world.scheduler.log = world, log
        shims.use(world.scheduler)
        gcs._SINGLE_REQUEST = 1000 if world.scenario.resumable else 8 << 20
        if log is not None:
            log.append(str(world.scenario))
        world.run()
        clear(self._folder)
        self._executed += 1
        if self._executed % COLLECT_EVERY == 0:
            gc.collect()
            gc.freeze()  # the next collection need not visit what is kept
        return world

    # ------------------------------------------------------------------------------------------ at the boundary

    @property
    def _here(self) -> World:
        assert self._world is not None
        return self._world

    def _make_client(self):
        world = self._here
        return make_client(Transport(world.scheduler, world.bucket, world.faults))

    def _load_step(self, folder, config, options, compile_cache=None) -> StandInStep:
        scheduler = self._here.scheduler
        scheduler.park(scheduler.random.uniform(0, LOAD_SECONDS))
        flavour = scheduler.alive().process.launcher.flavour
        return StandInStep(scheduler, options, flavour, self._here.workload.seconds_of_a_step)

    def _open_stream(self, manifest, location, index):
        return self._here.workload.open_stream(manifest, location, index)

    @cached_property
    def _workloads(self) -> list[Workload]:
        return [Workload(number) for number in range(NUM_WORKLOADS)]

    # ------------------------------------------------------------------------------------------ the comparison

    def _batches(self, workload: Workload, flavour: int) -> Batches:
        """Return {(stream, batch): its commit and batch file} of a run that nobody disturbs."""
        known = self._undisturbed.get((workload.number, flavour))
        if known is None:
            alone = self._execute(World(0, Scenario(workload.number), workload, self._folder, flavour))
            assert not alone.outcome.violations, alone.outcome.violations
            known = self._undisturbed[workload.number, flavour] = {
                (stream, commit.batch): (commit, _data_of(alone, commit))
                for stream in range(workload.num_streams)
                for commit in commits_of(alone, stream)
            }
        return known

    def _differences(self, world: World) -> Iterator[str]:
        """Yield what differs from the undisturbed run: commits, batch files, orphaned files, other objects."""
        flavours = [self._batches(world.workload, flavour) for flavour in range(world.scenario.flavours)]
        committed = {
            (stream, commit.batch): commit
            for stream in range(world.workload.num_streams)
            for commit in commits_of(world, stream)
        }
        if committed.keys() != flavours[0].keys():
            yield f"batches {sorted(committed)} instead of {sorted(flavours[0])}"
            return
        for place, commit in committed.items():
            launcher = world.writers.get(commit.attempt)
            if launcher is None:
                yield f"{place} was committed by nobody"
                continue
            expected, data = flavours[launcher.flavour][place]
            for key in _SAME:
                if getattr(commit, key) != getattr(expected, key):
                    yield f"{place}: {key} is {getattr(commit, key)}, undisturbed {getattr(expected, key)}"
            if _data_of(world, commit) != data:
                yield f"{place}: {commit.data} has other bytes than undisturbed"
        names = {name for name in world.objects if "/commits/" in name}
        if len(names) != len(committed):
            yield f"commits beside the chains: {sorted(names)}"
        for name, stored in world.objects.items():
            match = _DATA_NAME.fullmatch(name)
            if match:
                place = int(match[1]), int(match[2])
                if not any(place in of and of[place][1] == stored.data for of in flavours):
                    yield f"{name}: its bytes are those of no worker"
            elif "/commits/" not in name and not _OTHER_NAMES.fullmatch(name):
                yield f"{name}: no worker makes an object of this name"


def _data_of(world: World, commit: Commit) -> bytes | None:
    return world.objects[data_name(commit)].data if commit.data else None


def _ignore_killed(unraisable) -> None:
    """Report an error that cannot be raised, unless a killed process raises it in a generator that it leaves."""
    if unraisable.exc_type is not Killed:
        sys.__unraisablehook__(unraisable)


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
