"""Extend streams: make further streams in a folder of their own, then write the extension that names it.

In: a streams folder, and a function that publishes new streams. Out: `extensions/NNNN.json` (see `extensions`) and the
folder that it names. Guarantee: nothing that exists is changed; the extension is written last and create-only, so that
of two at the same time one is made and the other raises TryAgain. Source files that the streams have are left out by
name; ids of copied records are compared with all ids of the streams. The same command again completes an interrupted
one. Cost: that of the new streams; for copied ones the ids of all streams are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import DamagedData, InvalidRequest, ObjectExists, TryAgain
from ...core.fault_points import kill_point
from ...format.digests import digest_of
from ...format.extension_names import extension_name
from ...storage import Storage, open_storage
from ..columns import TOKENS_OPTION
from ..extensions import encode_extension, join_parts, load_manifest, parts_of
from ..manifest import Manifest, StreamsPart, canonical_json, is_outside
from ..stream import open_stream
from .check import id_problems
from .publish import OtherStreams, Published
from .read_log import FILES
from .sources import Known, without_revision

_ALIKE = ("spans", TOKENS_OPTION, "tokenizer_digest", "chat_template_digest")  # options that one run can have once


@dataclass(frozen=True)
class Extended:
    """The manifest of all streams, the name of the extension, and the manifest of the streams that it added."""

    manifest: Manifest
    name: str
    added: Manifest


def extend_streams(
    location: str, request: list[Any], create: Callable[[Storage, Known], Published], by_row_number: bool
) -> Extended:
    """Extend the streams at `location` by those that `create` publishes.

    `request` is JSON of everything that decides the new streams; `by_row_number` says whether their ids are numbers of
    rows. Raises NothingNew if the streams have every file of the source, TryAgain if another extension was made at the
    same time, InvalidRequest for streams of another form, DamagedData for an id that the streams have.
    """
    home, before = open_storage(location), load_manifest(location)
    number = len(before.digests)
    digest = digest_of(canonical_json(request)).removeprefix("sha256:")
    folder, name = f"streams-{number:04d}-{digest[:16]}", extension_name(number)
    own_home = open_storage(f"{home.location}/{folder}")
    try:
        added = create(own_home, known_of(before, by_row_number)).manifest
    except OtherStreams as error:
        how = f"no extension names the folder {own_home}: remove it"
        raise InvalidRequest(f"{error}; {how}, and start the same command again") from None
    _check_alike(before, added, location)
    data = encode_extension(before.digest, folder, added)
    after = join_parts([*parts_of(before), StreamsPart(folder, added, digest_of(data))])
    if not any(is_outside(file.name) for file in added.files):
        streams = (open_stream(after, home, index) for index in range(after.num_streams))
        for problem in id_problems(streams):
            raise DamagedData(f"{location}: {problem}; nothing was added")
    kill_point("before-extension")
    try:
        home.create(name, data)
    except ObjectExists:
        raise TryAgain(f"{location}/{name} was made by another command at the same time; nothing was added") from None
    return Extended(after, name, added)


def known_of(manifest: Manifest, by_row_number: bool = False) -> Known:
    """Return what the streams have. Raises InvalidRequest where only ids could tell, and those are numbers of rows."""
    sizes: dict[str, int] = {}
    cut: set[str] = set()
    under = None
    for part in parts_of(manifest):
        options = part.manifest.options
        copied = options.get(FILES, {})
        if by_row_number and copied and "files" not in copied:
            raise InvalidRequest(
                f"the streams were copied from {copied['count']:,} files, more than their manifest lists: give "
                "--id-column, so that the new ids can be compared with theirs"
            )
        files = {file.name: file.size for file in part.manifest.files if is_outside(file.name)}
        files |= {name: size for name, size, _ in copied.get("files", ())}
        files = {without_revision(name): size for name, size in files.items()}
        sizes |= files
        cut |= set(files) if "max_records" in options or "max_tokens" in options else set()
        under = options.get("ids_under") if under is None else under
    return Known(sizes, frozenset(cut), f"+{len(manifest.digests)}/", under)


def _check_alike(before: Manifest, added: Manifest, location: str) -> None:
    for name in _ALIKE:
        old, new = before.options.get(name), added.options.get(name)
        if name == TOKENS_OPTION:
            old, new = old is not None, new is not None
        if old != new:
            raise InvalidRequest(
                f"{location}: {name} is {old} in the existing streams and {new} in the new ones, and one run needs one "
                "value: write the new ones to another --output"
            )
