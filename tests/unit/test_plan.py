"""What a run will take: by formula, as the flags say, and for a whole manifest. The compiler's counts are in
test_tpu_compile.py."""

import importlib.util
import json
from dataclasses import fields, replace

import pytest

from extraction.batching.size_estimate import Sample
from extraction.core.errors import InvalidRequest
from extraction.models.config_file import read_model_config
from extraction.storage import open_storage
from extraction.tools.plan import FILL, PlanOptions, make_plan
from extraction.worker.worker import RunOptions, with_sizes
from tests.helpers.workers import MODEL, make_streams, python, text_of, write_corpus

# Of examples/tiny-lm: 4 layers of width 128.
OPTIONS = PlanOptions(
    model=str(MODEL),
    revision=None,
    streams=None,
    layers="1,3",
    hooks="resid_post",
    hook_points=None,
    positions="all",
    drop_special=False,
    seq_len=512,
    batch_size=8,
    compute_dtype="bfloat16",
    store_dtype="bfloat16",
    mesh=None,
    tpu="v5litepod-4",
    efficiency=0.5,
    to_host=8.0,
    upload=1.0,
    price=None,
    deadline=None,
)


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
    plan = make_plan(OPTIONS)
    assert (plan.chips, plan.mesh, plan.batch_size, plan.hook_points) == (4, "data=4,model=1", 8, 2)
    assert plan.fits and "by formula" in plan.counts
    assert plan.bytes_per_million_tokens == 2 * 128 * 2 * 1_000_000
    assert plan.seconds["upload"] == pytest.approx(FILL * 8 * 512 * 2 * 128 * 2 / 1e9)
    assert plan.seconds["upload"] == 8 * plan.seconds["device to host"]
    assert plan.seconds[plan.limited_by] == max(plan.seconds.values())
    assert plan.tokens_per_second == pytest.approx(FILL * 8 * 512 / max(plan.seconds.values()))


@pytest.mark.parametrize("dtype, stored", [("float32", 512), ("int8", 132), ("float8_e4m3fn", 132)])
def test_a_plan_counts_what_a_token_takes_with_its_scale(dtype, stored):
    assert make_plan(replace(OPTIONS, store_dtype=dtype)).bytes_per_million_tokens == 2 * stored * 1_000_000


def test_what_takes_longer_limits():
    assert make_plan(replace(OPTIONS, upload=1e-3)).limited_by == "upload"
    assert make_plan(replace(OPTIONS, to_host=1e-3)).limited_by == "device to host"
    assert make_plan(replace(OPTIONS, efficiency=1e-4)).limited_by == "arithmetic"


def test_time_and_price_of_a_manifest(streams):
    plan = make_plan(replace(OPTIONS, streams=str(streams), price=3.0, deadline=1e-9))
    assert plan.workers == 2 and 12 * 30 < plan.tokens < 12 * 30 * 4
    assert plan.stored_bytes == plan.tokens * 2 * 128 * 2
    assert plan.hours == pytest.approx(plan.tokens / plan.tokens_per_second / 2 / 3600)
    assert plan.price == pytest.approx(3.0 * 4 * 2 * plan.hours)
    assert plan.workers_for_deadline >= plan.hours * 2 / 1e-9 > plan.workers_for_deadline - 1


@pytest.mark.parametrize("number, chips, workers", [(1, "1 chip", "1 worker"), (2, "2 chips", "2 workers")])
def test_one_is_not_written_as_many(number, chips, workers):
    plan = replace(make_plan(OPTIONS), chips=number, tokens=1, stored_bytes=1, hours=1.0, workers=number,
                   workers_for_deadline=number)  # fmt: skip
    text = plan.to_text()
    assert f": {chips}, mesh" in text and f"hours with {workers}\n" in text
    assert text.endswith(f"for the deadline: {workers}")


def test_what_is_stored_is_what_positions_store(streams):
    """By the rule alone where it tells, else by the first records of a manifest."""
    whole, quarter = make_plan(OPTIONS), make_plan(replace(OPTIONS, positions="every:4"))
    assert quarter.bytes_per_million_tokens == whole.bytes_per_million_tokens / 4
    assert quarter.seconds["upload"] == pytest.approx(whole.seconds["upload"] / 4)
    assert make_plan(replace(OPTIONS, positions="last")).bytes_per_million_tokens == whole.bytes_per_million_tokens
    plan = make_plan(replace(OPTIONS, positions="last", streams=str(streams)))
    assert plan.stored_bytes == pytest.approx(12 * 2 * 128 * 2, rel=0.01)  # a row for each record
    with pytest.raises(InvalidRequest, match="--positions answer: the records of"):
        make_plan(replace(OPTIONS, positions="answer", streams=str(streams)))


@pytest.mark.parametrize(
    "tpu, seq_len, rows",
    [
        ("v5litepod-1", 2048, 16),
        ("v5litepod-8", 2048, 128),
        ("v6e-4", 65536, 4),
    ],
)
def test_the_batch_size_is_chosen_by_chips(tpu, seq_len, rows):
    plan = make_plan(replace(OPTIONS, tpu=tpu, seq_len=seq_len, batch_size=None))
    assert plan.batch_size == rows


def test_what_does_not_fit_is_said():
    plan = make_plan(replace(OPTIONS, batch_size=4096, seq_len=2048, hooks="resid_pre,mlp_out,post,z", mesh="data=1"))
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
        make_plan(replace(OPTIONS, **change))


def test_the_command(streams):
    given = ("plan", "--tpu", "v5litepod-1", "--model", MODEL, "--layers", "1", "--seq-len", 256, "--batch-size", 4)
    told = python("extract_activations.py", *given, "--streams", streams, "--price", 1.5, "--json")
    assert told.returncode == 0, told.stderr
    plan = json.loads(told.stdout)
    assert plan["fits"] and plan["batch_size"] == 4 and plan["price"] > 0
    assert python("extract_activations.py", "plan", "--tpu", "v9", "--model", MODEL, "--layers", 1).returncode == 2


@pytest.mark.parametrize(
    "given, sizes",
    [
        ((3, 5), (3, 5)),
        (("auto", 5), (7, 5)),
        ((3, None), (3, 9)),
        (("auto", None), (7, 9)),
    ],
)
def test_what_is_left_open_is_as_the_run_has_it(tmp_path, given, sizes):
    output = open_storage(str(tmp_path))
    run = {"schema": 1, "fingerprint": "f", "configuration": {"batch_size": 7, "steps_per_batch": 9}}
    output.create("run.json", json.dumps(run).encode())
    assert sizes_of(given, output) == sizes


def test_the_start_that_begins_a_run_chooses(tmp_path):
    output = open_storage(str(tmp_path))
    assert sizes_of(("auto", None), output) == (32, 64)  # 4096 tokens on a CPU; 2 MiB in a step
    assert sizes_of((64, None), output) == (64, 32)
    assert sizes_of((64, None), output, share=0.5) == (64, 64)
    assert sizes_of((64, None), output, share=1 / 32) == (64, 107)  # 30 s of arithmetic


def sizes_of(given, output, share=1.0):
    options = RunOptions(**{field.name: None for field in fields(RunOptions)})
    options = replace(
        options,
        batch_size=given[0],
        steps_per_batch=given[1],
        seq_len=128,
        compute_dtype="float32",
        store_dtype="bfloat16",
        positions="all" if share == 1.0 else "every:4",
        drop_special=False,
    )
    hooks = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
    chosen = with_sizes(options, read_model_config(MODEL), hooks, (output, lambda: Sample(1, 100, 100 * share)))
    return chosen.batch_size, chosen.steps_per_batch
