"""Bugs that a worker must not have, as edits of a copy of the source: the simulation has to find each.

In: the name of a bug. Out: `plant` copies the source into a folder and puts the bug in. Guarantee: an edit that does not
fit the source raises, so that a bug is never looked for in code that lacks it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("checkpoint.py", "launch_worker.sh", "extraction", "tests/simulation", "benchmarks/simulation.py")


@dataclass(frozen=True)
class Edit:
    """In `file`, `old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str


_NO_READ_BACK = Edit(
    "extraction/storage/gcs.py",
    "                info = self._find(name)\n",
    '                if getattr(error, "code", None) == 412:\n'
    "                    raise ObjectExists(name) from error\n"
    "                info = self._find(name)\n",
)
PLANTED = {
    "commit before data": (
        Edit(
            "checkpoint.py",
            "stored = None if data is None else self._store(data)",
            "from extraction.storage import crc32c_base64\n"
            '        stored = data and DataObject(f"batches/{self.next_batch:08d}.safetensors", len(data), '
            "crc32c_base64(data), None)",
        ),
        Edit(
            "checkpoint.py",
            '        kill_point("after-commit", commit.batch)\n',
            '        kill_point("after-commit", commit.batch)\n        _ = data and self._store(data)\n',
        ),
    ),
    "not create-only": (Edit("extraction/storage/gcs.py", "            if_generation_match=0,\n", ""),),
    "cursor moved early": (
        Edit(
            "checkpoint.py",
            "        last = self._publish(commit)\n",
            "        from extraction.core.errors import TryAgain\n"
            "        data = commit.to_bytes()\n"
            "        self._advance(ReadCommit(commit, data))\n"
            "        try:\n"
            "            last = self._publish(commit)\n"
            "        except TryAgain:\n"
            "            return commit\n",
        ),
    ),
    "retry without read-back": (_NO_READ_BACK,),
    "retry without read-back, of the commit neither": (
        _NO_READ_BACK,
        Edit("checkpoint.py", "if winner.attempt != self.attempt.id:", "if True:"),
    ),
    "adoption without comparison": (
        Edit(
            "extraction/storage/gcs.py",
            "        if not info.holds(len(view), checksum):\n            raise ObjectExists",
            "        if not view:\n            raise ObjectExists",
        ),
    ),
    "any stream: an ending is taken for the end": (
        Edit("extraction/worker/claims.py", "if state.finished:", "if state.finished or state.ending is not None:"),
    ),
    "any stream: a rival is trusted to finish": (
        Edit(
            "extraction/worker/claims.py",
            "        except Fenced as fenced:\n",
            "        except Fenced as fenced:\n            chooser.close(stream)\n",
        ),
    ),
    "the uploader goes on after an error": (
        Edit(
            "extraction/worker/uploader.py",
            "                self._on_commit(self._commit(*item))\n",
            "                try:\n"
            "                    self._on_commit(self._commit(*item))\n"
            "                except Exception:\n"
            "                    pass\n",
        ),
    ),
    "one name for the batch files of all attempts": (
        Edit("checkpoint.py", 'name = f"{name}-{self.attempt.id}"', 'name = f"{name}-0"'),
    ),
    "exit 0 after a shutdown signal": (
        Edit("extraction/worker/worker.py", "if not chain.end_of_stream:", "if False:"),
    ),
    "fenced by a killed predecessor": (
        Edit("extraction/worker/attempts.py", "if fenced.winner not in earlier:", "if True:"),
    ),
    "content is not compared with its checksum": (
        Edit("extraction/storage/gcs.py", 'if part.crc32c in ("", crc32c_base64(part.data)):', "if True:"),
    ),
    "a batch is skipped on resume": (
        Edit("checkpoint.py", "self.next_batch, self.end_of_stream = commit.cursor_after, commit.batch + 1,",
             "self.next_batch, self.end_of_stream = commit.cursor_after, commit.batch + 1 + (not self._last_attempt),"),
    ),
}  # fmt: skip


def plant(name: str, folder: Path) -> None:
    """Copy the source into a folder, and put the bug of this name in."""
    for what in COPIED:
        source, target = ROOT / what, folder / what
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for edit in PLANTED[name]:
        path = folder / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} has {text.count(edit.old)} times: {edit.old}")
        path.write_text(text.replace(edit.old, edit.new))
