"""What a run is: `ExtractionConfig`, its validation and its fingerprint.

In: the values of the flags, plus digests of weights, tokenizer and manifest. Out: a frozen configuration, whose
fingerprint covers exactly what changes the stored bytes. Where the data lies, how many chips, threads or workers there
are is no part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase

from ..core.errors import InvalidRequest

PACKING_SCHEMA = 1
DATA_SCHEMA = 3  # positions count in the record, in 1 and 2 in the window
STORE_DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1, "float8_e4m3fn": 1}  # bytes of a value
LARGEST_CODE = {"int8": 127.0, "float8_e4m3fn": 448.0}  # of the dtypes whose rows have a scale
HOOK_SUFFIXES = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
FINAL_HOOK = "ln_final.hook_normalized"
_TARGET_OBJECT_BYTES = 128 << 20
_MOST_SECONDS = 30
_SLOW_FLOPS = {"float32": 5e10, "bfloat16": 5e13}  # in a second: half of two CPU cores, a quarter of a v5e chip


@dataclass(frozen=True)
class ExtractionConfig:
    """Everything that decides the bytes of a run. Sizes are in records, rows (B) and tokens (T)."""

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
    packing_schema: int = PACKING_SCHEMA
    data_schema: int = DATA_SCHEMA

    def to_json(self) -> dict:
        return asdict(self) | {"hook_points": list(self.hook_points)}

    def limit(self, num_records: int) -> int:
        """How many of a stream's records are worked on."""
        return num_records if self.max_records is None else min(self.max_records, num_records)

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the digest of the canonical JSON of all fields."""
        return fingerprint_of(self.to_json())


def fingerprint_of(configuration: dict) -> str:
    """The fingerprint of a configuration as it stands in `run.json`."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def differences(stored: dict, asked: dict) -> list[str]:
    """A line for each field whose value differs: `seq_len: 1024 in the run, 2048 now`; hook points first.

    Where those differ the digest of the weights is left out: it covers the layers that they need.
    """
    names = [field.name for field in fields(ExtractionConfig)]
    names = [name for name in names + sorted(set(stored) - set(names)) if stored.get(name) != asked.get(name)]
    if "hook_points" in names:
        names = ["hook_points", *(name for name in names if name not in ("hook_points", "weights_digest"))]
    return [f"{name}: {_given(stored.get(name))} in the run, {_given(asked.get(name))} now" for name in names]


def _given(value: object) -> str:
    return "not given" if value is None else json.dumps(value)


def parse_layers(text: str, num_layers: int) -> list[int]:
    """Layers of `all`, lists, ranges `0:24:2` and negatives, sorted. Raises InvalidRequest naming the bad part."""
    if text.strip() == "all":
        return list(range(num_layers))
    layers: set[int] = set()
    for part in text.split(","):
        try:
            numbers = [int(number) if number.strip() else None for number in part.split(":")]
        except ValueError:
            raise InvalidRequest(f"--layers {text}: {part!r} is no layer, range or 'all'") from None
        if len(numbers) > 3 or (len(numbers) == 1 and numbers[0] is None) or (len(numbers) == 3 and numbers[2] == 0):
            raise InvalidRequest(f"--layers {text}: {part!r} is no layer, range or 'all'")
        if len(numbers) > 1:
            layers.update(range(num_layers)[slice(*numbers)])
        elif -num_layers <= numbers[0] < num_layers:
            layers.add(numbers[0] % num_layers)
        else:
            raise InvalidRequest(f"--layers {text}: the model has layers 0 to {num_layers - 1}, there is no {part.strip()}")
    if not layers:
        raise InvalidRequest(f"--layers {text}: names no layer of the {num_layers} there are")
    return sorted(layers)


def resolve_hook_points(
    layers: str | None, hooks: str, hook_points: str | None, num_layers: int, absent: Mapping[str, str]
) -> tuple[str, ...]:
    """Full hook point names in depth order, from `--layers` with `--hooks`, or from `--hook-points` (names, globs).

    `absent`: suffixes of hook points that the blocks of this model do not have, and why; a glob passes them over.
    Raises InvalidRequest for a layer, short name or pattern that the model does not have.
    """
    suffixes = [suffix for suffix in HOOK_SUFFIXES.values() if suffix not in absent]
    names = [*(f"blocks.{layer}.{suffix}" for layer in range(num_layers) for suffix in suffixes), FINAL_HOOK]
    chosen: set[str] = set()
    for pattern in hook_points.split(",") if hook_points else []:
        found = [name for name in names if fnmatchcase(name, pattern.strip())]
        if not found:
            reason = absent.get(pattern.strip().split(".", 2)[-1], f"the model has {num_layers} layers")
            raise InvalidRequest(f"--hook-points {pattern.strip()}: no such hook point: {reason}")
        chosen.update(found)
    for short in hooks.split(",") if layers else []:
        if short.strip() not in HOOK_SUFFIXES:
            raise InvalidRequest(f"--hooks {short.strip()}: choose from {', '.join(HOOK_SUFFIXES)}")
        if HOOK_SUFFIXES[short.strip()] in absent:
            reason = absent[HOOK_SUFFIXES[short.strip()]]
            raise InvalidRequest(f"--hooks {short.strip()}: no such hook point: {reason}")
        chosen.update(f"blocks.{layer}.{HOOK_SUFFIXES[short.strip()]}" for layer in parse_layers(layers, num_layers))
    if not chosen:
        raise InvalidRequest("give --layers (with --hooks) or --hook-points: which activations shall be stored?")
    return tuple(name for name in names if name in chosen)


def default_steps_per_batch(step_bytes: float, step_flops: float, compute_dtype: str) -> int:
    """Steps of a batch: about 128 MiB of activations, and arithmetic for at most 30 s even on slow hardware, since a
    worker that is killed loses what it has not committed. From the configuration alone, so that every start agrees."""
    by_bytes = int(_TARGET_OBJECT_BYTES / step_bytes)
    by_time = int(_MOST_SECONDS * _SLOW_FLOPS[compute_dtype] / max(step_flops, 1.0))
    return max(1, min(by_bytes, by_time))
