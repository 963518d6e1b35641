"""ARC-AGI prompts that say where the test input and the answer are, and that end with the answer if so asked."""

import pytest

from extraction.datasets.arc_agi.grids import parse_encoder
from extraction.datasets.arc_agi.prompts import Prompter, PromptOptions
from extraction.streams.extensions import load_manifest
from tests.helpers.arc_grids import augmentation_of, decode, original_of, undo
from tests.helpers.workers import MODEL
from tests.unit.test_arc_agi import TASK, meta_of, pairs_of, records_of, write_json
from tests.unit.test_arc_prompts import PLENTY, shown


@pytest.mark.parametrize("predictions", [1, 8])
@pytest.mark.parametrize("encoding", ["shape(rows(minimal))", "minimal", "fenced(separated('|'))", "repeated(3)"])
def test_spans_are_the_test_input_and_the_answer_as_they_are_shown(tmp_path, encoding, predictions):
    """Though the same grid is an example's, and a part of others."""
    one = {"train": [{"input": [[1]], "output": [[3, 1]]}, {"input": [[1, 1]], "output": [[1]]}]}
    tasks = {"a": TASK, "b": one | {"test": [{"input": [[1]], "output": [[3, 1]]}]}}
    options = {"grid_encoding": encoding, "predictions_per_task": predictions, "with_answer": True}
    encoder, source = parse_encoder(encoding), write_json(tmp_path / "all.json", tasks)
    without = records_of(tmp_path / "without", source, **options | {"with_answer": False})
    assert load_manifest(str(tmp_path / "without/out")).options["spans"] == ["test-input"]
    for record, bare in zip(records_of(tmp_path, source, **options), without, strict=True):
        meta = meta_of(record)
        how, test = augmentation_of(meta), original_of(meta)["test"][0]
        assert shown(record, "test-input") == encoder(how.apply(test["input"])) == shown(bare, "test-input")
        assert record.text.index("Output:", meta["spans"]["test-input"][1]) == len(bare.text) - len("Output:\n")
        if "output" in test:
            assert record.text == bare.text + shown(record, "answer")
            assert undo(how, decode(encoding, shown(record, "answer"))) == test["output"]
        else:  # an answer that nobody knows
            assert (record.text, meta["spans"].keys()) == (bare.text, {"test-input"})
    options = load_manifest(str(tmp_path / "out")).options
    assert (options["spans"], options["with_answer"]) == (["answer", "test-input"], True)


def test_the_answer_counts_when_examples_are_dropped(tmp_path):
    task = PLENTY | {"test": [{"input": [[3] * 10], "output": [[4] * 10]}]}
    source, full = write_json(tmp_path / "t.json", task), Prompter(PromptOptions(model=str(MODEL)))
    fits = {"model": str(MODEL), "seq_len": full.num_tokens(full.text(pairs_of(task), [[3] * 10]))}
    (without,) = records_of(tmp_path / "without", source, **fits)
    (record,) = records_of(tmp_path / "with", source, **fits, with_answer=True)
    assert (meta_of(without)["examples_dropped"], meta_of(record)["examples_dropped"]) == (0, 1)
    assert shown(record, "answer") == "1x10\n1 4444444444"
