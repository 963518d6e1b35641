"""Configurations (subsets) of a source: several data sets in one folder or repository.

In: a place and `--config`. Out: its files, with their split if README.md gives one. The YAML header of README.md
defines the configurations (`configs`, as on the hub); without it, each subfolder is one. Guarantee: a folder with
several configurations is refused until one is chosen, and so is a folder with `data` and `sample`, which repeats parts
of the data. Cost: README.md is read.
"""

from collections.abc import Iterator
from typing import Any

from ...core.errors import InvalidRequest
from .file_kinds import holds_data
from .find_files import Place, some_of
from .splits import canonical

README = "README.md"
Chosen = dict[str, str | None]


def choose_configuration(place: Place, source: str, asked: str | None) -> Chosen:
    """Return {file: split or None} of the requested configuration, or of all files where there is one.

    Raises InvalidRequest when there are several and none was requested, or when the requested one does not exist.
    """
    written = _written(place, source) if place.is_folder and README in place.names else {}
    if written:
        return _as_written(place, source, asked, written)
    folders = sorted({name.partition("/")[0] for name in place.names if "/" in name and holds_data(name)})
    if asked is not None:
        if asked not in folders:
            raise InvalidRequest(f"--config {asked}: {source} has no such folder; it has {some_of(folders) or 'none'}")
        return {name: None for name in place.names if name.startswith(f"{asked}/")}
    samples = [folder for folder in folders if folder.startswith("sample")]
    if place.is_folder and "data" in folders and samples:
        raise InvalidRequest(
            f"{source} has data and {some_of(samples)}, which repeats parts of it: choose one, such as {source}/data"
        )
    return dict.fromkeys(place.names)


def _as_written(place: Place, source: str, asked: str | None, written: dict[str, Any]) -> Chosen:
    if asked is None and len(written) > 1:
        raise InvalidRequest(f"{source} has the configurations {some_of(list(written))}: choose one with --config")
    if asked is not None and asked not in written:
        raise InvalidRequest(f"--config {asked}: {source} has no such configuration; it has {some_of(list(written))}")
    name = asked or next(iter(written))
    found = {file: split for split, pattern in _patterns(written[name]) for file in place.matching(pattern)}
    if not found:
        raise InvalidRequest(f"{source}: none of the files that {README} names for the configuration {name} exists")
    return dict(sorted(found.items()))


def _written(place: Place, source: str) -> dict[str, Any]:
    """Return {configuration: its files} from the YAML header of README.md, of those that name files."""
    text = place.read(README).decode("utf-8", "replace")
    head, closed, _ = text.removeprefix("---").partition("\n---")
    if not text.startswith("---") or not closed:
        return {}
    import yaml

    try:
        value = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{source}/{README}: its YAML cannot be read; name the files by a glob") from error
    configs = value.get("configs") if isinstance(value, dict) else None
    listed = [config for config in configs or () if isinstance(config, dict) and config.get("data_files")]
    return {str(config.get("config_name", "default")): config["data_files"] for config in listed}


def _patterns(files: Any) -> Iterator[tuple[str, str]]:
    """Yield (split, path or glob) of `data_files`; files without a split are `train`, as on the hub."""
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    for entry in files if isinstance(files, list) else [files]:
        entry = entry if isinstance(entry, dict) else {"path": entry}
        paths = entry.get("path") or []
        for path in paths if isinstance(paths, list) else [paths]:
            yield canonical(str(entry.get("split", "train"))), str(path)
