"""Records to ids: those of the model's own tokenizer, whatever the grouping and the number of threads."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from extraction.batching.token_selection import Selection, Selector
from extraction.batching.tokenizer import RecordTokenizer
from extraction.core.errors import DamagedData, InvalidRequest
from extraction.format.records import Record
from extraction.format.run_config import SpecialTokenIds
from tests.helpers.published_tokenizers import llama3, qwen2
from tests.helpers.workers import MODEL, text_of

pytestmark = pytest.mark.slow

TEXTS = ["", "one", *(text_of(i, 3 + 17 * i) for i in range(30)), "naïve ☃ \n\t  12345 <s> </s>", "x" * 3000]
RECORDS = [Record(i, f"id-{i}", text, '{"n": 1}' if i % 2 else None) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that puts <s> before and </s> after a text, and whose file asks for truncation and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    around = [(mark, number) for number, mark in enumerate(marks)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_id=1, pad_token="</s>")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("bos, prefix", [("auto", [0]), ("always", [0]), ("never", [])])
def test_ids_are_the_tokenizers_own_with_the_beginning_asked_for(folder, bos, prefix):
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = RecordTokenizer(folder, bos)
    found = list(tokenizer.tokenize(RECORDS))
    assert [(record.index, record.id, record.meta) for record in found] == [(r.index, r.id, r.meta) for r in RECORDS]
    for record, text in zip(found, TEXTS, strict=True):
        assert record.tokens.dtype == np.int32
        ids = reference(text, add_special_tokens=False, truncation=False)["input_ids"]
        assert record.tokens.tolist() == prefix + ids
    assert tokenizer.special_tokens() == SpecialTokenIds({"<s>": 0, "</s>": 1}, tuple(prefix))


def test_a_tokenizer_that_begins_with_nothing(tmp_path):
    reference = AutoTokenizer.from_pretrained(MODEL)
    ids = [record.tokens.tolist() for record in RecordTokenizer(MODEL, "auto").tokenize(RECORDS)]
    assert ids == [reference(text)["input_ids"] for text in TEXTS]


def save_metaspace(folder):
    """A tokenizer as Llama 2 has it: a blank is a part of the word behind it, and one is put before the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "Question: naïve ☃? Answer: B"], trainer)
    tokenizer.decoder = decoders.Metaspace()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("bos", ["always", "never"])
@pytest.mark.parametrize("kind", ["bytes", "metaspace", "tiny-lm"])
def test_offsets_are_the_characters_of_each_token_and_change_no_id(folder, tmp_path, kind, bos):
    chosen = {"bytes": folder, "tiny-lm": MODEL}.get(kind) or save_metaspace(tmp_path / "metaspace")
    tokenizer = RecordTokenizer(chosen, bos)
    plain = list(tokenizer.tokenize(RECORDS))
    for record, without, text in zip(tokenizer.tokenize(RECORDS, 7, offsets=True), plain, TEXTS, strict=True):
        assert without.offsets is None and np.array_equal(record.tokens, without.tokens)
        assert record.offsets.shape == (len(record.tokens), 2) and record.offsets.dtype == np.int64
        begins, ends = record.offsets[bos == "always" :].T
        assert (bos == "never") or record.offsets[0].tolist() == [0, 0]
        assert (np.diff(begins) >= 0).all() and (np.diff(ends) >= 0).all()
        covered = {place for begin, end in zip(begins, ends, strict=True) for place in range(begin, end)}
        assert {place for place, character in enumerate(text) if not character.isspace()} <= covered
        assert covered <= set(range(len(text)))


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "tiny-lm"])
@pytest.mark.parametrize("answer", ["B", "naïve ☃", "12345"])
def test_the_tokens_of_a_span_are_those_of_its_text(folder, tmp_path, kind, answer):
    """And of no more than the blank before it, though characters before it have several bytes."""
    chosen = {"bytes": folder, "tiny-lm": MODEL}.get(kind) or save_metaspace(tmp_path / "metaspace")
    text = f"Question: naïve ☃? Answer: {answer}"
    meta = json.dumps({"spans": {"answer": [len(text) - len(answer), len(text)]}})
    (record,) = RecordTokenizer(chosen).tokenize([Record(0, "r", text, meta)], offsets=True)
    kept = Selector(Selection.parse("answer")).kept(record, len(record.tokens))
    stored = AutoTokenizer.from_pretrained(chosen).decode(record.tokens[kept])
    assert stored.strip() == answer
    assert kept.nonzero()[0].tolist() == list(range(len(kept) - kept.sum(), len(kept)))


@pytest.mark.parametrize("group_size", [1, 7])
@pytest.mark.parametrize("parallelism", ["true", "false"])
def test_groups_and_threads_do_not_matter(folder, monkeypatch, group_size, parallelism):
    expected = [record.tokens.tolist() for record in RecordTokenizer(folder).tokenize(RECORDS)]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
    assert [record.tokens.tolist() for record in RecordTokenizer(folder).tokenize(RECORDS, group_size)] == expected


def test_records_before_a_damaged_one_are_handed_on(folder):
    def damaged():
        yield from RECORDS[:3]
        raise DamagedData("row 3")

    found = RecordTokenizer(folder).tokenize(damaged())
    assert [next(found).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DamagedData, match="row 3"):
        next(found)


def test_the_digest_covers_what_decides_the_ids(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert RecordTokenizer(copy).digest == RecordTokenizer(folder).digest
    (copy / "README.md").write_text("no part of it")
    assert RecordTokenizer(copy).digest == RecordTokenizer(folder).digest
    (copy / "tokenizer_config.json").write_text("{}")
    assert RecordTokenizer(copy).digest != RecordTokenizer(folder).digest


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "change, bos, error, message",
    [
        (without("tokenizer.json"), "auto", InvalidRequest, r"no tokenizer\.json here"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "auto",
            DamagedData,
            "not a readable tokenizer",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text(
                '{"tokenizer_class": "PreTrainedTokenizerFast"}'
            ),
            "always",
            InvalidRequest,
            "--bos always: this tokenizer has no beginning-of-text token",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused(folder, tmp_path, change, bos, error, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(error, match=message):
        RecordTokenizer(copy, bos)


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "tekken.json"])
def test_files_that_do_not_say_how_text_is_split_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidRequest, match=rf"no tokenizer\.json here, and {name}.*save_pretrained"):
        RecordTokenizer(tmp_path)


def test_an_added_token_without_a_row_in_the_embedding_is_read_as_text(folder, tmp_path):
    """As Gemma 3 1B has one: 262,144 rows, and a token for images whose id is 262144."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    state = json.loads((copy / "tokenizer.json").read_bytes())
    rows = len(state["model"]["vocab"])
    state["added_tokens"].append(state["added_tokens"][0] | {"id": rows, "content": "<image>"})
    (copy / "tokenizer.json").write_text(json.dumps(state))
    names = json.loads((copy / "tokenizer_config.json").read_bytes()) | {"additional_special_tokens": ["<image>"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(names))
    records = [Record(0, "a", "one <image> </s>")]

    (seen,) = RecordTokenizer(copy).tokenize(records)
    assert rows in seen.tokens
    fitted = RecordTokenizer(copy, num_rows=rows)
    (found,) = fitted.tokenize(records)
    (as_text,) = RecordTokenizer(folder).tokenize(records)
    assert found.tokens.tolist() == as_text.tokens.tolist() and max(found.tokens) < rows
    assert fitted.special_tokens().ids == {"<s>": 0, "</s>": 1}


def test_a_vocabulary_beyond_the_embedding_is_refused(folder):
    rows = len(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"])
    with pytest.raises(InvalidRequest, match=f"ids up to {rows - 1}, the embedding has {rows - 1} rows"):
        RecordTokenizer(folder, num_rows=rows - 1)


def test_a_beginning_beyond_the_embedding_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    state = json.loads((copy / "tokenizer.json").read_bytes())
    rows = len(state["model"]["vocab"])
    state["added_tokens"].append(state["added_tokens"][0] | {"id": rows, "content": "<begin>"})
    (copy / "tokenizer.json").write_text(json.dumps(state))
    names = json.loads((copy / "tokenizer_config.json").read_bytes()) | {"bos_token": "<begin>"}
    (copy / "tokenizer_config.json").write_text(json.dumps(names))
    with pytest.raises(InvalidRequest, match=f"ids up to {rows}, "):
        RecordTokenizer(copy, "always", rows)


@pytest.mark.parametrize("make", [llama3, qwen2])
def test_blanks_have_places_too(tmp_path, make):
    """A pipeline that trims offsets would leave tokens of blanks without any, and so outside of every span."""
    make().save(str(tmp_path / "tokenizer.json"))
    text = "f:    r\n        x  y"
    (record,) = RecordTokenizer(tmp_path, "never").tokenize([Record(0, "r", text)], offsets=True)
    assert "".join(text[first:last] for first, last in record.offsets.tolist()) == text
