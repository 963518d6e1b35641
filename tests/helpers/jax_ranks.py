"""One process of a data-parallel job: its share of a shuffled epoch becomes its part of global arrays.

    python jax_ranks.py OUTPUT HOOK_POINT RANK WORLD_SIZE PORT

Prints JSON: the tokens of each of its batches, and the sum of each global batch as all devices find it.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffledReader, ShuffleOptions

output, hook, rank, size, port = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
jax.distributed.initialize(f"127.0.0.1:{port}", size, rank)
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data", None))
total = jax.jit(lambda batch: batch.astype("float32").sum())
options = ShuffleOptions(batch_size=8, buffer=50, rank=jax.process_index(), world_size=size, drop_last=True)
tokens, sums = [], []
for rows in ShuffledReader(ActivationReader(output), hook, options):
    batch = jax.make_array_from_process_local_data(sharding, rows.activations)
    assert batch.shape == (8 * size, rows.activations.shape[1]) and batch.dtype == "bfloat16"
    own = np.concatenate([shard.data for shard in batch.addressable_shards])
    assert len(batch.addressable_shards) == 2 and np.array_equal(own, rows.activations)
    tokens.append(rows.tokens.tolist())
    sums.append(float(total(batch)))
print(json.dumps([tokens, sums]))
