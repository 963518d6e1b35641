"""What `verify --deep` finds inside a data object, and what it leaves alone; on both backends.

The runs are made without a model; what is wrong was committed so, with a size and crc32c that fit.
"""

import json
from collections import Counter

import numpy as np
import pytest

from checkpoint import CommitChain
from extraction.audit.audited_run import AuditedRun
from extraction.audit.check_batch_file import _check_values
from extraction.audit.verify import audit_run
from extraction.format.records import Cursor
from extraction.format.safetensors import allocate, decode
from extraction.format.statistics import statistics_layout
from extraction.storage import crc32c_base64, open_storage
from tests.helpers.batches import fill_hook
from tests.helpers.stream_runs import (
    COMMIT,
    DATA,
    HOOKS,
    NUM_WORKERS,
    Store,
    assert_found,
    batches_of,
    configure,
    describe,
    extract,
    join,
    make_streams,
    shard_of,
)

pytestmark = pytest.mark.slow

HOOK = "blocks.0.hook_resid_post"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a["tokens"].__setitem__(0, -1), "it holds a token below 0"),
        (lambda a: a["positions"].__setitem__(3, 5), "its positions do not count from 0 in each record"),
        (lambda a: a["positions"].__imod__(8), "its positions do not count from 0 in each record"),
        (lambda a: a["record_index"].__setitem__(0, 7), "its record_index does not count from 2"),
        (lambda a: a["record_offsets"].__setitem__(1, 99), "its record_offsets do not rise"),
        (lambda a: a["record_offsets"].__setitem__(0, 1), "its record_offsets do not rise"),
        (lambda a: a["record_offsets"].__setitem__(1, 0), "its record_offsets are not those of its record_lengths"),
        (lambda a: a["record_lengths"].__setitem__(0, 0), "its record_lengths do not sum up to the 12 tokens"),
        (lambda a: a["record_lengths"].__setitem__(0, -1), "its record_lengths do not sum up to the 12 tokens"),
        (lambda a: a["record_lengths"].__setitem__(slice(2), [0, 12]), "record 2 does not go on at token 8"),
        (lambda a: a[HOOK].__setitem__((2, 3), 1e6), f"{HOOK}.sum\\[3\\] is"),
        (lambda a: a[f"{HOOK}.sum_of_squares"].__setitem__(1, 0.5), f"{HOOK}.sum_of_squares\\[1\\] is 0.5"),
        (lambda a: a[f"{HOOK}.sum"].__setitem__(1, np.nan), f"{HOOK}.sum\\[1\\] is nan"),
        (lambda a: a[f"{HOOK}.norm_counts"].__iadd__(1), f"{HOOK}.norm_counts count 2,060 norms, its rows have 12"),
        (
            lambda a: a[f"{HOOK}.norm_counts"].__setitem__(slice(None), np.roll(a[f"{HOOK}.norm_counts"], 1)),
            f"{HOOK}.norm_counts differ from the norms of its rows",
        ),
        (lambda a: a[f"{HOOK}.max"].__imul__(2), f"{HOOK}.max is .*, the largest of its values"),
        (lambda a: a[f"{HOOK}.max_at"].__setitem__(0, 12), f"{HOOK}.max_at is \\[12, .*outside of \\[12, 4\\]"),
        (lambda a: a[f"{HOOK}.max_at"].__setitem__(1, 1), f"{HOOK}.max_at is .*, where the value is 0"),
    ],
)
def test_deep_finds_what_was_committed_wrong(store, change, message):
    store.change_data(change)
    assert store.problems() == []
    assert_found(store.problems(deep=True), f"{DATA}: {message}")


def recommit(store, shard):
    """Put another data object in the place of the committed one, with a commit that fits it."""
    store.put(DATA, shard.data)
    total = json.loads(store.storage.read(COMMIT))["totals"]["bytes"]
    grown = len(shard.data) - json.loads(store.storage.read(COMMIT))["data"]["size"]
    store.edit(COMMIT, data__crc32c=crc32c_base64(shard.data), data__size=len(shard.data), totals__bytes=total + grown)


@pytest.mark.parametrize(
    "worker_id, number, dtype, message",
    [
        (0, 5, np.float32, "its header says batch '5', not 1"),
        (1, 1, np.float32, "its header says stream '1', not 0"),
        (0, 1, np.float16, f"{HOOK} is float16\\[12, 4\\], its commit and run.json say float32\\[12, 4\\]"),
    ],
)
def test_deep_finds_an_object_of_another_place(store, worker_id, number, dtype, message):
    batch = batches_of(store.streams, 0, Cursor(2, 8))[0]
    recommit(store, shard_of(batch, worker_id, number, dtype))
    assert_found(store.problems(deep=True), f"{DATA}: {message}")


def test_deep_finds_the_records_of_another_batch(store):
    recommit(store, shard_of(batches_of(store.streams, 1, Cursor(2, 8))[0], 0, 1))
    assert f"{DATA}: the record ids of its header are not those of its commit" in store.problems(deep=True)


def test_deep_finds_a_record_that_does_not_end_at_the_cursor(store):
    """Two commits agree on where record 2 is cut, and the data has less of it."""
    for name, key in ((COMMIT.replace("01.", "00."), "cursor_after"), (COMMIT, "cursor_before")):
        store.edit(name, **{f"{key}__token_offset": 16})
    assert store.problems() == []
    first = DATA.replace("01.", "00.")
    assert f"{first}: record 2 ends at token 8, its commit says 16" in store.problems(deep=True)


def test_deep_finds_a_record_that_was_not_cut(empty):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, long_documents="truncate")
    empty.change_data(
        lambda arrays: arrays["record_lengths"].__setitem__(
            slice(None), [arrays["record_lengths"].sum(), *[0] * (len(arrays["record_lengths"]) - 1)]
        )
    )
    assert_found(empty.problems(deep=True), f"{DATA}: a record has more than 8 tokens")


@pytest.mark.parametrize("widths", [(4, 5), (3, 3)])
def test_deep_finds_another_width(store, widths):
    batch = batches_of(store.streams, 0, Cursor(2, 8))[0]
    recommit(store, shard_of(batch, 0, 1, widths=dict(zip(HOOKS, widths, strict=True))))
    hook_point = "blocks.1.hook_resid_post" if widths[0] == 4 else HOOK
    assert_found(store.problems(deep=True), f"{DATA}: {hook_point} is {widths[1]} wide, and such are 4 wide elsewhere")


def test_deep_finds_another_width_in_another_worker(empty):
    extract(empty.storage, empty.streams, 0)
    run = join(empty.storage, empty.streams)
    chain = CommitChain.load(empty.storage, 1, run.fingerprint, run.digest)
    for batch in batches_of(empty.streams, 1, Cursor(0, 0)):
        chain.commit(batch, shard_of(batch, 1, chain.next_batch, widths=dict.fromkeys(HOOKS, 6)).data, {})
    assert empty.problems(deep=True) == ["worker-00001: its residual stream is 6 wide, that of other streams 4"]


def test_deep_names_an_object_of_nothing(store):
    """A batch without tokens has no data object; of one that has, no record is looked for."""
    shard = decode(store.storage.read(DATA))
    layout = {name: ((array.shape[0] % 4, *array.shape[1:]), array.dtype) for name, array in shard.arrays.items()}
    layout |= {"record_index": ((0,), np.int64), "record_lengths": ((0,), np.int64), "record_offsets": ((1,), np.int64)}
    layout |= {hook + suffix: array for hook in HOOKS for suffix, array in statistics_layout(4).items()}
    recommit(store, allocate(layout, shard.metadata | {"record_ids": "[]"}))
    store.edit(COMMIT, num_records=0, num_rows=0, num_tokens=0)
    assert f"{DATA}: its record_offsets do not rise from 0 to its 0 rows" in store.problems(deep=True)


def test_deep_names_bytes_that_are_no_data_object(store):
    store.put(DATA, b"these are not tensors")
    store.edit(COMMIT, data__crc32c=crc32c_base64(b"these are not tensors"), data__size=21)
    assert f"{DATA}: cut off inside its header" in store.problems(deep=True)


def test_values_that_are_not_finite_are_counted_and_no_damage_if_the_commit_counts_as_many(store):
    def change(arrays):
        values = arrays[HOOK].copy()
        values[1, 2], values[4, 2], values[5, 0] = np.nan, np.inf, -np.inf
        fill_hook(arrays, HOOK, values)

    store.change_data(change)
    said = f"{DATA}: {HOOK} has 1 NaN and 2 infinite values, its commit says 0 NaN and 0 infinite values"
    assert store.problems(deep=True) == [said]
    counts = {HOOK: {"nan": 1, "inf": 2}}
    store.edit(COMMIT, not_finite=counts)
    assert store.problems() == [f"{COMMIT}: its totals of not_finite are not the sums of the commits up to it"]
    for info in store.storage.list("worker-00000/commits/"):
        if info.name >= COMMIT:
            store.edit(info.name, totals__not_finite=counts)
    audit = store.audit(deep=True)
    assert (audit.exit_code, audit.to_json()["not_finite"]) == (0, {HOOK: {"nan": 1, "inf": 2}})
    assert f"not finite: {HOOK} has 1 NaN and 2 infinite values" in audit.to_text()
    assert audit.streams[1].to_json(deep=True)["not_finite"] == {}


@pytest.mark.parametrize(
    "values, place, message",
    [
        ({}, (0, 0), None),
        ({}, (12, 0), r"is \[12, 0\], which is outside of \[12, 4\]"),
        ({}, (0, -1), r"is \[0, -1\], which is outside of"),
        ({}, (3, 0), r"is \[3, 0\], but 0 is at \[0, 0\] before"),
        ({(0, 0): np.nan}, (0, 0), None),
        ({(2, 1): -7, (2, 3): 7, (5, 0): 7}, (2, 1), None),
        ({(2, 1): -7, (2, 3): 7, (5, 0): 7}, (2, 3), r"is \[2, 3\], but 7 is at \[2, 1\] before"),
        ({(2, 1): -7, (2, 3): 7, (5, 0): 7}, (5, 0), r"is \[5, 0\], but 7 is at \[2, 1\] before"),
    ],
)
@pytest.mark.parametrize("block", [1 << 18, 4])
def test_deep_wants_the_first_place_of_the_maximum_of_zeros_too(store, monkeypatch, block, values, place, message):
    def change(arrays):
        made = np.zeros_like(arrays[HOOK])
        for at, value in values.items():
            made[at] = value
        fill_hook(arrays, HOOK, made)
        arrays[f"{HOOK}.max_at"][:] = place

    monkeypatch.setattr("extraction.audit.check_batch_file._BLOCK", block)
    store.change_data(change)
    if message is None:
        assert [problem for problem in store.problems(deep=True) if "its commit says" not in problem] == []
    else:
        assert_found(store.problems(deep=True), f"{DATA}: {HOOK}.max_at {message}")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a[f"{HOOK}.scale"].__imul__(-1), r"scale\[\d+\] is -.*, but the largest code"),
        (lambda a: a[f"{HOOK}.scale"].__setitem__(4, a[f"{HOOK}.scale"][4] * 1.05), r"sum\[\d\] is"),
        (
            lambda a: a[f"{HOOK}.scale"].__setitem__(4, a[f"{HOOK}.scale"][4] * 1.05),
            "norm_counts differ from the norms of its rows",
        ),
        (lambda a: a[f"{HOOK}.scale"].__setitem__(4, np.nan), r"scale\[4\] is nan, but the largest code of the row"),
        (lambda a: a[f"{HOOK}.scale"].__setitem__(4, np.inf), r"scale\[4\] is inf"),
        (lambda a: a[f"{HOOK}.scale"].__setitem__(4, 0), r"scale\[4\] is 0, but the largest code of the row"),
        (lambda a: a[HOOK].__setitem__(4, 0), r"scale\[4\] is .*, but the largest code of the row is 0"),
    ],
)
def test_deep_finds_a_scale_that_is_not_that_of_its_row(tmp_path, run_streams, dtype, change, message):
    store = Store(open_storage(str(tmp_path)), None, run_streams)
    for worker in range(NUM_WORKERS):
        extract(store.storage, run_streams, worker, store_dtype=dtype)
    assert store.problems(deep=True) == []
    store.change_data(change)
    assert store.problems() == []
    assert_found(store.problems(deep=True), f"{DATA}: {HOOK}.{message}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_runs_of_other_dtypes_are_proven(empty, dtype):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, store_dtype=dtype)
    assert empty.problems(deep=True) == []


def test_runs_that_truncate_are_proven_and_longer_records_are_not(empty):
    for worker in range(NUM_WORKERS):
        extract(empty.storage, empty.streams, worker, long_documents="truncate")
    assert empty.problems(deep=True) == []
    empty.edit(COMMIT, cursor_after={"record": 5, "token_offset": 8})
    assert any(problem.startswith(f"{COMMIT}: a cursor is inside a window") for problem in empty.problems())


def test_every_byte_of_a_data_object_counts(tmp_path, run_streams):
    """Whatever byte is flipped, the audit names the object, deep or not."""
    storage = open_storage(str(tmp_path))
    extract(storage, run_streams, 0)
    path = tmp_path / DATA
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        for deep in (False, True):
            assert [p for p in audit_run(str(tmp_path), deep=deep).problems if p.startswith(DATA)]


def test_sums_over_many_rows_hold_to_their_rounding(tmp_path):
    """float32 sums of a step, as the device makes them, are within the bound; ten times the bound is not."""
    streams = make_streams(tmp_path)
    sizes = {"seq_len": 2048, "batch_size": 4, "steps_per_batch": 1}
    run = AuditedRun.of(describe(configure(streams, hook_points=(HOOK,), **sizes), streams), "run.json")
    batch = batches_of(streams, 0, Cursor(0, 0))[0]
    shard = shard_of(batch, 0, 0)
    values = np.random.default_rng(0).standard_normal((8192, 4)).astype(np.float32)
    shard.arrays[HOOK] = values.copy()
    fill_hook(shard.arrays, HOOK, values)
    parts = values.reshape(4, 2048, 4)
    for part, powers in (("sum", parts), ("sum_of_squares", parts**2)):
        shard.arrays[f"{HOOK}.{part}"][:] = powers.cumsum(axis=1, dtype=np.float32)[:, -1].sum(axis=0, dtype=np.float32)
    assert list(_check_values(shard, HOOK, run, Counter())) == []
    shard.arrays[f"{HOOK}.sum_of_squares"][0] *= 1.003
    assert len(list(_check_values(shard, HOOK, run, Counter()))) == 1
