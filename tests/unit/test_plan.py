"""What a run will take: by formula, as the flags say, and for a whole manifest. The compiler's counts are in
test_tpu_compile.py."""

import importlib.util
import json
from dataclasses import replace

import pytest

from extraction.core.errors import InvalidRequest
from extraction.format.run_config import RunDescription
from extraction.storage import open_storage
from extraction.tools.plan import FILL, make_plan
from extraction.worker.flags import PlanFlags, RunFlags
from extraction.worker.resolve import resolve_run
from tests.helpers.runs import CONFIG
from tests.helpers.workers import MODEL, make_streams, python, text_of, write_corpus

# Of examples/tiny-lm: 4 layers of width 128.
FLAGS = PlanFlags(model=str(MODEL), layers="1,3", seq_len=512, batch_size=8, tpu="v5litepod-4")


@pytest.fixture(autouse=True)
def no_libtpu(monkeypatch):
    found = importlib.util.find_spec

    def hidden(name, *rest):
        return None if name == "libtpu" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return make_streams(write_corpus(folder / "corpus", [text_of(i, 30) for i in range(12)]), folder / "streams", 2)


def test_a_plan_adds_up():
    plan = make_plan(FLAGS)
    assert (plan.chips, plan.mesh, plan.batch_size, plan.hook_points) == (4, "data=4,model=1", 8, 2)
    assert plan.fits and "by formula" in plan.counts
    assert plan.bytes_per_million_tokens == 2 * 128 * 2 * 1_000_000
    assert plan.seconds["upload"] == pytest.approx(FILL * 8 * 512 * 2 * 128 * 2 / 1e9)
    assert plan.seconds["upload"] == 8 * plan.seconds["device to host"]
    assert plan.seconds[plan.limited_by] == max(plan.seconds.values())
    assert plan.tokens_per_second == pytest.approx(FILL * 8 * 512 / max(plan.seconds.values()))


@pytest.mark.parametrize("dtype, stored", [("float32", 512), ("int8", 132), ("float8_e4m3fn", 132)])
def test_a_plan_counts_what_a_token_takes_with_its_scale(dtype, stored):
    assert make_plan(replace(FLAGS, store_dtype=dtype)).bytes_per_million_tokens == 2 * stored * 1_000_000


def test_what_takes_longer_limits():
    assert make_plan(replace(FLAGS, upload=1e-3)).limited_by == "upload"
    assert make_plan(replace(FLAGS, to_host=1e-3)).limited_by == "device to host"
    assert make_plan(replace(FLAGS, efficiency=1e-4)).limited_by == "arithmetic"


@pytest.mark.slow
def test_time_and_price_of_a_manifest(streams):
    plan = make_plan(replace(FLAGS, streams=str(streams), price=3.0, deadline=1e-9))
    assert plan.workers == 2 and 12 * 30 < plan.tokens < 12 * 30 * 4
    assert plan.stored_bytes == plan.tokens * 2 * 128 * 2
    assert plan.hours == pytest.approx(plan.tokens / plan.tokens_per_second / 2 / 3600)
    assert plan.price == pytest.approx(3.0 * 4 * 2 * plan.hours)
    assert plan.workers_for_deadline >= plan.hours * 2 / 1e-9 > plan.workers_for_deadline - 1


@pytest.mark.parametrize("number, chips, workers", [(1, "1 chip", "1 worker"), (2, "2 chips", "2 workers")])
def test_one_is_not_written_as_many(number, chips, workers):
    plan = replace(make_plan(FLAGS), chips=number, tokens=1, stored_bytes=1, hours=1.0, workers=number,
                   workers_for_deadline=number)  # fmt: skip
    text = plan.to_text()
    assert f": {chips}, mesh" in text and f"hours with {workers}\n" in text
    assert text.endswith(f"for the deadline: {workers}")


@pytest.mark.slow
def test_what_is_stored_is_what_positions_store(streams):
    """By the rule alone where it tells, else by the first records of a manifest."""
    whole, quarter = make_plan(FLAGS), make_plan(replace(FLAGS, positions="every:4"))
    assert quarter.bytes_per_million_tokens == whole.bytes_per_million_tokens / 4
    assert quarter.seconds["upload"] == pytest.approx(whole.seconds["upload"] / 4)
    assert make_plan(replace(FLAGS, positions="last")).bytes_per_million_tokens == whole.bytes_per_million_tokens
    plan = make_plan(replace(FLAGS, positions="last", streams=str(streams)))
    assert plan.stored_bytes == pytest.approx(12 * 2 * 128 * 2, rel=0.01)  # a row for each record
    with pytest.raises(InvalidRequest, match="--positions answer: .* the records of"):
        make_plan(replace(FLAGS, positions="answer", streams=str(streams)))


@pytest.mark.parametrize(
    "tpu, seq_len, rows",
    [
        ("v5litepod-1", 2048, 16),
        ("v5litepod-8", 2048, 128),
        ("v6e-4", 65536, 4),
    ],
)
def test_the_batch_size_is_chosen_by_chips(tpu, seq_len, rows):
    plan = make_plan(replace(FLAGS, tpu=tpu, seq_len=seq_len, batch_size="auto"))
    assert plan.batch_size == rows


def test_what_does_not_fit_is_said():
    plan = make_plan(replace(FLAGS, batch_size=4096, seq_len=2048, hooks="resid_pre,mlp_out,post,z", mesh="data=1"))
    assert not plan.fits and "does not fit" in plan.to_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tpu": "v5"}, "known are v4-8"),
        ({"mesh": "data=3"}, "--batch-size 8"),
        ({"layers": "9"}, "--layers 9"),
        ({"batch_size": 1 << 20}, "smaller --batch-size"),
    ],
)
def test_what_cannot_be(change, message):
    with pytest.raises(InvalidRequest, match=message):
        make_plan(replace(FLAGS, **change))


@pytest.mark.slow
def test_the_command(streams):
    given = ("plan", "--tpu", "v5litepod-1", "--model", MODEL, "--layers", "1", "--seq-len", 256, "--batch-size", 4)
    told = python("extract_activations.py", *given, "--streams", streams, "--price", 1.5, "--json")
    assert told.returncode == 0, told.stderr
    plan = json.loads(told.stdout)
    assert plan["fits"] and plan["batch_size"] == 4 and plan["price"] > 0
    assert python("extract_activations.py", "plan", "--tpu", "v9", "--model", MODEL, "--layers", 1).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, sizes",
    [
        ((3, 5), (3, 5)),
        (("auto", 5), (7, 5)),
        ((3, None), (3, 9)),
        (("auto", None), (7, 9)),
    ],
)
def test_what_is_left_open_is_as_the_run_has_it(tmp_path, streams, given, sizes):
    output = open_storage(str(tmp_path))
    output.create("run.json", RunDescription(replace(CONFIG, batch_size=7, steps_per_batch=9), "").to_bytes())
    assert sizes_of(given, output, streams) == sizes


@pytest.mark.slow
def test_the_start_that_begins_a_run_chooses(tmp_path, streams):
    output = open_storage(str(tmp_path))
    assert sizes_of(("auto", None), output, streams) == (32, 64)  # 4096 tokens on a CPU; 2 MiB in a step
    assert sizes_of((64, None), output, streams) == (64, 32)
    assert sizes_of((64, None), output, streams, positions="every:2") == (64, 63)  # a bit more than half
    assert sizes_of((64, None), output, streams, positions="every:64") == (64, 107)  # 30 s of arithmetic


def sizes_of(given, output, streams, positions="all"):
    """Rows and steps of a batch, of tokens that are 128 in a record."""
    plan = resolve_run(
        RunFlags(
            model=str(MODEL),
            layers="1,3",
            streams=str(streams),
            output=output.location,
            worker_id=0,
            seq_len=128,
            batch_size=given[0],
            steps_per_batch=given[1],
            compute_dtype="float32",
            positions=positions,
        )  # fmt: skip
    )
    return plan.step.batch_size, plan.steps_per_batch
