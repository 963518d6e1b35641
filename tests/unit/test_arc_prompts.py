"""Prompts of ARC-AGI: templates, augmentations, their length in tokens, chat templates."""

import json
import re
import shutil
from pathlib import Path

import pytest

from extraction.core.errors import InvalidRequest
from extraction.datasets.arc_agi.dataset import ArcOptions, create
from extraction.datasets.arc_agi.grids import check_grid, parse_encoder
from extraction.datasets.arc_agi.prompts import Prompter, PromptOptions
from extraction.storage import open_storage
from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.arc_grids import augmentation_of, decode, original_of, undo
from tests.helpers.workers import MODEL
from tests.unit.test_arc_agi import PROMPT, TASK, meta_of, pairs_of, records_of, write_json


def test_the_text_of_a_prompt():
    assert Prompter(PromptOptions()).text(pairs_of(TASK), TASK["test"][0]["input"]) == PROMPT


def test_templates_and_encodings_are_chosen_by_name(tmp_path):
    source = write_json(tmp_path / "t.json", TASK)
    (record, _) = records_of(tmp_path, source, grid_encoding="minimal", template="instructed")
    assert record.text.startswith("Each example turns") and record.text.endswith(
        "Input:\n123\n456\nOutput:\n0\n\nInput:\n7\nOutput:\n8\n9\n\nInput:\n31\nOutput:\n"
    )
    options = dict(load_manifest(str(tmp_path / "out")).options)
    assert options.pop("source_files")["count"] == 1
    assert options == {"grid_encoding": "minimal", "template": "instructed", "spans": ["test-input"]}


def test_the_largest_grid_is_taken():
    largest = [[cell % 10 for cell in range(30)]] * 30
    check_grid(largest, "here")
    assert parse_encoder("shape(rows(minimal))")(largest).endswith("30 012345678901234567890123456789")


def test_the_answer_is_in_the_meta_and_not_in_the_prompt(tmp_path):
    hidden = TASK | {"test": [{"input": [[3, 1]], "output": [[2, 2]]}]}
    (record,) = records_of(tmp_path, write_json(tmp_path / "t.json", hidden))
    assert record.text == PROMPT and original_of(meta_of(record)) == hidden


def shown(record, name):
    """The characters of a span."""
    return record.text[slice(*meta_of(record)["spans"][name])]


# ---------------------------------------------------------------------------------------------- augmentation


def test_eight_predictions_for_each_test_input_can_be_traced_back(tmp_path):
    source = write_json(tmp_path / "all.json", {"a": TASK, "b": TASK})
    records = records_of(tmp_path, source, 3, predictions_per_task=8)
    assert [record.id for record in records] == [f"{t}/{i}/{n}" for t in "ab" for i in range(2) for n in range(8)]
    for record in records:
        meta = meta_of(record)
        original, how = original_of(meta), augmentation_of(meta)
        assert original == {"train": TASK["train"], "test": [TASK["test"][meta["test_index"]]]}
        blocks = filter(None, map(str.strip, re.split("Input:|Output:", record.text)))
        grids = [undo(how, decode("shape(rows(minimal))", block)) for block in blocks]
        expected = [original["train"][i][key] for i in how.order for key in ("input", "output")]
        assert grids == [*expected, original["test"][0]["input"]]
    assert len({record.text for record in records[:8]}) == 8
    assert {meta_of(record)["augmentation"]["symmetry"] for record in records[:8]} > {"identity", "mirror", "rotate_90"}
    assert all(meta_of(record)["augmentation"]["colors"][0] == 0 for record in records)


def test_the_seed_and_the_background_are_options(tmp_path):
    source = write_json(tmp_path / "t.json", TASK)
    plain = [record.text for record in records_of(tmp_path / "x", source, predictions_per_task=8)]
    assert [record.text for record in records_of(tmp_path / "again", source, predictions_per_task=8)] == plain
    assert [record.text for record in records_of(tmp_path / "y", source, predictions_per_task=8, seed=1)] != plain
    permuted = records_of(tmp_path / "z", source, predictions_per_task=8, permute_background=True)
    assert any(meta_of(record)["augmentation"]["colors"][0] != 0 for record in permuted)
    assert load_manifest(str(tmp_path / "z/out")).options["permute_background"] is True


# ---------------------------------------------------------------------------------------------- tokens

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLENTY = {"train": [{"input": [[n] * 10], "output": [[n + 1] * 10]} for n in range(4)], "test": [{"input": [[3] * 10]}]}
# Of the tiny model's tokenizer: each digit and each line break is a token, and so is the beginning of the text.


def test_a_prompt_that_is_too_long_loses_examples_from_its_front_and_never_its_test_input(tmp_path):
    source = write_json(tmp_path / "t.json", PLENTY)
    full = Prompter(PromptOptions(model=str(MODEL)))
    lengths = [full.num_tokens(full.text(pairs_of(PLENTY)[dropped:], [[3] * 10])) for dropped in range(5)]
    for dropped, length in enumerate(lengths):
        (record,) = records_of(tmp_path / f"fits{dropped}", source, model=str(MODEL), seq_len=length)
        assert meta_of(record)["examples_dropped"] == dropped
        assert record.text == full.text(pairs_of(PLENTY)[dropped:], [[3] * 10])
        assert len(original_of(meta_of(record))["train"]) == 4


def test_a_prompt_that_cannot_fit_is_told_of_counted_and_not_cut(tmp_path, capsys):
    small = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}
    big = PLENTY | {"test": [{"input": [[3] * 30]}]}
    source, location = write_json(tmp_path / "all.json", {"big": big, "small": small}), str(tmp_path / "out")
    options = ArcOptions(model=str(MODEL), seq_len=40, predictions_per_task=2)
    manifest = create(open_storage(location), source, 1, options).manifest
    assert [record.id for record in open_stream(manifest, location, 0).read_records()] == ["small/0/0", "small/0/1"]
    said = capsys.readouterr().err
    for number in range(2):
        assert f"warning: big/0/{number}: its test input alone takes more than 40 tokens: left out\n" in said
    assert manifest.options["left_out"] == 2


@pytest.fixture
def chatty(tmp_path):
    """The tiny model's tokenizer with a chat template."""
    folder = tmp_path / "chatty"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": "{{ bos_token }}" + CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_the_chat_template_is_used_where_there_is_one(tmp_path, chatty):
    pairs, test = pairs_of(TASK), TASK["test"][0]["input"]
    assert Prompter(PromptOptions(model=chatty)).text(pairs, test) == f"<|endoftext|><user>{PROMPT}<assistant>"
    once = Prompter(PromptOptions(model=chatty, bos="always"))  # a worker adds no second one
    assert once.text(pairs, test) == f"<|endoftext|><user>{PROMPT}<assistant>"
    assert Prompter(PromptOptions(model=chatty, chat="never")).text(pairs, test) == PROMPT
    assert Prompter(PromptOptions(model=str(MODEL))).text(pairs, test) == PROMPT
    turns = Prompter(PromptOptions(model=chatty, template="turns", grid_encoding="minimal")).text(pairs, test)
    assert turns.endswith("123\n456<assistant>0<user>7<assistant>8\n9<user>31<assistant>")
    assert turns.startswith("<|endoftext|><user>Each example")
    (record, _) = records_of(tmp_path, write_json(tmp_path / "t.json", TASK), model=chatty)
    assert shown(record, "test-input") == "1x2\n1 31"
    assert record.text == f"<|endoftext|><user>{PROMPT}<assistant>"
    assert load_manifest(str(tmp_path / "out")).options["chat"] is True


def test_a_span_is_left_out_where_a_chat_template_writes_the_grid_otherwise(tmp_path, chatty):
    turns = {"model": chatty, "template": "turns"}
    source = write_json(tmp_path / "t.json", TASK)
    first, _ = records_of(tmp_path / "as-it-is", source, **turns, with_answer=True)
    assert (shown(first, "test-input"), shown(first, "answer")) == ("1x2\n1 31", "1x2\n1 13")
    assert first.text.endswith("<user>1x2\n1 31<assistant>1x2\n1 13")
    path = Path(chatty) / "tokenizer_config.json"
    path.write_text(path.read_text().replace("m.content", "m.content | upper"))
    first, _ = records_of(tmp_path / "upper", source, **turns, with_answer=True)
    assert meta_of(first)["spans"].keys() == {"answer"}
    assert load_manifest(str(tmp_path / "upper/out")).options["spans"] == ["answer"]


@pytest.mark.parametrize("options, said", [
    (PromptOptions(seq_len=9), "--seq-len needs --model"), (PromptOptions(template="turns"),
    "--template turns needs --model"),
    (PromptOptions(chat="always", model=str(MODEL)), "--chat always needs --model"), (PromptOptions(model="/nowhere"),
    "--model"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(InvalidRequest, match=said):
        Prompter(options)
