"""Splits and configurations of a source: named where there are several, chosen by --split and --config."""

import pytest

from extraction.streams.extensions import load_manifest
from extraction.streams.stream import open_stream
from tests.helpers.fake_hub import COMMIT, FakeHub
from tests.unit.test_check_streams import check
from tests.unit.test_create_dataset_streams import assert_refused, create
from tests.unit.test_sources import lines, parquet, texts_of, write

SPLITS = {
    "folders": ("train/0.jsonl", "test/0.jsonl"),
    "shards": ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
    "words": ("ARC-Easy-Train.jsonl", "ARC-Easy-Test.jsonl"),
    "deep": ("x/training/y/0.jsonl", "x/testing/y/0.jsonl"),
}


@pytest.mark.parametrize("names", SPLITS.values(), ids=SPLITS)
def test_several_splits_are_named_and_one_is_chosen(tmp_path, names):
    for name, text in zip(names, ("learn", "ask"), strict=True):
        write(tmp_path / "in" / name, lines(text, key=7))
    refused = create("text", tmp_path / "in", 1, tmp_path / "out")
    assert_refused(refused, 2, "has the splits test (1 file), train (1 file)", "--split all")
    assert_refused(
        create("text", tmp_path / "in", 1, tmp_path / "out", "--split", "dev"), 2, "--split dev", "train (1 file)"
    )
    one = create("text", tmp_path / "in", 1, tmp_path / "one", "--split", "train")
    assert texts_of(one, tmp_path / "one") == ["learn"] and f"not reading 1 other file there: {names[1]}" in one.stderr
    assert load_manifest(str(tmp_path / "one")).options["split"] == "train"
    everything = create("text", tmp_path / "in", 1, tmp_path / "all", "--split", "all", "--id-column", "key")
    assert sorted(texts_of(everything, tmp_path / "all")) == ["ask", "learn"]
    records = open_stream(load_manifest(str(tmp_path / "all")), str(tmp_path / "all"), 0).read_records()
    assert {(record.id, record.text, record.meta) for record in records} == {
        ("train/7", "learn", '{"split": "train"}'), ("test/7", "ask", '{"split": "test"}')
    }  # fmt: skip


def test_names_that_the_hub_gives_its_splits_are_splits(tmp_path):
    for split in ("train_sft", "train_gen"):
        parquet(tmp_path / f"in/data/{split}-00000-of-00001.parquet", [split])
    assert_refused(create("text", tmp_path / "in", 1, tmp_path / "x"), 2, "train_gen (1 file), train_sft (1 file)")
    assert texts_of(create("text", tmp_path / "in", 1, tmp_path / "x", "--split", "train_gen"), tmp_path / "x") == [
        "train_gen"
    ]


def test_fineweb_takes_one_split_and_check_knows_which(tmp_path):
    parquet(tmp_path / "in/train/0.parquet", ["learn"])
    parquet(tmp_path / "in/test/0.parquet", ["ask"])
    assert_refused(create("fineweb", tmp_path / "in", 1, tmp_path / "out"), 2, "has the splits test (1 file), train")
    one = create("fineweb", tmp_path / "in", 1, tmp_path / "out", "--split", "test")
    assert texts_of(one, tmp_path / "out") == ["ask"]
    assert check(tmp_path / "out").exit_code == 0
    parquet(tmp_path / "in/test/1.parquet", ["more"])
    assert check(tmp_path / "out").exit_code == 65


def test_data_beside_its_sample_is_refused(tmp_path):
    parquet(tmp_path / "in/data/CC-MAIN-2024-10/0.parquet", ["a", "b"])
    parquet(tmp_path / "in/sample/10BT/0.parquet", ["a"])
    refused = create("fineweb", tmp_path / "in", 1, tmp_path / "out")
    assert_refused(refused, 2, f"{tmp_path}/in has data and sample", f"such as {tmp_path}/in/data")
    assert texts_of(create("fineweb", tmp_path / "in/data", 1, tmp_path / "out"), tmp_path / "out") == ["a", "b"]
    assert texts_of(create("fineweb", tmp_path / "in", 1, tmp_path / "x", "--config", "sample"), tmp_path / "x") == [
        "a"
    ]


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: small
  data_files:
  - split: train
    path:
    - sample/*.parquet
  - split: test
    path: held/out.parquet
---
# Words
"""


def test_configurations_are_those_of_the_readme(tmp_path):
    parquet(tmp_path / "in/data/x/0.parquet", ["whole"])
    parquet(tmp_path / "in/sample/0.parquet", ["part"])
    parquet(tmp_path / "in/held/out.parquet", ["held"])
    write(tmp_path / "in/README.md", CARD)
    with FakeHub(tmp_path, datasets={"lab/web": tmp_path / "in"}) as hub:
        for number, source in enumerate([tmp_path / "in", "hf://datasets/lab/web", "lab/web"]):

            def made(*flags, out=tmp_path / f"out{number}", source=source):
                return (
                    create("text", source, 1, out / "-".join(flags), *flags, HF_ENDPOINT=hub.endpoint),
                    out / "-".join(flags),
                )

            assert_refused(made()[0], 2, "has the configurations default, small: choose one with --config")
            assert_refused(made("--config", "x")[0], 2, "no such configuration; it has default, small")
            assert texts_of(*made("--config", "default")) == ["whole"]
            assert_refused(made("--config", "small")[0], 2, "has the splits test (1 file), train (1 file)")
            assert texts_of(*made("--config", "small", "--split", "test")) == ["held"]
    assert load_manifest(str(tmp_path / "out2/--config-default")).revision == COMMIT
