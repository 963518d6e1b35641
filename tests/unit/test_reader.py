"""The reader sees what is committed, whole and once; shuffled reading is exact, resumable and shared out."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import checkpoint
from extraction.batching.packing import BatchShape
from extraction.core.errors import DamagedData, InvalidRequest, ObjectNotFound
from extraction.format import batch_file as objects
from extraction.format.dtypes import dtype_named
from extraction.read.reader import ActivationReader
from extraction.read.shuffle import ShuffledReader, ShuffleOptions
from extraction.storage import base as storage_base
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import WIDTHS, activations_of, all_tokens, make_run, meta_of, record_id, tokens_of

STREAMS = ([5, 3, 20, 0, 8, 1, 7, 7, 2, 16], [40, 1, 2, 30], [], [9] * 7)
HOOK, OTHER = WIDTHS
ALL_TOKENS = all_tokens(STREAMS)


@pytest.fixture
def output(tmp_path):
    """A finished run of four workers."""
    make_run(open_storage(str(tmp_path / "run")), STREAMS)
    return str(tmp_path / "run")


@pytest.fixture
def anywhere(storage):
    """The same, on both backends."""
    make_run(storage, STREAMS)
    return storage.location


def test_it_opens_by_listing_the_workers(output):
    reader = ActivationReader(output)
    assert reader.streams == (0, 1, 2, 3)
    assert reader.hook_points == tuple(WIDTHS)
    assert reader.num_rows() == sum(map(sum, STREAMS))


def test_opening_a_bucket_costs_no_request_for_each_object(gcs):
    make_run(open_storage("gs://bucket/run"), STREAMS)
    gcs.history.clear()
    ActivationReader("gs://bucket/run")
    requests = [what for _, _, what, status in gcs.history if status < 300]
    assert requests == ["list run/", "read run/run.json", "list run/extensions/"]


def test_rows_are_every_token_once_in_order(anywhere):
    rows = list(ActivationReader(anywhere).rows(HOOK))
    assert np.array_equal(np.concatenate([r.tokens for r in rows]), ALL_TOKENS)
    for activations, tokens, record, position in rows:
        assert np.array_equal(activations, activations_of(tokens, WIDTHS[HOOK]))
        assert activations.dtype == "bfloat16"
        stream, index = record.T
        assert np.array_equal(tokens - 100 * index - 100_000 * stream, position)


def test_records_are_whole_also_where_they_go_over_batches(anywhere):
    records = list(ActivationReader(anywhere).records())
    lengths = {(w, i): n for w, lengths in enumerate(STREAMS) for i, n in enumerate(lengths)}
    # A record without tokens is there if a batch with data has it.
    assert {(r.stream, r.index) for r in records} | {(0, 3)} == lengths.keys()
    for record in records:
        tokens = tokens_of(record.stream, record.index, lengths[record.stream, record.index])
        assert record.id == record_id(record.stream, record.index)
        assert np.array_equal(record.tokens, tokens)
        assert record.meta == meta_of(record.index)
        for name, width in WIDTHS.items():
            assert np.array_equal(record.activations[name], activations_of(tokens, width))


@pytest.mark.parametrize("worker_id, index", [(0, 0), (0, 2), (1, 0), (1, 3), (3, 6)])
def test_a_record_is_found_by_its_id(output, worker_id, index):
    record = ActivationReader(output).record(record_id(worker_id, index), [OTHER])
    assert (record.stream, record.index) == (worker_id, index)
    assert np.array_equal(record.tokens, tokens_of(worker_id, index, STREAMS[worker_id][index]))
    assert record.activations.keys() == {OTHER}


def test_what_is_not_there_is_said(output, tmp_path):
    reader = ActivationReader(output)
    with pytest.raises(ObjectNotFound, match="holds no record 'x'"):
        reader.record("x")
    with pytest.raises(InvalidRequest, match="blocks.7.*the run has"):
        next(reader.rows("blocks.7.hook_resid_post"))
    with pytest.raises(InvalidRequest, match="holds no run: there is no run.json"):
        ActivationReader(str(tmp_path / "nothing"))


def test_an_id_that_several_records_have_is_said_with_each_of_them(storage, monkeypatch):
    monkeypatch.setattr(runs, "record_id", lambda worker_id, index: "twin" if index == 2 else f"{worker_id}/{index}")
    make_run(storage, STREAMS)
    reader = ActivationReader(storage.location)
    said = "3 records have the id 'twin': 2 of stream 0, 2 of stream 1, 2 of stream 3"
    with pytest.raises(InvalidRequest, match=rf"{said}; take the one you mean by stream and index: record_at\(0, 2\)"):
        reader.record("twin")
    assert reader.record("0/9").tokens.tolist() == tokens_of(0, 9, 16).tolist()  # over two batches, and once
    for stream, length in ((0, 20), (1, 2), (3, 9)):
        record = reader.record_at(stream, 2, [HOOK])
        assert (record.stream, record.index, record.id) == (stream, 2, "twin")
        assert record.tokens.tolist() == tokens_of(stream, 2, length).tolist()
    with pytest.raises(ObjectNotFound, match="all of record 10 of stream 0"):
        reader.record_at(0, 10)


def test_a_stream_that_there_is_not_is_no_empty_one(output):
    for read in (lambda r: r.rows(HOOK, [1, 4]), lambda r: r.records([HOOK], [4]), lambda r: r.refs(4)):
        with pytest.raises(InvalidRequest, match="has no stream 4; it has 0, 1, 2, 3"):
            list(read(ActivationReader(output)))
    with pytest.raises(InvalidRequest, match="has no stream -1"):
        ActivationReader(output).record_at(-1, 0)
    assert list(ActivationReader(output).rows(HOOK, [2])) == []


def test_of_an_unfinished_run_only_what_is_committed_whole_is_a_record(storage):
    make_run(storage, STREAMS, stop_after=1)
    storage.create("worker-00000/batches/00000001.safetensors", b"a torso of a batch that nobody committed")
    reader = ActivationReader(storage.location)
    assert [(r.stream, r.index) for r in reader.records()] == [(0, 0), (0, 1), (3, 0)]
    assert reader.num_rows() == sum(len(r.tokens) for r in reader.rows(HOOK)) > 17
    with pytest.raises(ObjectNotFound, match="all of record"):
        reader.record(record_id(1, 0))


def test_statistics_are_those_of_all_tokens(output):
    """Their norms and maxima are in test_statistics.py."""
    reader = ActivationReader(output)
    for name, found in reader.statistics().items():
        values = np.concatenate([r.activations for r in reader.rows(name)]).astype(np.float64)
        assert found.count == len(values)
        assert found.mean == pytest.approx(values.mean(axis=0))
        assert found.std == pytest.approx(values.std(axis=0))
        assert found.norm == pytest.approx(np.sqrt((values**2).sum(axis=1).mean()))


def test_statistics_read_no_rows_but_those_with_a_maximum(gcs, monkeypatch):
    make_run(open_storage("gs://bucket/run"), STREAMS)
    got = []
    view = open_storage("gs://bucket/run").__class__.view
    monkeypatch.setattr(objects, "_HEAD", 1024)
    monkeypatch.setattr(
        "extraction.storage.gcs.GcsStorage.view",
        lambda self, name, start, end: got.append((name, start, end)) or view(self, name, start, end),
    )
    reader = ActivationReader("gs://bucket/run")
    reader.statistics()
    refs = {ref.name: ref for ref in reader.all_refs()}
    assert len(got) < 4 * len(refs) + 16
    rows = {name: ref.size - 2 * sum(WIDTHS.values()) * ref.num_rows for name, ref in refs.items()}
    lengths = [end - start for name, start, end in got if end > rows[name]]
    assert sorted(lengths) == [2 * width for width in sorted(WIDTHS.values())]


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_rows_with_a_scale_are_read_as_values_wherever_they_are_read(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(runs, "DTYPE", dtype_named(dtype))
    make_run(open_storage(str(tmp_path)), STREAMS)
    reader = ActivationReader(str(tmp_path))
    record = reader.record(record_id(1, 0))
    shuffled = ShuffledReader(reader, HOOK, ShuffleOptions(9, 20))
    seen = [(rows.tokens, rows.activations) for rows in [*reader.rows(HOOK), *shuffled]]
    for tokens, found in [*seen, (record.tokens, record.activations[HOOK])]:
        values = activations_of(tokens, WIDTHS[HOOK]).astype(np.float32)
        most = np.abs(values).max(axis=1, keepdims=True)
        assert found.dtype == np.float32
        assert (np.abs(found - values) <= most * (0.5 / 127 if dtype == "int8" else 1 / 16) * 1.001).all()
    stored = next(reader.headers())
    codes, scale = stored.array(HOOK), stored.array(f"{HOOK}.scale")
    assert codes.dtype == dtype and np.array_equal(codes.astype(np.float32) * scale[:, None], stored.activations(HOOK))


@pytest.fixture
def large_objects(gcs, monkeypatch):
    """A run in a bucket with one object of 4,096 tokens, read in ranges of 8 KiB."""
    monkeypatch.setattr(runs, "SHAPE", BatchShape(steps=1, rows=8, seq_len=512))
    monkeypatch.setattr(objects, "_HEAD", 1024)
    monkeypatch.setattr(objects, "_GAP", 0)
    monkeypatch.setattr(storage_base, "_RANGE", 8192)
    make_run(open_storage("gs://bucket/run"), [[512] * 8])
    return "gs://bucket/run"


def test_one_hook_point_of_a_bucket_is_its_own_bytes(gcs, large_objects):
    reader = ActivationReader(large_objects)
    (ref,) = reader.all_refs()
    for name, other in (HOOK, OTHER), (OTHER, HOOK):
        gcs.ranges.clear()
        (rows,) = reader.rows(name)
        assert np.array_equal(rows.activations, activations_of(rows.tokens, WIDTHS[name]))
        read = [last - first for found, first, last in gcs.ranges if found.endswith(ref.name)]
        assert max(read) <= 8192
        assert sum(read) <= ref.size - rows.activations.nbytes // WIDTHS[name] * WIDTHS[other] + 1024


def test_ranges_of_a_bucket_come_at_once(gcs, large_objects):
    reader = ActivationReader(large_objects)
    (ref,) = reader.all_refs()
    stored = objects.StoredBatch(reader.storage, ref)
    told = [gcs.instruct("read", "*/batches/*", "hold") for _ in range(4)]
    with ThreadPoolExecutor(1) as background:
        rows = background.submit(stored.array, OTHER)
        assert all(held.entered.wait(20) for held in told), "a range waits for another"
        for held in told:
            held.release.set()
        assert np.array_equal(rows.result(), activations_of(stored.array("tokens"), WIDTHS[OTHER]))


def test_commits_of_several_workers_are_read_at_once(gcs):
    """A run of one commit for each worker."""
    make_run(open_storage("gs://bucket/run"), [[8]] * 5)
    told = [gcs.instruct("read", "*/commits/*", "hold") for _ in range(5)]
    reader = ActivationReader("gs://bucket/run")
    with ThreadPoolExecutor(1) as background:
        total = background.submit(reader.num_rows)
        assert all(held.entered.wait(20) for held in told), "a commit waits for that of another worker"
        for held in told:
            held.release.set()
        assert total.result() == 40
    gcs.history.clear()
    assert [ref.stream for ref in reader.all_refs([4, 1, 4])] == [4, 1]
    assert gcs.history == [], "what was read once is known"


def test_readers_of_one_run_do_not_disturb_each_other(output):
    """Two iterators of one reader, in turns, the first of which reads the commits."""
    reader = ActivationReader(output)
    pairs = list(zip(reader.all_refs(), reader.all_refs(), strict=True))
    assert len(pairs) > 4 and all(one == other for one, other in pairs)
    assert [one for one, _ in pairs] == list(reader.all_refs())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "worker-00001/commits/00000001.json").unlink(), "00000001.json is missing"),
        (lambda run: (run / "worker-00001/commits/00000001.json").write_text("{}"), "not a readable commit"),
        (lambda run: edit(run / "worker-00001/commits/00000001.json", fingerprint="sha256:x"), "of another run"),
        (
            lambda run: edit(run / "run.json", versions={"jax": "another"}),
            "worker-00000/commits/00000000.json: follows another run.json than the one that is there, which was replaced",
        ),
        (
            lambda run: edit(
                run / "worker-00001/commits/00000001.json", cursor_before={"record": 1, "token_offset": 0}
            ),
            "begins at",
        ),
        (
            lambda run: cut(run / "worker-00001/batches/00000001.safetensors", 5),
            "34979 bytes, but 34984 were committed",
        ),
        (lambda run: cut(run / "worker-00001/batches/00000001.safetensors", 100_000), "0 bytes, but 34984 were"),
        (lambda run: (run / "worker-00001/batches/00000001.safetensors").unlink(), "00000001.safetensors is not there"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    make_run(open_storage(str(tmp_path)), STREAMS)
    damage(tmp_path)
    with pytest.raises((DamagedData, ObjectNotFound), match=message):
        list(ActivationReader(str(tmp_path)).rows(OTHER))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


# ---------------------------------------------------------------------------------------------- shuffled


def shuffled(output, **options):
    options = {"batch_size": 7, "buffer": 50, "seed": 3} | options
    return ShuffledReader(ActivationReader(output), HOOK, ShuffleOptions(**options))


def epoch_of(reader):
    return [batch.tokens.tolist() for batch in reader]


def test_an_epoch_is_every_token_once_in_another_order(anywhere):
    reader = shuffled(anywhere)
    first, second = epoch_of(reader), epoch_of(reader)
    assert len(first) == len(reader)
    for epoch in (first, second):
        assert sorted(sum(epoch, [])) == ALL_TOKENS.tolist()
    assert first != second
    assert first == epoch_of(shuffled(anywhere)) != epoch_of(shuffled(anywhere, seed=4))


def test_what_belongs_together_stays_together(output):
    for activations, tokens, record, position in shuffled(output):
        assert np.array_equal(activations, activations_of(tokens, WIDTHS[HOOK]))
        stream, index = record.T
        assert np.array_equal(tokens - 100 * index - 100_000 * stream, position)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_epoch(output, world_size):
    ranks = [epoch_of(shuffled(output, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(sum(sum(ranks, []), [])) == ALL_TOKENS.tolist()
    sizes = [len(sum(rank, [])) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1
    settings = {"world_size": world_size, "drop_last": True}
    dropped = [epoch_of(shuffled(output, rank=rank, **settings)) for rank in range(world_size)]
    assert {len(batch) for rank in dropped for batch in rank} == {7}
    assert len({len(rank) for rank in dropped}) == 1


def test_it_resumes_after_every_batch(output):
    whole = epoch_of(shuffled(output))
    reader = shuffled(output)
    batches = iter(reader)
    for seen in range(1, len(whole) + 1):
        next(batches)
        resumed = shuffled(output)
        resumed.restore(json.loads(json.dumps(reader.state())))
        assert epoch_of(resumed) == whole[seen:]
    assert epoch_of(resumed) == epoch_of_number(output, 1)


def epoch_of_number(output, number):
    reader = shuffled(output)
    reader.epoch = number
    return epoch_of(reader)


def test_a_state_of_another_order_is_refused(output):
    with pytest.raises(InvalidRequest, match="make the reader with the same"):
        shuffled(output, seed=5).restore(shuffled(output).state())
    with pytest.raises(InvalidRequest, match="ranks are 0 to"):
        ShuffleOptions(rank=2, world_size=2)
    with pytest.raises(InvalidRequest, match="does not hold a batch"):
        ShuffleOptions(batch_size=10, buffer=9)


def test_all_hook_points_of_a_token_can_be_had_together(output):
    for rows in ShuffledReader(ActivationReader(output), [HOOK, OTHER], ShuffleOptions(batch_size=9, buffer=20)):
        for name, width in WIDTHS.items():
            assert np.array_equal(rows.activations[name], activations_of(rows.tokens, width))


@pytest.mark.slow
def test_reading_imports_neither_jax_nor_torch():
    code = (
        "import sys, extraction.read.reader, extraction.read.shuffle\n"
        "assert not {'jax', 'torch', 'flax', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules)"
    )
    folder = checkpoint.__file__.rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True).returncode == 0
