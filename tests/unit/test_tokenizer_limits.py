"""One text takes neither the memory nor the time of a worker, and a cut text has the ids of the whole one."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from extraction.batching.tokenizer import RecordTokenizer, limits
from extraction.core.errors import DamagedData
from extraction.format.records import Record
from tests.helpers import published_tokenizers
from tests.helpers.workers import MODEL, text_of

pytestmark = pytest.mark.slow

NAMES = ("gpt2", "gpt_neox", "llama3", "qwen2", "llama2", "mistral", "gemma", "unigram")
LENGTH = 60_000
TEXTS = {
    "words": text_of(3, LENGTH // 5),
    "one word": "abcd" * (LENGTH // 4),
    "one letter": "a" * LENGTH,
    "spaces": "x" + " " * LENGTH + "y z" * 1000,
    "lines": "\n\n \n" * (LENGTH // 4),
    "marks": "naïve ☃ e\u0301 🙂 漢字" * (LENGTH // 16),
    "digits": "0123456789" * (LENGTH // 10),
}


def ids_of(tokenizer: RecordTokenizer, text: str, most: int | None) -> np.ndarray:
    (record,) = tokenizer.tokenize([Record(0, "a", text)], most=most)
    return record.tokens


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_text_begins_with_the_ids_of_the_whole_one(tmp_path, name):
    folder = published_tokenizers.save(tmp_path, getattr(published_tokenizers, name)())
    tokenizer = RecordTokenizer(folder)
    shorter = 0
    for text in TEXTS.values():
        whole = ids_of(tokenizer, text, None)
        for most in (1, 40, 500):
            cut = ids_of(tokenizer, text, most)
            assert cut[:most].tolist() == whole[:most].tolist()
            shorter += len(cut) < len(whole)
    assert shorter >= len(TEXTS)


def test_a_run_of_one_character_is_not_cut_where_its_length_decides_how_it_begins():
    """A Unigram model divides it by the length of a piece, and the rest may come first."""
    pieces = [("<unk>", -10.0), ("a", -3.0), ("aa", -4.0), ("a" * 16, -6.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    for length in (20_000, 20_001, 20_005):
        whole = "a" * length
        assert encode(limits.shortened(whole, 64, encode))[:64] == encode(whole)[:64]


def test_a_text_of_60_mb_that_is_cut_needs_little_memory():
    """The text alone has 60 MB; tokenized as a whole it took over 5 GiB."""
    code = f"""
import resource
from pathlib import Path
from extraction.batching.tokenizer import RecordTokenizer
from extraction.format.records import Record
tokenizer = RecordTokenizer(Path({str(MODEL)!r}))
text = "the activations of a language model " * 1_700_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = tokenizer.tokenize([Record(0, "long", text)], most=512)
assert len(found.tokens) >= 512
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and int(result.stdout) < 200, result


def test_a_text_beyond_the_bound_is_named_and_those_before_it_are_not_lost(monkeypatch):
    monkeypatch.setattr(limits, "MOST_CHARACTERS", 10_000)
    tokenizer = RecordTokenizer(MODEL)
    records = [Record(0, "short", "a b"), Record(1, "long", "a " * 5001), Record(2, "next", "c")]
    found = tokenizer.tokenize(records)
    assert next(found).id == "short"
    with pytest.raises(DamagedData, match="record long: its text has 10,002 characters"):
        next(found)
    assert [record.id for record in tokenizer.tokenize(records, most=4)] == ["short", "long", "next"]


def test_texts_that_are_tokenized_at_once_are_bounded_together(monkeypatch):
    monkeypatch.setattr(limits, "MOST_CHARACTERS", 1000)
    records = [Record(i, str(i), "a" * size) for i, size in enumerate([400, 400, 400, 1000, 0, 1])]
    assert [[record.index for record in group] for group in limits.groups(records, 256)] == [[0, 1], [2], [3, 4], [5]]


@pytest.fixture
def bomb(tmp_path):
    """The tokenizer of the tiny model, split by an expression that takes exponential time on some texts."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return RecordTokenizer(tmp_path)


def test_a_text_on_which_an_expression_explodes_is_named(bomb):
    records = [Record(0, "good", "one"), Record(1, "bad", "x" * 60)]
    with pytest.raises(DamagedData, match="record bad: the tokenizer cannot read it"):
        list(bomb.tokenize(records))


def test_a_pipeline_that_does_not_end_is_given_up():
    with pytest.raises(DamagedData, match="records a to b: the tokenizer did not end within 0 s"):
        limits.within_time(threading.Event().wait, [Record(0, "a", "x"), Record(1, "b", "")], 0.05)
