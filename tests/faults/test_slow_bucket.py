"""A bucket ten times slower than compute: host memory stays under the stated bound, and the bucket is never idle."""

import json
import os
import resource
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from extraction.format.statistics import Facts
from tests.helpers.workers import ROOT

pytestmark = pytest.mark.slow

MIB = 1 << 20
NUM_BATCHES, WIDTH = 40, 49_152  # data objects of 3 MiB of activations and 0.75 MiB of sums
QUEUE = 16 * MIB
OBJECT = 4 * MIB
BOUND = QUEUE + 2 * OBJECT + 2 * OBJECT  # as extraction/worker/uploader.py states it


class Output:
    """What a step of a model returns, without a model: activations that are a function of the tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def parts(self):
        values = np.repeat(self.tokens[:, None], WIDTH, axis=1).astype(np.float32)
        yield "x", np.arange(len(self.tokens)), slice(None), values

    def facts(self):
        n = len(self.tokens)
        return {"x": Facts(np.zeros(WIDTH), np.zeros(WIDTH), np.ones(n, np.float32), np.ones(n, np.float32))}


def work(location):
    """Extract NUM_BATCHES batches. Returns how memory grew, in bytes, and the batches that waited at each commit."""
    from checkpoint import CommitChain
    from extraction.storage import open_storage
    from extraction.worker.loop import BatchLayout, run_pipeline
    from extraction.worker.uploader import Uploader
    from tests.helpers.batches import batches_from

    chain = CommitChain.load(open_storage(location), 0, "sha256:f")
    computed, waiting = [], []

    def forward(tokens, segment_ids, positions, slots, *more):
        return Output(tokens.reshape(-1)[slots])

    def batches():
        for batch in batches_from(chain.cursor, (8, 8) * NUM_BATCHES):
            computed.append(batch)
            yield batch

    def on_commit(commit):
        waiting.append(len(computed) - commit.batch - 1)

    chain.storage.create("first", bytes(OBJECT))  # whatever the client loads for its first upload is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Uploader(chain.commit, QUEUE, on_commit) as writer:
        run_pipeline(batches(), BatchLayout(0, {"x": WIDTH}, np.dtype(np.float32)), forward, 0, writer.submit)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, waiting


def test_memory_is_bounded_and_the_bucket_is_never_idle(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fake_gcs"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().strip()
        slow = {"operation": "insert", "name": "*/batches/*", "action": "throttle", "rate": 60 * MIB, "count": 1000}
        urllib.request.urlopen(f"{address}/_instructions", json.dumps(slow).encode()).close()
        command = [sys.executable, "-m", "tests.faults.test_slow_bucket", "gs://bucket/run"]
        environment = os.environ | {"STORAGE_EMULATOR_HOST": address}
        worker = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    finally:
        server.terminate()
        server.communicate()
    grown, waiting = json.loads(worker.stdout)
    total = NUM_BATCHES * OBJECT
    assert grown < BOUND + 24 * MIB < total / 2, f"{grown / MIB:.0f} MiB"  # 24 MiB for allocators and temporary arrays
    # When a batch was committed others were ready, as many as the queue holds: compute was never waited for.
    assert max(waiting) <= QUEUE // OBJECT + 3
    assert sum(count > 0 for count in waiting) >= 0.9 * NUM_BATCHES
    assert len(waiting) == NUM_BATCHES


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1])))
