"""A mixture of streams: records of several folders of streams, in shares, copied to new streams.

In: folders of streams with a weight each. Out: the published manifest and stream files. The records of a folder are
taken in the order of its streams, as many as its share of the largest mixture that all folders have enough for.

Guarantee: every run of records from the beginning has the shares, to within one record of each folder; the same folders
and weights give the same bytes. An id is `FOLDER/ID`, and a record's meta has `source`, the folder's name; a `source`
that it had is `inner_source`. Cost: the records are read once; in memory are a few of each folder.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.count_of import count_of
from ...core.errors import InvalidRequest
from ...format.records import Record
from ...storage import Storage
from ..columns import TOKENS_OPTION
from ..extensions import load_manifest
from ..manifest import Manifest
from ..stream import open_stream
from .materialize import TEXT_COLUMNS, TOKEN_COLUMNS, Row, Spool, Stored, publish_spool
from .publish import Origin, Published

SOURCE = "source"
_INNER = re.compile(f"(inner_)*{SOURCE}")
_ALIKE = ("tokenizer_digest", "chat_template_digest")  # options that are the same in all folders that have them


@dataclass(frozen=True)
class MixPart:
    """A folder of streams in a mixture; `name` is the beginning of its ids."""

    name: str
    location: str
    weight: float
    manifest: Manifest

    def records(self) -> Iterator[Record]:
        """Yield all records, stream by stream."""
        for number in range(self.manifest.num_streams):
            yield from open_stream(self.manifest, self.location, number).read_records()


def parse_parts(texts: Sequence[str]) -> list[MixPart]:
    """Return the parts of `FOLDER=0.7 FOLDER=0.3`. Raises InvalidRequest for weights that do not sum to 1."""
    pairs = [text.rpartition("=") for text in texts]
    try:
        weights = [float(weight) for _, _, weight in pairs]
    except ValueError:
        weights = []
    if len(weights) < 2 or not all(location for location, _, _ in pairs):
        raise InvalidRequest("give two or more folders of streams with weights: streams/a=0.7 streams/b=0.3")
    if not all(weight > 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        said = " + ".join(f"{weight:g}" for weight in weights)
        raise InvalidRequest(f"the weights {said} sum to {sum(weights):g}: they must be above 0 and sum to 1")
    names = [location.rstrip("/").rpartition("/")[2] for location, _, _ in pairs]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two folders have the same name, which their ids begin with: {', '.join(sorted(names))}")
    return [
        MixPart(name, location, weight, load_manifest(location))
        for name, (location, _, _), weight in zip(names, pairs, weights, strict=True)
    ]


def publish_mixture(
    storage: Storage, parts: Sequence[MixPart], num_streams: int, max_records: int | None = None
) -> Published:
    """Publish `num_streams` streams of a mixture.

    Raises InvalidRequest for texts mixed with token ids, and for conversations of two tokenizers or chat templates.
    """
    forms = {TOKENS_OPTION in part.manifest.options for part in parts}
    if len(forms) > 1:
        raise InvalidRequest("some of the folders have texts and some token ids: they cannot be mixed")
    counts = counts_of(parts, max_records)
    spans = sorted({name for part in parts for name in part.manifest.options.get("spans", ())})
    mixed = [
        [part.location, part.weight, part.manifest.digest, count] for part, count in zip(parts, counts, strict=True)
    ]
    options: dict[str, Any] = {"mixture": mixed} | ({"spans": spans} if spans else {})
    options |= ({TOKENS_OPTION: "tokens"} if True in forms else {}) | _common(parts)
    with Spool(mixed_rows(parts, counts), Stored(TOKEN_COLUMNS if True in forms else TEXT_COLUMNS)) as spool:
        source = " ".join(f"{part.location}={part.weight:g}" for part in parts)
        return publish_spool(storage, Origin("mix", source, options=options), spool, num_streams)


def _common(parts: Sequence[MixPart]) -> dict[str, str]:
    """Return the options in which the parts have to agree. Raises InvalidRequest if they do not."""
    found: dict[str, str] = {}
    for name in _ALIKE:
        values = {part.manifest.options[name] for part in parts if name in part.manifest.options}
        if len(values) > 1:
            raise InvalidRequest(f"the folders were made with more than one {name.removesuffix('_digest')}")
        if values:
            found[name] = values.pop()
    return found


def counts_of(parts: Sequence[MixPart], max_records: int | None) -> list[int]:
    """Return how many records of each part are in the largest mixture. Raises InvalidRequest if a part has none."""
    total = min(part.manifest.num_records / part.weight for part in parts)
    total = total if max_records is None else min(total, max_records)
    counts = [min(int(total * part.weight + 1e-9), part.manifest.num_records) for part in parts]
    for part, count in zip(parts, counts, strict=True):
        if not count:
            few = f"it has {count_of(part.manifest.num_records, 'record')}"
            raise InvalidRequest(f"{part.location}: a share of {part.weight:g} is less than one record; {few}")
    return counts


def mixed_rows(parts: Sequence[MixPart], counts: Sequence[int]) -> Iterator[Row]:
    """Yield the records of all parts, each time of the part that is farthest behind its share."""
    taken, wanted = np.zeros(len(parts)), np.array(counts, np.float64)
    sources = [part.records() for part in parts]
    for number in range(sum(counts)):
        behind = (number + 1) * wanted / wanted.sum() - taken
        chosen = int(np.argmax(np.where(taken < wanted, behind, -np.inf)))
        taken[chosen] += 1
        record = next(sources[chosen])
        yield Row(f"{parts[chosen].name}/{record.id}", record.text, _meta(record, parts[chosen].name), record.tokens)


def _meta(record: Record, name: str) -> str:
    """Return the meta of a record with its source."""
    meta = {} if record.meta is None else json.loads(record.meta)
    meta = meta if isinstance(meta, dict) else {"meta": meta}
    inner = {f"inner_{key}" if _INNER.fullmatch(key) else key: value for key, value in meta.items()}
    return json.dumps(inner | {SOURCE: name}, ensure_ascii=False)
