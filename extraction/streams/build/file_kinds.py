"""Kinds of files by their names: which ones hold rows, and which ones are there beside the data.

In: a file's name. Out: its kind, a key of `KINDS`, and how it is packed. Guarantee: a file without one of the suffixes
below is no data, and neither is one whose stem is in `NOT_DATA`, in capitals or not. Cost: none.
"""

from pathlib import PurePosixPath

KINDS = {
    "Parquet": (".parquet",),
    "JSONL": (".jsonl", ".ndjson"),
    "JSON": (".json",),
    "CSV": (".csv",),
    "TSV": (".tsv",),
    "text": (".txt",),
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
NOT_DATA = {
    "changelog", "citation", "config", "contributing", "dataset_dict", "dataset_info", "dataset_infos", "licence",
    "license", "metadata", "notice", "package", "readme", "requirements", "sample_submission", "state",
}  # fmt: skip


def packing_of(name: str) -> str | None:
    """How a file is compressed, by its last suffix."""
    return COMPRESSED.get(PurePosixPath(name).suffix.lower())


def _unpacked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_suffix("") if packing_of(name) else path


def kind_of(name: str) -> str | None:
    """The kind of a file. Parquet is packed inside: a `.parquet.gz` is no kind."""
    suffix = _unpacked(name).suffix.lower()
    kind = next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
    return None if kind == "Parquet" and packing_of(name) else kind


def stem_of(name: str) -> str:
    """The file's name without folder and suffixes of kind and packing."""
    return _unpacked(name).stem


def holds_data(name: str) -> bool:
    """Whether a file in a folder is data, by its name."""
    return kind_of(name) is not None and stem_of(name).lower() not in NOT_DATA
