"""The page on adding, followed to the letter: its files and its lines go into a copy of the project, whose commands run."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.workers import ROOT

PAGE = (ROOT / "docs/adding.md").read_text()


def written(kind):
    """What the section of the page adds: {path: text} of new files, and the line for each registry, by its path."""
    section = PAGE.partition(f"## {kind}\n")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL))
    files = {path: text for path, text in blocks.items() if not (ROOT / path).exists()}
    return files, {path: text for path, text in blocks.items() if path not in files}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of the project with all that the page adds."""
    project = tmp_path_factory.mktemp("project")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, project)
    shutil.copytree(ROOT / "extraction", project / "extraction", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in KINDS:
        files, lines = written(kind)
        for path, text in files.items():
            (project / path).write_text(text)
        for path, text in lines.items():
            before, opened, after = (project / path).read_text().partition(f"{KINDS[kind]} = {{\n")
            (project / path).write_text(before + opened + text + after)
    return project


KINDS = {"A dataset": "DATASETS"}


@pytest.fixture
def command(grown, tmp_path):
    """A function that runs a command of the copy, in a folder of its own, and returns what it printed."""

    def run(script, *arguments):
        words = [sys.executable, grown / script, *map(str, arguments)]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_file_and_one_line(kind):
    files, lines = written(kind)
    assert (len(files), [text.count("\n") for text in lines.values()]) == (1, [1])


def test_a_dataset(command, tmp_path):
    (tmp_path / "file.txt").write_text("zero\none\ntwo\nthree\n")
    assert "  lines    Streams of the lines of a file.\n" in command("create_dataset_streams.py", "--help")
    assert "EXTRACT_SKIP" in command("create_dataset_streams.py", "lines", "--help")
    made = command("create_dataset_streams.py", "lines", "--source", "file.txt", "--num-streams", 2, "--output", "streams",
                   "--skip", 1)
    assert made == "streams/manifest.json: 2 streams, 3 records, 2 Parquet files\n"
    assert "disjoint, complete, unchanged, every id once" in command("create_dataset_streams.py", "check", "streams")
