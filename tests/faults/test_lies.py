"""The table of false runs in docs/verify.md: a proven run is changed consistently, and a level of `verify` must say what.

Everything is changed from outside: the objects of a real run are rewritten, with all that depends on them.
"""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from extraction.audit.compare_recomputed import Draw, missed
from extraction.audit.verify import Checks, audit_run
from extraction.core.errors import ConfigurationMismatch
from extraction.storage import crc32c_base64
from extraction.worker.recompute import Recomputer
from tests.helpers.liar import Liar
from tests.helpers.shared import built_once
from tests.helpers.stream_runs import edited
from tests.helpers.workers import ROOT, extract_here, make_streams, python, text_of, write_corpus

pytestmark = pytest.mark.slow

LEVELS = ("verify", "--deep", "--tokens", "--recompute", "--expect")
ALL = Draw(None, 0)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A finished run of two hook points over one stream whose records have a meta."""

    def build(folder: Path) -> None:
        lines = [{"text": text_of(i, 5 + 3 * i), "id": f"r{i}", "label": i % 3} for i in range(10)]
        (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
        flags = ("--source", folder / "corpus.jsonl", "--num-streams", 1, "--output", folder / "streams")
        made = python("create_dataset_streams.py", "text", *flags, "--meta-columns", "label")
        assert made.returncode == 0, made.stderr
        extract_here(folder / "streams", folder / "run", "--layers", "0,2")

    return built_once(tmp_path_factory, "honest", build)


@pytest.fixture
def liar(honest, tmp_path):
    shutil.copytree(honest / "run", tmp_path / "run")
    return Liar(tmp_path / "run")


@cache
def loaded(output: str) -> Recomputer:
    from extraction.format.run_config import read_existing_run
    from extraction.storage import open_storage

    return Recomputer.of(read_existing_run(open_storage(output)), output)


@pytest.fixture
def computer(honest):
    """The model of the honest run, loaded once."""
    made = loaded(str(honest / "run"))
    return lambda run: made


def hooks_of(change):
    """Change the values of each hook point."""

    def act(content: dict) -> None:
        for name in [name for name in content if name.startswith("blocks.") and "." in name]:
            content[name] = change(content[name])

    return act


def exchange_layers(content: dict) -> None:
    one, other = [name for name in content if name.startswith("blocks.")]
    content[one], content[other] = content[other], content[one]


def drop_last_token(content: dict, record: int = 0, count: int = 1) -> None:
    """Of a record that ends in the batch; the last `count` tokens."""
    end = int(content["record_lengths"][: record + 1].sum())
    for name in ("tokens", "positions", *(name for name in content if name.startswith("blocks."))):
        content[name] = np.delete(content[name], range(end - count, end), axis=0)
    content["record_lengths"][record] -= count


def drop_a_record(content: dict) -> None:
    drop_last_token(content, 1, int(content["record_lengths"][1]))


def move_a_token(content: dict) -> None:
    """The last token of record 1 becomes the first of record 2."""
    lengths = content["record_lengths"]
    lengths[1] -= 1
    lengths[2] += 1
    content["positions"][int(lengths[:2].sum()) :][: lengths[2]] = np.arange(lengths[2])


def replace_tokens(content: dict) -> None:
    content["tokens"][:] = 999_999


def shuffle_tokens(content: dict) -> None:
    content["tokens"][:] = content["tokens"][::-1].copy()


def other_meta(content: dict) -> None:
    content["meta"][0] = {"label": 7}


ODD = np.random.default_rng(0)
LIES = {
    "all activations zero": (hooks_of(lambda x: x * 0), "--recompute"),
    "noise": (hooks_of(lambda x: ODD.normal(size=x.shape).astype(x.dtype)), "--recompute"),
    "rows exchanged": (hooks_of(lambda x: x[::-1].copy()), "--recompute"),
    "two layers exchanged": (exchange_layers, "--recompute"),
    "values times two": (hooks_of(lambda x: (x.astype(np.float32) * 2).astype(x.dtype)), "--recompute"),
    "tokens replaced by 999,999": (replace_tokens, "--deep"),
    "tokens shuffled": (shuffle_tokens, "--tokens"),
    "one token dropped": (drop_last_token, "--tokens"),
    "all tokens of a record dropped": (drop_a_record, "--tokens"),
    "a token moved to the next record": (move_a_token, "--tokens"),
    "another meta": (other_meta, "--tokens"),
}


def test_a_batch_file_without_a_readable_header_is_found_by_its_tokens(honest, liar):
    name, commit = (liar.commits()[1], json.loads(liar.storage.read(liar.commits()[1])))
    path = f"worker-00000/{commit['data']['name']}"
    unreadable = bytes(len(liar.storage.read(path)))
    liar.put(path, unreadable)
    liar.put(name, edited(liar.storage.read(name), data__crc32c=crc32c_base64(unreadable)))
    liar.add_up()
    assert audit_run(str(liar.folder)).problems == []
    (problem,) = audit_run(str(liar.folder), checks=Checks(tokens=True)).problems
    assert path in problem


def problems_at(level: str, liar: Liar, computer, kept: str) -> list[str]:
    """What `verify` says with this flag alone."""
    checks = {
        "--tokens": Checks(tokens=True),
        "--recompute": Checks(recompute=ALL, computer=computer),
        "--expect": Checks(expected=kept),
    }
    return audit_run(str(liar.folder), deep=level == "--deep", checks=checks.get(level, Checks())).problems


def batch_with_records(liar: Liar) -> int:
    """A batch that begins and ends between records, of three records at least."""
    for number, name in enumerate(liar.commits()):
        commit = json.loads(liar.storage.read(name))
        whole = commit["cursor_before"]["token_offset"] == commit["cursor_after"]["token_offset"] == 0
        if whole and commit["num_records"] >= 3:
            return number
    raise AssertionError("the corpus has no such batch")


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_apart_from_the_truth(honest, liar, computer, lie):
    """Levels before the one that finds it are fooled; a digest that was kept finds it as well."""
    kept = audit_run(str(honest / "run")).digest
    change, found_by = LIES[lie]
    liar.change_batch(change, batch_with_records(liar))
    for level in LEVELS[: LEVELS.index(found_by)]:
        assert problems_at(level, liar, computer, kept) == [], level
    assert problems_at(found_by, liar, computer, kept)
    assert problems_at("--expect", liar, computer, kept)


def test_the_honest_run_is_proven_at_every_level(honest, computer):
    kept = audit_run(str(honest / "run"))
    checks = Checks(tokens=True, recompute=ALL, computer=computer, expected=kept.digest)
    audit = audit_run(str(honest / "run"), deep=True, checks=checks)
    assert audit.verdict == "proven" and audit.recomputed.equal == audit.recomputed.total > 4
    assert "Every batch was computed again" in audit.to_text() and "tokens compared with the streams" in audit.to_text()


@pytest.mark.parametrize("field, value, said", [
    ("weights_digest", "sha256:0", "weights_digest"), ("tokenizer_digest", "sha256:0", "tokenizer"),
])  # fmt: skip
def test_a_run_under_another_label_is_refused(liar, field, value, said):
    liar.relabel(**{field: value})
    assert audit_run(str(liar.folder), deep=True).problems == []
    with pytest.raises(ConfigurationMismatch, match=said):
        loaded(str(liar.folder))


def test_a_run_under_another_dtype_has_other_bytes(liar):
    liar.relabel(compute_dtype="bfloat16")
    made = loaded(str(liar.folder))
    checks = Checks(recompute=Draw(2, 7), computer=lambda run: made)
    assert audit_run(str(liar.folder)).problems == []
    assert "computed again" in audit_run(str(liar.folder), checks=checks).problems[0]


def test_fewer_streams_are_seen_by_who_kept_the_digest(honest, tmp_path):
    """A run of one stream of two, with a manifest of that one: nothing beside it says that there were two."""
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 9) for i in range(8)])
    both = audit_run(str(honest / "run"))
    one = make_streams(corpus, tmp_path / "one", 1)
    extract_here(one, tmp_path / "run")
    audit = audit_run(str(tmp_path / "run"), deep=True, checks=Checks(tokens=True, expected=both.digest))
    assert [problem for problem in audit.problems if "was expected" not in problem] == []
    assert len(audit.problems) == 1


def test_a_draw_says_its_seed_and_its_chance(honest, computer):
    checks = Checks(recompute=Draw(2, 5), computer=computer)
    audits = [audit_run(str(honest / "run"), checks=checks) for _ in range(2)]
    texts = [audit.recomputed.to_text() for audit in audits]
    assert texts[0] == texts[1] and "(seed 5)" in texts[0]
    total = audits[0].recomputed.total
    assert f"missed all of them with a chance of {(total - 2) / total:.2g}" in texts[0]
    assert missed(1000, 10, 300) == pytest.approx(0.0277, abs=1e-3)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_repair_puts_back_what_was_committed(honest, liar, damage):
    """From outside: only what is not there is written, with the committed bytes."""
    name = "worker-00000/batches/00000002.safetensors"
    path, right = liar.folder / name, (honest / "run" / name).read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(right[:-9] + b"x" * 9)
    result = python("extract_activations.py", "repair", liar.folder)
    if damage == "damaged":
        assert result.returncode == 65 and path.read_bytes() != right
        command = re.search(r"`(mv [^`]*)`", result.stdout)[1]
        Path(command.split("'")[1]).rename(command.split("'")[3])
        result = python("extract_activations.py", "repair", liar.folder)
    assert (result.returncode, path.read_bytes() == right) == (0, True), result
    assert f"{name}: put back" in result.stdout
    assert audit_run(str(liar.folder), deep=True).verdict == "proven"


def test_repair_puts_back_no_other_bytes(liar):
    """The commit says another checksum, as that of a run on other chips would."""
    name = liar.commits()[2]
    commit = json.loads(liar.storage.read(name))
    liar.put(name, json.dumps(commit | {"data": commit["data"] | {"crc32c": "AAAAAA=="}}).encode())
    path = liar.folder / "worker-00000" / commit["data"]["name"]
    path.unlink()
    result = python("extract_activations.py", "repair", liar.folder)
    assert result.returncode == 65 and not path.exists()
    assert "other bytes than were committed, and is not put back" in result.stdout
    assert "to a new --output" in result.stdout


def test_repair_says_that_a_commit_cannot_be_computed(liar):
    (liar.folder / liar.commits()[1]).unlink()
    result = python("extract_activations.py", "repair", liar.folder)
    assert result.returncode == 65 and "a commit cannot be computed again" in result.stdout


def test_the_table_of_lies_is_that_of_the_page():
    page = (ROOT / "docs/verify.md").read_text().partition("| lie |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    told = {row[0]: row[1].strip("`") for row in rows}
    assert {lie: found_by for lie, (_, found_by) in LIES.items()}.items() <= told.items()
