"""Kinds of files by their names: files of rows, and files that are not data.

In: a file's name. Out: its kind, a key of `KINDS`, and its compression. Guarantee: a file without one of the suffixes
below is not data, nor is a file whose stem is in `NOT_DATA`, in any case. Cost: none.
"""

from pathlib import PurePosixPath

KINDS = {
    "Parquet": (".parquet",),
    "JSONL": (".jsonl", ".ndjson"),
    "JSON": (".json",),
    "CSV": (".csv",),
    "TSV": (".tsv",),
    "text": (".txt",),
    "Arrow": (".arrow",),
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
NOT_DATA = {
    "changelog", "citation", "config", "contributing", "dataset_dict", "dataset_info", "dataset_infos", "licence",
    "license", "metadata", "notice", "package", "readme", "requirements", "sample_submission", "state",
}  # fmt: skip


def packing_of(name: str) -> str | None:
    """Return how a file is compressed, by its last suffix."""
    return COMPRESSED.get(PurePosixPath(name).suffix.lower())


def _unpacked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_suffix("") if packing_of(name) else path


def kind_of(name: str) -> str | None:
    """Return the kind of a file. Parquet is compressed inside: a `.parquet.gz` has no kind."""
    suffix = _unpacked(name).suffix.lower()
    kind = next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
    return None if kind == "Parquet" and packing_of(name) else kind


def stem_of(name: str) -> str:
    """Return the file's name without folder and suffixes of kind and packing."""
    return _unpacked(name).stem


def holds_data(name: str) -> bool:
    """Return whether a file in a folder is data, by its name."""
    return kind_of(name) is not None and stem_of(name).lower() not in NOT_DATA
