"""`run.json`: what determines the bytes of a run, and what readers need beside it.

In: values, or the bytes of a `run.json` that anybody may have changed. Out: `RunConfig` and `RunDescription`.
Guarantee: every field that is parsed has its type and a size that makes sense, and the stored fingerprint is that of
the run config; anything else raises DamagedData. Cost: none to speak of.
"""

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from ..core.errors import ConfigurationMismatch, DamagedData, InvalidRequest, ObjectNotFound
from ..core.strict_json import dumps, loads
from ..storage import Storage
from .digests import digest_of
from .dtypes import STORE_DTYPES
from .run_extension import RunExtension, read_extensions

RUN = "run.json"
FORMAT = 4  # of run.json, commits and batch files; anything that changes how bytes are made or read raises it
_MOST = 1 << 31
_MAX_TEXT = 1000  # characters of a version
_MAX_RUN = 16 << 20  # bytes; some 20 for each stream


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines the bytes of a run.

    The place of the data, and how many chips, threads or workers there are, are no part of it. `seq_len` is T,
    `batch_size` B; `steps_per_batch` steps of [B, T] tokens make a batch. Token ids are below `vocab_size`.
    """

    model: str
    revision: str | None
    weights_digest: str
    tokenizer_digest: str
    manifest_digest: str
    hook_points: tuple[str, ...]
    compute_dtype: str
    store_dtype: str
    seq_len: int
    batch_size: int
    steps_per_batch: int
    bos: str
    long_documents: str
    max_records: int | None
    positions: str = "all"
    drop_special: bool = False
    vocab_size: int = _MOST
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `run.json`."""
        return asdict(self) | {"hook_points": list(self.hook_points)}

    @classmethod
    def from_json(cls, value: Any) -> "RunConfig":
        """Return the run config of a JSON object. Raises ValueError, TypeError or KeyError for one that is none."""
        if type(value["hook_points"]) is not list:
            raise ValueError("hook_points are not a list of names")
        given: dict[str, Any] = {one.name: value[one.name] for one in fields(cls)} | {
            "hook_points": tuple(value["hook_points"])
        }
        config = cls(**given)
        _check(config)
        return config

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` and the digest of the canonical JSON of all fields."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def num_slots(self) -> int:
        """How many tokens fit into one batch, padding included."""
        return self.steps_per_batch * self.batch_size * self.seq_len

    @property
    def truncates(self) -> bool:
        """Whether records longer than T are cut."""
        return self.long_documents == "truncate"

    def limit(self, num_records: int) -> int:
        """Return how many of a stream's `num_records` records are extracted."""
        return num_records if self.max_records is None else min(self.max_records, num_records)


def over_same_streams(stored: RunConfig, given: RunConfig, digests: Collection[str]) -> RunConfig:
    """Return the given run config, over the stored one's streams if `digests`, those of the given ones, have theirs.

    Streams that were extended have the digests of all their parts, so that a run goes on over them.
    """
    is_known = stored.manifest_digest in digests
    return replace(given, manifest_digest=stored.manifest_digest) if is_known else given


def differences(stored: RunConfig, given: RunConfig) -> list[str]:
    """Return a line for each field that differs: `seq_len: 1024 in the run, 2048 now`; hook points first.

    Where the hook points differ the digest of the weights is left out: it covers the layers that they need.
    """
    names = [one.name for one in fields(RunConfig) if getattr(stored, one.name) != getattr(given, one.name)]
    if "hook_points" in names:
        names = ["hook_points", *(name for name in names if name not in ("hook_points", "weights_digest"))]
    return [f"{name}: {_shown(stored, name)} in the run, {_shown(given, name)} now" for name in names]


def _shown(config: RunConfig, name: str) -> str:
    value = config.to_json()[name]
    return "not given" if value is None else json.dumps(value)


@dataclass(frozen=True)
class SpecialTokenIds:
    """The special tokens by their text, and the ids that each record begins with."""

    ids: dict[str, int] = field(default_factory=dict)
    record_prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class KnownAnswer:
    """What the step gives for a fixed input: the digest of the values, and {hook point: the norms of some rows}."""

    digest: str = ""
    norms: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunDescription:
    """The content of `run.json`. `streams` is where the streams were, `records_per_stream` how many are extracted.

    `extensions` name further streams, which `records_per_stream` then counts, too.

    `model_location` is where the model was: a hub id, a folder or a folder in a bucket. `digest` is that of the stored
    bytes, which only they tell. `compiled` has the digests of the compiled steps of the start that began the run, and
    `known_answer` what its step gives.
    """

    config: RunConfig
    streams: str
    special_tokens: SpecialTokenIds = SpecialTokenIds()
    records_per_stream: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    model_location: str = ""
    compiled: dict[str, str] = field(default_factory=dict)
    known_answer: KnownAnswer = KnownAnswer()
    digest: str = field(default="", compare=False)
    extensions: tuple[RunExtension, ...] = ()

    @property
    def manifest_digests(self) -> tuple[str, ...]:
        """The digests of the run's streams: as it began, and after each extension."""
        return (self.config.manifest_digest, *(extension.manifest_digest for extension in self.extensions))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the run config."""
        return self.config.fingerprint

    @property
    def began_with(self) -> int:
        """How many streams the run began with."""
        return len(self.records_per_stream) - sum(len(added.records_per_stream) for added in self.extensions)

    def root(self, stream: int) -> str:
        """Return the digest that a first commit names: of `run.json`, or of the extension that added the stream."""
        end, digest = self.began_with, self.digest
        for extension in self.extensions:
            if stream < end:
                break
            end, digest = end + len(extension.records_per_stream), extension.digest
        return digest

    def to_bytes(self) -> bytes:
        """Return the bytes of the `run.json` of a run that was not extended."""
        value = asdict(self) | {"format": FORMAT, "config": self.config.to_json(), "fingerprint": self.fingerprint}
        del value["digest"], value["extensions"]
        return dumps(value, indent=2)


def read_run(storage: Storage) -> RunDescription:
    """Return the content of `run.json`, and of the extensions of the run.

    Raises ObjectNotFound, DamagedData, or ConfigurationMismatch for another format.
    """
    run = parse_run(storage.read_small(RUN, _MAX_RUN), f"{storage}/{RUN}")
    extensions = read_extensions(storage, FORMAT, run.digest)
    sizes = [size for extension in extensions for size in extension.records_per_stream]
    return replace(run, records_per_stream=(*run.records_per_stream, *sizes), extensions=extensions)


def find_run(storage: Storage) -> RunDescription | None:
    """Return the content of `run.json`, None where no run has begun.

    A start that failed before it had joined a run leaves a note in its worker's folder, and no more.

    Raises DamagedData if `run.json` is lost, or as `read_run`.
    """
    with suppress(ObjectNotFound):
        return read_run(storage)
    stored = next((info.name for info in storage.list("worker-") if "/commits/" in info.name), None)
    if stored is None:
        return None
    try:
        return read_run(storage)  # created since, before the commit that was listed
    except ObjectNotFound:
        raise DamagedData(f"{storage}/{RUN} is missing, but {stored} is there: restore it") from None


def read_existing_run(storage: Storage) -> RunDescription:
    """Return the content of `run.json`. Raises InvalidRequest where there is none, or as `find_run`."""
    if (run := find_run(storage)) is None:
        raise InvalidRequest(f"{storage} holds no run: there is no {RUN}; give the --output of a run")
    return run


def parse_run(data: bytes, name: str) -> RunDescription:
    """Return what the bytes stored under `name` say. Memory: at most 64 bytes for each byte of `data`.

    Raises DamagedData, or ConfigurationMismatch for another format.
    """
    try:
        value: Any = loads(data)
        _check_format(value, name)
        config = RunConfig.from_json(value["config"])
        if config.fingerprint != value["fingerprint"]:
            raise ValueError("its fingerprint is not that of its config")
        special, sizes, versions = value["special_tokens"], value["records_per_stream"], value["versions"]
        if not type(value["streams"]) is type(value["model_location"]) is str or type(versions) is not dict:
            raise ValueError("streams or versions have the wrong type, or model_location")
        if not all(type(text) is str and len(text) <= _MAX_TEXT for text in versions.values()):
            raise ValueError("versions are not short texts")
        if type(sizes) is not list or not all(_is_count(size) for size in sizes):
            raise ValueError("records_per_stream is not a list of numbers of records")
        return RunDescription(
            config, value["streams"], _special_tokens(special), tuple(sizes), versions, value["model_location"],
            _texts(value["compiled"]), _known_answer(value["known_answer"]), digest_of(data),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedData(f"{name}: not a readable run description ({what})") from error


def _check_format(value: Any, name: str) -> None:
    """Raise ConfigurationMismatch for a run of another format."""
    number = value["format"]
    if type(number) is not int:
        raise ValueError("its format is not a number")
    if number != FORMAT:
        raise ConfigurationMismatch(
            f"{name}: format {number}, this version reads and writes {FORMAT}: use the version that made the run"
        )


def _texts(value: Any) -> dict[str, str]:
    if type(value) is not dict or not all(type(text) is str for text in value.values()):
        raise ValueError("compiled is not an object of texts")
    return value


def _known_answer(value: Any) -> KnownAnswer:
    norms = value["norms"]
    is_table = type(norms) is dict and all(type(numbers) is list for numbers in norms.values())
    if type(value["digest"]) is not str or not is_table:
        raise ValueError("known_answer is not a digest and norms")
    if not all(type(number) in (int, float) for numbers in norms.values() for number in numbers):
        raise ValueError("the norms of known_answer are not numbers")
    return KnownAnswer(value["digest"], norms)


def _special_tokens(value: Any) -> SpecialTokenIds:
    ids, prefix = value["ids"], value["record_prefix"]
    if type(ids) is not dict or type(prefix) is not list or not all(map(_is_id, [*ids.values(), *prefix])):
        raise ValueError("special_tokens have no ids")
    return SpecialTokenIds(ids, tuple(prefix))


def _check(config: RunConfig) -> None:
    """Raise ValueError for a field of another type or size than it can have."""
    for name in ("seq_len", "batch_size", "steps_per_batch", "vocab_size"):
        if not _is_count(getattr(config, name)) or getattr(config, name) > _MOST or getattr(config, name) == 0:
            raise ValueError(f"{name} is not a size")
    if config.max_records is not None and not _is_count(config.max_records):
        raise ValueError("max_records is not a number of records")
    if not all(type(name) is str and name.isprintable() for name in config.hook_points):
        raise ValueError("hook_points are not a list of names")
    if config.store_dtype not in STORE_DTYPES:
        raise ValueError(f"store_dtype is not one of {', '.join(STORE_DTYPES)}")
    texts = ("model", "weights_digest", "tokenizer_digest", "manifest_digest", "compute_dtype", "bos", "positions")
    for name in texts:
        if type(getattr(config, name)) is not str:
            raise ValueError(f"{name} is not a string")
    if config.long_documents not in ("split", "truncate") or type(config.drop_special) is not bool:
        raise ValueError("long_documents or drop_special has an unknown value")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
