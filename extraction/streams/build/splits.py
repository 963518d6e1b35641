"""Splits of a source, from the names of its files and folders.

In: names relative to the source. Out: the split of each: a word such as `train` or `Dev` in a folder's name, or else in
the file's name, or the part before `-00000-of-00007`. Guarantee: files of several splits are read together only with
`--split all`. Cost: none.
"""

import re
from collections import Counter
from collections.abc import Mapping

from ...core.count_of import count_of
from ...core.errors import InvalidRequest
from .file_kinds import stem_of

ALL = "all"
WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "evaluation": "evaluation", "eval": "evaluation",
}  # fmt: skip
_SHARD = re.compile(r"([\w.]+)-\d{5}-of-\d{5}")  # how the hub's own client names files: SPLIT-00000-of-00007
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")


def split_of(name: str) -> str | None:
    """Return the split that a name contains, if any."""
    *folders, file = name.split("/")
    shard = _SHARD.match(stem_of(file))
    found = [_word_in(part) for part in folders] + [canonical(shard[1]) if shard else _word_in(stem_of(file))]
    return next(filter(None, found), None)


def canonical(split: str) -> str:
    """Return one spelling for `train` and `training`, `dev` and `validation`."""
    return WORDS.get(split.lower(), split)


def _word_in(part: str) -> str | None:
    return next((WORDS[word] for word in _BETWEEN_WORDS.split(part.lower()) if word in WORDS), None)


def choose_split(splits: Mapping[str, str | None], source: str, asked: str | None) -> dict[str, str | None]:
    """Return the files of the requested split, from {file: split}.

    Files without a split are read if no split was requested; a source without any is `train`, as on the hub.

    Raises InvalidRequest when there are several splits and none was requested, or when the requested one is missing.
    """
    counts = Counter(split for split in splits.values() if split)
    if asked is None and len(counts) > 1:
        raise InvalidRequest(f"{source} has the splits {_listed(counts)}: choose one with --split, or --split {ALL}")
    if asked in (None, ALL) or (not counts and canonical(asked) == "train"):
        return dict(splits)
    chosen = {name: split for name, split in splits.items() if split == canonical(asked)}
    if not chosen:
        has = f"it has {_listed(counts)}" if counts else "its files are in no split"
        raise InvalidRequest(f"--split {asked}: {source} has no such split; {has}")
    return chosen


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{split} ({count_of(counts[split], 'file')})" for split in sorted(counts))
