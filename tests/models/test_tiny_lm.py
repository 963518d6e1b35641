"""The embedded model: small, and far better than chance."""

import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples/tiny-lm"
GRIDS = "".join(f"Input:\n2x3\n1 {i}00\n2 0{i}0\nOutput:\n2x3\n1 00{i}\n2 0{i}0\n\n" for i in range(1, 6))
DOCSTRING = "Return the value of the given key.\n\nParameters\n----------\nname : str\n    The name of the file.\n"


def test_it_is_at_most_4_mb():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_the_tokenizer_gives_back_any_text():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for text in (GRIDS, DOCSTRING, "ünïcödé \t\n 🙂 x=1"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_predicts_far_better_than_chance():
    torch = pytest.importorskip("torch")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for text, most in ((GRIDS, 2.5), (DOCSTRING, 4.5)):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert loss < most < math.log(2048) - 3, loss
