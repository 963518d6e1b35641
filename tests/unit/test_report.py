"""The report: its numbers are those of the run, the page needs nothing else, and a browser shows it at any width."""

import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import checkpoint
from extraction.batching.token_selection import Selection, Selector
from extraction.read.reader import ActivationReader
from extraction.storage import open_storage
from extraction.tools.report import facts as report_facts
from extraction.tools.report import gather, over_time, render, write_report
from extraction.tools.report.charts import short, ticks
from extraction.tools.report.facts import QUANTILES, CommitFact
from tests.helpers import runs
from tests.helpers.runs import FINGERPRINT, STREAMS, WIDTHS, make_run
from tests.helpers.stream_runs import relink
from tests.helpers.workers import MODEL, python

HOOK = next(iter(WIDTHS))


@pytest.fixture
def output(tmp_path):
    """Three streams, one of them interrupted twice."""
    storage = open_storage(str(tmp_path / "run"))
    make_run(storage, STREAMS[:2])
    for stop_after in (1, 1, None):
        root = checkpoint.read_run(storage).digest
        runs.extract(checkpoint.CommitChain.load(storage, 2, FINGERPRINT, root), STREAMS[2], stop_after)
    return str(tmp_path / "run")


def test_the_numbers_are_those_of_the_run(output):
    facts, reader = gather(output), ActivationReader(output)
    assert facts.num_tokens == reader.num_tokens() == sum(map(sum, STREAMS))
    assert facts.num_records == sum(map(len, STREAMS))
    assert sorted(facts.record_lengths.tolist()) == sorted(n for lengths in STREAMS for n in lengths)
    assert [commit.stream for commit in facts.interruptions()] == [2, 2]
    assert facts.verdict == "not checked" and "did not run" in facts.proof
    for hook in facts.hooks:
        norms = [np.linalg.norm(rows.activations.astype(np.float64), axis=1) for rows in reader.rows(hook.name)]
        norms = np.concatenate(norms)
        assert hook.rms == pytest.approx(np.sqrt((norms**2).mean()))
        exact = np.quantile(norms, QUANTILES, method="lower")
        assert hook.quantiles == pytest.approx(exact, rel=0.0101)
        assert hook.largest == pytest.approx(norms.max(), rel=0.0101)
        assert hook.outstanding[0].times == pytest.approx(norms.max() / hook.median)


def test_quantiles_and_the_largest_coordinate_are_of_all_rows_and_not_of_the_sample(output, monkeypatch):
    """Of each object only its first row is in the sample."""
    whole = gather(output).hooks
    monkeypatch.setattr(report_facts, "SAMPLED_ROWS", 1)
    for hook, expected in zip(gather(output).hooks, whole, strict=True):
        assert (hook.quantiles, hook.largest, hook.rms) == (expected.quantiles, expected.largest, expected.rms)
        most = max(abs(token.value) for token in expected.outstanding)
        found = [token for token in hook.outstanding if abs(token.value) == most]
        assert found and all(token in expected.outstanding for token in found)
    assert "Of all that are stored and have no NaN; quantiles" in render(gather(output))


@pytest.mark.parametrize("rule", ["last", "mean", "every:7"])
def test_where_a_part_is_stored_lengths_and_pace_are_of_all_tokens(tmp_path, rule):
    make_run(open_storage(str(tmp_path)), STREAMS, selector=Selector(Selection.parse(rule)))
    facts = gather(str(tmp_path))
    reader = ActivationReader(str(tmp_path))
    assert facts.num_tokens == reader.num_tokens() == sum(map(sum, STREAMS)) > facts.num_rows == reader.num_rows()
    lengths = [n for lengths in STREAMS for n in lengths if n]
    assert sorted(facts.record_lengths[facts.record_lengths > 0].tolist()) == sorted(lengths)
    assert f"<b>{facts.num_rows}</b><span>rows stored" in render(facts)


@pytest.mark.parametrize(
    "rule, streams, known",
    [
        ("0", [[100], [3, 50, 2]], [2, 3, 50, 100]),  # the rest of a long record has no rows
        ("200", [[250, 40]], [40, 250]),
        ("5000", [[40, 0, 0], [5, 3], [20]], [20]),  # in one batch without rows the ends of several
        ("5000", [[5, 3, 4]], []),
    ],
)
def test_lengths_are_known_where_batches_without_rows_tell_them(tmp_path, rule, streams, known):
    make_run(open_storage(str(tmp_path)), streams, selector=Selector(Selection.parse(rule)))
    facts = gather(str(tmp_path))
    assert sorted(facts.record_lengths.tolist()) == known
    total = sum(map(len, streams))
    said = f"{len(known)} of {total} records have a known length" in render(facts)
    assert said == (len(known) < total)


@pytest.mark.parametrize(
    "commits, mean, most",
    [
        ([(0, 10, 4), (0, 20, 9), (0, 30, 9), (0, 40, 9)], 10, 10),  # what was before the first commit is not free
        ([(0, 10, 4), (0, 20, 9)], 10, 10),
        ([(0, 10, 10), (1, 10, 10), (0, 20, 9), (1, 20, 9)], 20, 20),
        ([(0, 10, 4), (0, 20, 9), (1, 30, 10), (1, 40, 9)], 10, 10),  # one stream after the other
        ([(0, 10, 4), (0, 10, 9), (0, 10, 9), (0, 20, 9)], 10, 10),  # a bucket tells the time in whole seconds
        ([(0, 10, 4), (0, 20, 9), (0, 30, 9), (0, 60, 10, "b"), (0, 70, 9, "b")], 400 / 60, 400 / 60),
        ([(0, 10 * number, 9) for number in range(1, 9)], 10, 10),
    ],
)
def test_the_pace_counts_tokens_in_the_time_that_they_took(output, commits, mean, most, monkeypatch):
    facts = [CommitFact(stream, time, *(attempt or ["a"]), 100, 100, {"step": seconds - 1.0, "upload": 1.0})
             for stream, time, seconds, *attempt in commits]  # fmt: skip
    seen = []
    monkeypatch.setattr(over_time.charts, "path", lambda axes, points, css, title: seen.extend(points) or "")
    assert f"; {mean:,.0f} in the mean." in over_time.pace(replace(gather(output), commits=tuple(facts)))
    assert max(rate for _, rate in seen) == pytest.approx(most)


def spoil_commit(folder):
    (folder / "worker-00001/commits/00000000.json").write_text("{")


def spoil_batch_file(folder):
    next((folder / "worker-00001/batches").iterdir()).write_bytes(b"damaged")


@pytest.mark.parametrize("spoil, named", [(spoil_commit, "00000000.json"), (spoil_batch_file, ".safetensors")])
def test_a_damaged_stream_is_named_and_the_others_are_drawn(tmp_path, spoil, named):
    make_run(open_storage(str(tmp_path)), STREAMS)
    spoil(tmp_path)
    facts = gather(str(tmp_path))
    assert list(facts.damaged) == [1] and named in facts.damaged[1]
    assert {commit.stream for commit in facts.commits} == {0, 2}
    assert facts.num_tokens == sum(STREAMS[0]) + sum(STREAMS[2])
    page = render(facts)
    assert "<h2>Damaged streams</h2>" in page and "<h2>Norms</h2>" in page


def test_the_page_says_of_how_many(tmp_path):
    storage = open_storage(str(tmp_path))
    make_run(storage, STREAMS[:2], stop_after=1)
    done = gather(str(tmp_path)).num_records
    assert f"<b>{done}</b><span>records" in render(gather(str(tmp_path)))  # the run does not say how many
    run = checkpoint.read_run(storage)
    storage.replace("run.json", replace(run, records_per_stream=(700, 600, 500)).to_bytes())
    relink(storage, storage.replace)
    page = render(gather(str(tmp_path)))
    assert f"<b>{done} of 1,800</b><span>records" in page and "<b>2 of 3</b><span>streams begun" in page


def test_a_record_that_has_not_ended_has_no_length(tmp_path):
    make_run(open_storage(str(tmp_path)), [[5, 40]], stop_after=1)
    assert gather(str(tmp_path)).record_lengths.tolist() == [5]


@pytest.mark.parametrize("factor", [0.0, 1e-12, np.inf])
def test_norms_of_next_to_nothing_and_of_infinities_are_drawn(tmp_path, monkeypatch, factor):
    monkeypatch.setattr(runs, "activations_of", lambda tokens, width: np.full((len(tokens), width), factor))
    make_run(open_storage(str(tmp_path)), STREAMS[:1])
    page = render(gather(str(tmp_path)))
    picture = page.partition("<h2>Norms</h2>")[2].partition("</section>")[0]
    places = [float(x) for x in re.findall(r' x(?:1|2)?="([^"]+)"', picture)]
    assert places and all(0 <= x <= 400 for x in places)


def test_a_hook_point_of_nothing_but_nan_is_shown_as_such(tmp_path, monkeypatch):
    real = runs.activations_of
    monkeypatch.setattr(
        runs, "activations_of", lambda tokens, width: real(tokens, width) * (np.nan if width == WIDTHS[HOOK] else 1)
    )
    make_run(open_storage(str(tmp_path)), STREAMS[:1])
    page = render(gather(str(tmp_path)))
    picture = page.partition("<h2>Norms</h2>")[2].partition("</section>")[0]
    assert (
        picture.count("<svg") == 1
        and '="nan"' not in page
        and '<div class="number rms" data-label="r.m.s.">nan<' in page
    )


def test_an_outstanding_token_is_named_by_record_position_and_coordinate(output):
    found = gather(output).hooks[0].outstanding[0]
    record = ActivationReader(output).record(found.record_id)
    (row,) = np.flatnonzero(record.tokens == found.token)
    values = record.activations[HOOK][row].astype(np.float32)
    assert record.positions[row] == found.position
    assert (np.abs(values).argmax(), values[found.coordinate]) == (found.coordinate, found.value)


def test_the_page_stands_alone_and_trusts_no_name(output, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "record_id", lambda worker_id, index: f"<script>alert({index})</script>&")
    make_run(open_storage(str(tmp_path / "odd")), STREAMS[:1])
    page = render(gather(str(tmp_path / "odd")))
    assert "&lt;script&gt;alert(" in page and "<script" not in page
    assert not re.search(r"https?://|@import|url\(|src=|<link(?! rel=\"icon\" href=\"data:,\")", page)
    for part in ("Progress", "Pace", "Norms", "Tokens that stand out", "Norms by position", "Record lengths", "Proof"):
        assert f"<h2>{part}</h2>" in page


def test_streams_are_drawn_with_a_bar_for_each_attempt(output):
    page = render(gather(output))
    picture = page.partition('<svg class="streams"')[2].partition("</svg>")[0]
    assert (picture.count('class="bar"'), picture.count('class="again"')) == (5, 2)  # three streams, two interruptions
    numbers = page.partition('<div class="numbers">')[2].partition("</div>")[0]
    assert re.findall(r">(\d+)<", numbers) == ["0", "1", "2"]
    assert "stream 2, attempt 3: " in picture


def test_kinds_of_several_layers_are_drawn_by_layer(tmp_path, monkeypatch):
    widths = {f"blocks.{layer}.hook_{kind}": 4 for layer in range(20) for kind in ("resid_post", "mlp_out")}
    monkeypatch.setattr(runs, "WIDTHS", widths)
    make_run(open_storage(str(tmp_path)), STREAMS[:1])
    page = render(gather(str(tmp_path)))
    picture = page.partition("<h2>Norms by layer</h2>")[2].partition("</section>")[0]
    assert [picture.count(f">{kind}: median<") for kind in ("hook_resid_post", "hook_mlp_out")] == [1, 1]
    assert "<details><summary>40 hook points</summary>" in page  # too many to be shown unasked


@pytest.mark.parametrize("streams, stop_after", [([], None), ([[]], None), ([[4]], None), ([[40]], 1)])
def test_little_is_shown_as_well(tmp_path, streams, stop_after):
    make_run(open_storage(str(tmp_path)), streams, stop_after)
    assert render(gather(str(tmp_path))).endswith("</html>\n")


@pytest.mark.slow
def test_the_command_writes_it(output, tmp_path):
    result = python("extract_activations.py", "report", output, "--html", tmp_path / "x.html", "--tokenizer", MODEL)
    assert result.returncode == 0, result.stderr
    assert ">text</th>" in (tmp_path / "x.html").read_text()
    result = python("extract_activations.py", "report", output, "--html", tmp_path / "no/x.html")
    assert (result.returncode, "--html" in result.stderr) == (2, True)


@pytest.mark.parametrize("low, high, expected", [(0, 10, [0, 2.5, 5, 7.5, 10]), (0, 0, [0]), (3, 11, [4, 6, 8, 10])])
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value, text", [(0, "0"), (1234, "1.23k"), (5e9, "5G"), (0.0123, "0.0123")])
def test_numbers_are_short(value, text):
    assert short(value) == text


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.asked.append(self.path)


FRAME = """<iframe src="x.html" style="width:{width}px;height:800px"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement
  document.title = page.scrollWidth == page.clientWidth && page.clientWidth > {width} - 20 ? "fits" : page.scrollWidth
}}
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_word_or_a_request(output, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium is installed")
    folder = tmp_path / "page"
    folder.mkdir()
    write_report(output, str(folder / "x.html"))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--dump-dom",
            f"--user-data-dir={tmp_path}/profile",
            f"http://127.0.0.1:{server.server_port}/frame.html",
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path in server.asked if "favicon" not in path] == ["/frame.html", "/x.html"]
    assert "CONSOLE" not in result.stderr
    assert "<title>fits</title>" in result.stdout
