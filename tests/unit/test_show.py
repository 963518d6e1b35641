"""Looking at a run: the rows a direction responds to most, the text of records and tokens, the page."""

import re
import shutil
from dataclasses import replace
from html import unescape

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

import extract_activations
from extraction.core.errors import InvalidRequest
from extraction.read import top_rows as library
from extraction.read.reader import ActivationReader
from extraction.read.texts import Texts
from extraction.read.top_rows import project, widened_parts
from extraction.storage import open_storage
from tests.helpers import runs
from tests.helpers.runs import STREAMS, WIDTHS, make_run
from tests.helpers.workers import MODEL, extract_here, make_streams, text_of, write_corpus

HOOK = "blocks.1.hook_resid_post"
TEXTS = [f"<b>{text_of(n, 3 + 5 * n)} é 漢字" for n in range(12)]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    make_streams(write_corpus(folder / "corpus", TEXTS), folder / "streams")
    extract_here(folder / "streams", folder / "run", "--positions", "1:")
    return str(folder / "run")


@pytest.fixture(scope="module")
def direction(tmp_path_factory):
    path = tmp_path_factory.mktemp("direction") / "d.npy"
    np.save(path, np.random.default_rng(0).normal(size=128))
    return path


def show(*arguments):
    arguments = ["show", *map(str, arguments)]
    result = CliRunner().invoke(extract_activations.cli, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_the_top_rows_are_those_of_all_products_in_order(tmp_path, k):
    make_run(open_storage(str(tmp_path)), STREAMS)
    reader, name = ActivationReader(str(tmp_path)), list(WIDTHS)[0]
    wanted = np.random.default_rng(1).normal(size=WIDTHS[name]).astype(np.float32)
    rows = [(part.activations.astype(np.float32) @ wanted, part) for part in reader.rows(name)]
    values = np.concatenate([value for value, _ in rows])
    places = np.concatenate([np.column_stack([part.record, part.positions, part.tokens]) for _, part in rows])
    order = np.argsort(-values, kind="stable")[:k]
    found = reader.top_rows(wanted, k, name)
    assert [(r.stream, r.record, r.position, r.token) for r in found] == [
        tuple(place) for place in places[order].tolist()
    ]
    assert np.allclose([r.value for r in found], values[order], rtol=1e-6)
    assert [r.record_id for r in found] == [runs.record_id(r.stream, r.record) for r in found]


def test_rows_are_widened_as_numpy_does(monkeypatch):
    monkeypatch.setattr(library, "_VALUES", 6)  # two rows at a time
    rows = np.array([[1.5, -2.0, np.inf], [np.nan, 1e-40, 3e38], [0, -0.0, 7]], np.float32)
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
        with np.errstate(over="ignore"):
            stored = rows.astype(dtype)
        found = np.concatenate([part.copy() for part in widened_parts(stored)])
        assert np.array_equal(found, stored.astype(np.float32), equal_nan=True)


def test_what_is_no_direction_is_refused(tmp_path, output):
    rows = np.zeros((2, 3), np.float32)
    with pytest.raises(InvalidRequest, match=r"the shape \(2,\), hook has the width 3"):
        project(rows, np.zeros(2), "hook")
    with pytest.raises(InvalidRequest, match="not finite"):
        project(rows, np.array([1, np.nan, 0]), "hook")
    np.save(tmp_path / "two.npy", np.zeros((2, 2)))
    (tmp_path / "text.npy").write_text("no")
    for path, said in (
        ("two.npy", "one array of numbers"),
        ("text.npy", "not a .npy file"),
        ("gone.npy", "not a .npy"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            show(output, "--top-k", tmp_path / path)
    with pytest.raises(InvalidRequest, match="give --record ID"):
        show(output)


def test_a_record_has_its_text_and_a_line_for_each_token(output):
    reader = ActivationReader(output)
    record = reader.record("<urn:doc:3>")
    assert reader.text(record) == TEXTS[3]
    lines = show(output, "--record", "<urn:doc:3>").splitlines()[1:]
    pieces = [eval(line.split(maxsplit=2)[2] if n else line.split(maxsplit=1)[1]) for n, line in enumerate(lines)]
    assert TEXTS[3] in "".join(pieces)
    norms = np.linalg.norm(record.activations[HOOK].astype(np.float64), axis=1)
    assert np.allclose([float(line.split()[1]) for line in lines[1:]], norms, rtol=1e-3)


def test_the_text_of_a_top_row_has_its_token_in_brackets_and_the_page_marks_it(output, direction, tmp_path):
    pipeline = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    said = show(output, "--top-k", direction, "--count", 6, "--html", tmp_path / "x.html")
    heads = re.findall(r"^(\S+)  record (.*), position (\d+)$", said, re.MULTILINE)
    rows = ActivationReader(output).top_rows(np.load(direction), 6)
    assert [(record, int(position)) for _, record, position in heads] == [(row.record_id, row.position) for row in rows]
    texts = re.findall(r"\[\[(.*?)\]\]", said)
    for row, text in zip(rows, texts, strict=True):
        if text:  # not a part of a character
            assert pipeline.decode([row.token], skip_special_tokens=False).strip() == text.replace("\\n", "\n").strip()
    page = (tmp_path / "x.html").read_text()
    assert page.count("<section>") == 6 and page.count("class=row") == 6
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", page)
    first = unescape(re.sub(r"<[^>]*>", "", re.search(r"<p class=text>(.*?)</p>", page, re.DOTALL)[1]))
    assert first.replace("↵\n", "\n").strip() in "<|endoftext|>" + TEXTS[int(re.search(r"\d+", rows[0].record_id)[0])]
    assert "<b>the" not in page.replace("<b title", "")


def test_other_streams_and_another_tokenizer_are_refused(output, tmp_path):
    reader = ActivationReader(output)
    other = make_streams(write_corpus(tmp_path / "corpus", TEXTS[:3]), tmp_path / "streams")
    with pytest.raises(InvalidRequest, match="not the streams of this run"):
        Texts(reader.run, streams=str(other)).text(0, 0)
    changed = tmp_path / "model"
    shutil.copytree(MODEL, changed)
    (changed / "tokenizer.json").write_text((MODEL / "tokenizer.json").read_text() + " ")
    with pytest.raises(InvalidRequest, match="not the tokenizer of this run"):
        Texts(reader.run, tokenizer=str(changed)).pieces([1])
    assert Texts(reader.run).pieces([1]) == Texts(reader.run, tokenizer=str(MODEL)).pieces([1])
    moved = replace(reader.run, model_location=str(tmp_path / "moved"))
    with pytest.raises(InvalidRequest, match=r"moved: there is no such folder; run.json names it: give the model's"):
        Texts(moved).pieces([1])
    with pytest.raises(InvalidRequest, match="not the tokenizer of this run; give its folder as the tokenizer"):
        Texts(replace(reader.run, model_location=str(changed))).pieces([1])
