"""What a run will take: by formula, as the flags say, and for a whole manifest. The compiler's counts are in
test_tpu_compile.py."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from extraction.core.errors import InvalidRequest
from extraction.format.run_config import RunDescription
from extraction.models.devices import Hardware
from extraction.storage import open_storage
from extraction.tools.plan import FILL, Whole, make_plan, workers_within
from extraction.worker.flags import PlanFlags, RunFlags
from extraction.worker.resolve import resolve_run
from extraction.worker.worker import peak_rate
from tests.helpers.runs import CONFIG
from tests.helpers.workers import MODEL, make_streams, python, text_of, write_corpus

# Of examples/tiny-lm: 4 layers of width 128.
FLAGS = PlanFlags(model=str(MODEL), layers="1,3", seq_len=512, batch_size=8, accelerator="v5litepod-4")


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
    assert plan.bytes_per_token == 2 * 128 * 2  # two hook points of 128 values of 2 bytes
    assert plan.seconds["upload"] == pytest.approx(FILL * 8 * 512 * 2 * 128 * 2 / 1e9)
    assert plan.seconds["upload"] == 8 * plan.seconds["device to host"]
    assert plan.seconds[plan.limited_by] == max(plan.seconds.values())
    assert plan.tokens_per_second == pytest.approx(FILL * 8 * 512 / max(plan.seconds.values()))


@pytest.mark.parametrize("dtype, stored", [("float32", 512), ("int8", 132), ("float8_e4m3fn", 132)])
def test_a_plan_counts_what_a_token_takes_with_its_scale(dtype, stored):
    assert make_plan(replace(FLAGS, store_dtype=dtype)).bytes_per_token == 2 * stored


def test_what_takes_longer_limits():
    assert make_plan(replace(FLAGS, upload=1e-3)).limited_by == "upload"
    assert make_plan(replace(FLAGS, to_host=1e-3)).limited_by == "device to host"
    assert make_plan(replace(FLAGS, efficiency=1e-4)).limited_by == "arithmetic"


@pytest.mark.slow
@pytest.mark.parametrize("given, workers", [(None, 2), (1, 1), (5, 2)])
def test_time_and_price_of_a_manifest(streams, given, workers):
    """Of 12 records of 30 words in two streams. A worker beyond the streams would have nothing to do."""
    plan = make_plan(replace(FLAGS, streams=str(streams), price=3.0, deadline=1e-9, workers=given, storage_price=1.0))
    whole = plan.manifest
    assert whole.workers == workers and 12 * 30 < whole.tokens < 12 * 30 * 4
    assert whole.stored_bytes == whole.tokens * 2 * 128 * 2
    seconds = whole.tokens / plan.tokens_per_second
    assert whole.hours == pytest.approx(seconds / workers / 3600)  # each has one stream, or one has both
    assert whole.price == pytest.approx(3.0 * 4 * seconds / 3600)  # of four chips
    assert whole.storage_price == pytest.approx(whole.stored_bytes / 1024**3)
    assert whole.workers_for_deadline >= seconds / 3600 / 1e-9 > whole.workers_for_deadline - 1
    assert " GB, 1 s with" in plan.to_text()


@pytest.mark.parametrize("number, chips, workers", [(1, "1 chip", "1 worker"), (2, "2 chips", "2 workers")])
def test_one_is_not_written_as_many(number, chips, workers):
    whole = Whole(number, 1, 1, number, 1.0, None, 1.0, number)
    text = replace(make_plan(FLAGS), chips=number, manifest=whole).to_text()
    assert f": {chips}, mesh" in text and f"1 h 0 min with {workers}, and 1.00 USD a month" in text
    assert text.endswith(f"for the deadline: {workers}")


@pytest.mark.slow
def test_what_is_stored_is_what_positions_store(streams):
    """By the rule alone where it tells, else by the first records of a manifest."""
    whole, quarter = make_plan(FLAGS), make_plan(replace(FLAGS, positions="every:4"))
    assert quarter.bytes_per_token == whole.bytes_per_token / 4
    assert quarter.seconds["upload"] == pytest.approx(whole.seconds["upload"] / 4)
    assert make_plan(replace(FLAGS, positions="last")).bytes_per_token == whole.bytes_per_token
    plan = make_plan(replace(FLAGS, positions="last", streams=str(streams)))
    assert plan.manifest.stored_bytes == pytest.approx(12 * 2 * 128 * 2, rel=0.01)  # a row for each record
    with pytest.raises(InvalidRequest, match="--positions answer: .* the records of"):
        make_plan(replace(FLAGS, positions="answer", streams=str(streams)))


@pytest.mark.parametrize(
    "name, seq_len, rows",
    [
        ("v5litepod-1", 2048, 16),
        ("v5litepod-8", 2048, 128),
        ("v6e-4", 65536, 4),
    ],
)
def test_the_batch_size_is_chosen_by_chips(name, seq_len, rows):
    plan = make_plan(replace(FLAGS, accelerator=name, seq_len=seq_len, batch_size="auto"))
    assert plan.batch_size == rows


@pytest.mark.parametrize(
    "mesh, rows",
    [
        ("data=1,model=1", 16),  # 32,768 tokens on one chip
        ("data=6", 96),
        ("data=2,model=4", 128),
        ("data=1,model=2", 32),
    ],
)
def test_the_batch_size_is_chosen_for_the_given_mesh(mesh, rows):
    plan = make_plan(replace(QWEN, layers="9,18,27", accelerator="h100:8", mesh=mesh, batch_size="auto"))
    assert (plan.batch_size, plan.fits) == (rows, True)
    small = make_plan(replace(QWEN, layers="27", accelerator="l4", mesh="data=1", batch_size="auto"))
    assert (small.batch_size, small.fits) == (2, True)


def test_the_results_of_three_steps_fit_into_pinned_host_memory(monkeypatch):
    """Of 64 rows of Llama-3.1-8B's 32 layers: 34 GB a step. XLA pins 64 GiB for the results of a GPU, for a TPU none."""
    results = 2048 * 32 * 4096 * 2  # of a row

    def rows(name):
        return make_plan(replace(LLAMA, accelerator=name)).batch_size

    monkeypatch.delenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", raising=False)
    assert rows("h100:8") == 32 and 3 * 32 * results < 64 * 2**30 < 3 * 64 * results
    monkeypatch.setenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "128")
    assert rows("h100:8") == 64
    monkeypatch.delenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB")
    assert rows("v5p-8") == 64


def test_scores_of_plain_attention_need_memory():
    """In float32 a GPU has no kernel: of 65,536 tokens a block of 4,096 queries has 34 GB of scores, twice."""
    flags = replace(LLAMA, layers="31", accelerator="h100", mesh="data=1", seq_len=65536, batch_size=1)
    plain = make_plan(replace(flags, compute_dtype="float32"))
    assert not plain.fits and plain.memory_bytes > 2 * 32 * 4096 * 65536 * 4
    kernel, asked = (make_plan(replace(flags, attention=form)) for form in ("auto", "plain"))
    assert kernel.fits and not asked.fits and asked.memory_bytes > 2 * 32 * 4096 * 65536 * 4
    windowed = replace(flags, model=str(CONFIGS / "Mistral-7B-v0.1.json"), seq_len=32768)  # of 4,096
    assert make_plan(replace(windowed, attention="plain")).memory_bytes == make_plan(windowed).memory_bytes


def test_what_does_not_fit_is_said():
    plan = make_plan(replace(FLAGS, batch_size=4096, seq_len=2048, hooks="resid_pre,mlp_out,post,z", mesh="data=1"))
    assert not plan.fits and "does not fit" in plan.to_text()


def test_what_the_compiler_finds_no_memory_for_does_not_fit(monkeypatch):
    """Here the compiler is that of this CPU, and its failure is a TPU's."""

    def fails(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM, 19.11G exceeds 15.75G.")

    monkeypatch.setattr("extraction.tools.plan.can_describe", lambda: True)
    monkeypatch.setattr("extraction.tools.plan.describe", lambda _: jax.devices())
    flags = replace(FLAGS, accelerator="v5litepod-1")
    assert make_plan(flags).fits
    monkeypatch.setattr(jax.stages.Lowered, "compile", fails)
    plan = make_plan(flags)
    assert not plan.fits and plan.memory_bytes < plan.chip_memory_bytes
    assert "does not fit (by formula; the compiler: " in plan.to_text() and "19.11G exceeds 15.75G" in plan.to_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"accelerator": "v5litepod-16"}, "v5litepod-16: not known; known are .* v4-8, .* h100, .* several hosts"),
        ({"accelerator": "h100:3"}, "h100:3: not known"),
        ({"currency": "EUR", "price": 1.0}, "known prices are in USD; give --price and --storage-price"),
        ({"currency": "EUR", "storage_price": 1.0}, "known prices are in USD"),
        ({"mesh": "data=3"}, "--batch-size 8"),
        ({"layers": "9"}, "--layers 9"),
        ({"batch_size": 1 << 20}, "smaller --batch-size"),
    ],
)
def test_what_cannot_be(change, message):
    with pytest.raises(InvalidRequest, match=message):
        make_plan(replace(FLAGS, **change))


CONFIGS = Path(__file__).parents[1] / "model_configs"
QWEN = replace(FLAGS, model=str(CONFIGS / "Qwen2.5-7B.json"), layers="0", seq_len=2048)  # the file alone
LLAMA = replace(FLAGS, model=str(CONFIGS / "Llama-3.1-8B.json"), layers="all", seq_len=2048, batch_size="auto")


def test_a_gpu_is_planned_by_its_data_sheet():
    """The first of Qwen2.5-7B's blocks on an L4: D=3584, 28 heads and 4 key-value heads of 128, F=18,944."""
    plan = make_plan(replace(QWEN, accelerator="l4"))
    weights = 3584 * 3584 + 2 * 3584 * 4 * 128 + 3584 * 3584 + 3 * 3584 * 18944  # q; k and v; o; gate, up, down
    tokens, pairs = 8 * 2048, 8 * 2048 * 2049 / 2  # of a query and a key that it sees
    operations = 2 * weights * tokens + 2 * 2 * 28 * 128 * pairs  # scores, and sums of values
    assert plan.seconds["arithmetic"] == pytest.approx(operations / (0.5 * 121e12), rel=1e-3)  # half of 121 TFLOP/s
    assert plan.limited_by == "arithmetic"
    assert plan.tokens_per_second == pytest.approx(0.96 * tokens / plan.seconds["arithmetic"])
    assert plan.chip_memory_bytes == 0.75 * 24e9 and plan.counts == "by formula"
    assert (plan.price_per_billion_tokens, "unknown for l4: give --price" in plan.to_text()) == (None, True)
    measured = make_plan(replace(QWEN, accelerator="l4", peak=60.5, efficiency=1.0))
    assert measured.seconds["arithmetic"] == pytest.approx(plan.seconds["arithmetic"])


@pytest.mark.parametrize("name, ratio", [("h100", 989 / 67), ("a100", 312 / 19.5), ("l4", 121 / 30.3), ("v6e-1", 6)])
def test_the_peak_is_that_of_the_compute_dtype(name, ratio):
    """In float32 a GPU has no tensor cores for a step's products, a TPU takes six in bfloat16; `--peak` is as given."""
    flags = [replace(QWEN, accelerator=name, compute_dtype=dtype) for dtype in ("bfloat16", "float32")]
    half, full = (make_plan(each) for each in flags)
    assert full.seconds["arithmetic"] == pytest.approx(ratio * half.seconds["arithmetic"])
    assert "its published peak in float32" in full.to_text()
    half, full = (make_plan(replace(each, peak=100.0)) for each in flags)
    assert full.seconds["arithmetic"] == half.seconds["arithmetic"]


def test_the_rate_to_the_host_is_that_of_the_accelerator_or_the_flag():
    """54 GB/s, as an H200 has; 8 GB/s where none was measured."""

    def seconds(**flags):
        return make_plan(replace(QWEN, **flags)).seconds["device to host"]

    assert seconds(accelerator="l4") == pytest.approx(seconds(accelerator="h200") * 54 / 8)
    assert seconds(accelerator="h200", to_host=8.0) == pytest.approx(seconds(accelerator="l4"))


def test_a_batch_for_which_each_chip_holds_the_weights_is_chosen():
    """Qwen2.5-7B on 8 chips of 16 GiB: 128 rows would need groups of chips, which exchange sums in each layer."""
    flags = replace(QWEN, layers="14", accelerator="v5litepod-8", upload=1e3, to_host=1e3)
    plan = make_plan(replace(flags, batch_size="auto"))
    assert (plan.mesh, plan.batch_size, plan.seconds["exchange"]) == ("data=8,model=1", 64, 0)
    assert plan.fits
    wide = make_plan(replace(flags, batch_size=128))
    assert wide.mesh == "data=2,model=4"
    x = 64 * 2048 * 3584 * 2  # bytes of x of a group of four chips: 64 rows, bfloat16
    sums, gathered = 2 * 15 * 2 * x * 3 / 4, x * 3 / 4  # two in each of 15 layers, each sent twice; the embedding
    assert wide.seconds["exchange"] == pytest.approx((sums + gathered) / (2 * 50e9))  # a ring: two links of 50 GB/s
    on_device = wide.seconds["arithmetic"] + wide.seconds["exchange"]
    assert wide.tokens_per_second == pytest.approx(0.96 * 128 * 2048 / on_device)
    assert plan.tokens_per_second > 1.1 * wide.tokens_per_second


@pytest.mark.parametrize("change, hour", [({}, 8 * 0.245), ({"spot": False}, 8 * 1.2), ({"price": 2.0}, 8 * 2.0)])
def test_the_bills_of_a_model_are_known_without_a_manifest(change, hour):
    """All 32 layers of Llama-3.1-8B: 4,096 values of 2 bytes each. The upload of 1 GB/s limits the rate."""
    plan = make_plan(replace(LLAMA, accelerator="v5litepod-8", **change))
    token = 32 * 4096 * 2
    assert plan.bytes_per_token == token == 262_144 and "262.14 GB for a million tokens" in plan.to_text()
    assert plan.storage_price_per_million_tokens == pytest.approx(1e6 * token / 2**30 * 0.02)  # 244 GiB, 4.88 USD
    assert plan.limited_by == "upload"
    seconds = 1e9 * token / 1e9  # of a billion tokens
    assert plan.price_per_billion_tokens == pytest.approx(seconds / 3600 * hour)
    kind = "on-demand" if "spot" in change else "spot"
    assert f"({kind}, {'--price' if 'price' in change else 'Google Cloud'}" in plan.to_text()


def test_a_currency_is_that_of_all_prices():
    text = make_plan(replace(FLAGS, currency="EUR", price=1.0, storage_price=0.03)).to_text()
    assert "EUR a month at 0.03 for a GiB (--storage-price)" in text and "EUR for a million" in text
    assert "USD" not in text


def test_a_plan_for_this_machine_measures_it():
    plan = make_plan(replace(FLAGS, accelerator="cpu", batch_size="auto"))
    assert (plan.chips, plan.batch_size, plan.chip_memory_bytes, plan.fits) == (1, 8, None, True)
    rate = re.search(r"75% of ([\d,]+) GFLOP/s, measured on this machine now", plan.to_text())
    assert rate and int(rate[1].replace(",", "")) > 0


@pytest.mark.slow
def test_the_file_of_a_configuration_has_no_tokenizer(streams):
    with pytest.raises(InvalidRequest, match="with --streams give the folder, which has the tokenizer"):
        make_plan(replace(FLAGS, model=f"{MODEL}/config.json", streams=str(streams)))


@pytest.mark.slow
def test_the_command(streams):
    given = (
        "plan",
        "--accelerator",
        "v5litepod-1",
        "--model",
        MODEL,
        "--layers",
        "1",
        "--seq-len",
        256,
        "--batch-size",
        4,
    )
    told = python("extract_activations.py", *given, "--streams", streams, "--price", 1.5, "--json")
    assert told.returncode == 0, told.stderr
    plan = json.loads(told.stdout)
    assert plan["fits"] and plan["batch_size"] == 4 and plan["manifest"]["price"] > 0
    assert (
        python("extract_activations.py", "plan", "--accelerator", "v9", "--model", MODEL, "--layers", 1).returncode == 2
    )


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


@pytest.mark.slow
def test_the_peak_rate_of_a_worker_is_that_of_its_chips(tmp_path, streams):
    """Of four blocks: D=128, 4 heads and 2 key-value heads of 32, F=384; rows of 128 tokens."""
    plan = run_plan((8, 1), open_storage(str(tmp_path)), streams)
    weights = 128 * 128 + 2 * 128 * 2 * 32 + 128 * 128 + 3 * 128 * 384  # q; k and v; o; gate, up, down
    operations = 4 * (2 * weights + 2 * 2 * 4 * 32 * 129 / 2)  # of a token, which sees half of its row on average
    of_tpu = replace(plan, hardware=Hardware("1 x TPU v5 lite", 1, 16 << 30, "bfloat16"))
    assert peak_rate(of_tpu) == pytest.approx(197e12 / 6 / operations)
    in_half = replace(of_tpu, step=replace(plan.step, compute_dtype="bfloat16"))
    assert peak_rate(in_half) == pytest.approx(197e12 / operations)
    assert peak_rate(plan) is None  # of a CPU nothing is published


@pytest.mark.slow
def test_commits_name_plain_attention_with_the_device(tmp_path, streams):
    """Where a run is computed again, other bytes are then no damage."""
    usual, plain = (
        run_plan((8, 1), open_storage(str(tmp_path)), streams, attention=form) for form in ("auto", "plain")
    )
    assert plain.step.attention == "plain" and plain.versions["device"].startswith("cpu ")
    assert plain.versions["device"] != usual.versions["device"]
    assert plain.versions["device"].replace(", plain attention", "") == usual.versions["device"]


def sizes_of(given, output, streams, positions="all"):
    """Rows and steps of a batch."""
    plan = run_plan(given, output, streams, positions)
    return plan.step.batch_size, plan.steps_per_batch


def run_plan(given, output, streams, positions="all", attention="auto"):
    """A worker's plan, for tokens that are 128 in a record."""
    return resolve_run(
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
            attention=attention,
        )  # fmt: skip
    )


@pytest.mark.parametrize("deadline, workers", [(8.0, 1), (4.0, 2), (3.9, 4), (2.0, 4), (1.9, 5), (1.0, 8), (0.5, 16)])
def test_a_deadline_counts_whole_streams(deadline, workers):
    """Four streams of two hours each; within less than that, more streams are needed."""
    assert workers_within(deadline, 8.0, 4) == workers


def test_a_share_that_is_not_known_is_said():
    assert "as if --positions last stored all of them" in make_plan(replace(FLAGS, positions="last")).to_text()
    assert "as if" not in make_plan(replace(FLAGS, positions="every:4")).to_text()
