"""What `run.json` says about every object of its run, checked before it is believed.

In: the content of `run.json`. Out: `RunFacts`. Guarantee: each value has its type and a size that makes sense, and the
fingerprint is that of the configuration. Cost: none to speak of.
"""

from dataclasses import dataclass

from ..format.run_config import LARGEST_CODE, STORE_DTYPES, fingerprint_of
from ..core.errors import DamagedData, InvalidRequest
from ..batching.token_selection import Selection


@dataclass(frozen=True)
class RunFacts:
    """`seq_len` is T, `batch_size` B, both in one step; `num_slots` is how many tokens fit into one batch."""

    fingerprint: str
    streams: str
    manifest_digest: str
    max_records: int | None
    hook_points: tuple[str, ...]
    store_dtype: str
    seq_len: int
    batch_size: int
    num_slots: int
    truncates: bool
    selection: Selection = Selection()
    special_ids: tuple[int, ...] = ()

    @property
    def has_scale(self) -> bool:
        """Whether each row has a scale."""
        return self.store_dtype in LARGEST_CODE

    @classmethod
    def of(cls, run: dict, name: str) -> "RunFacts":
        """The facts of a run description stored under `name`. Raises DamagedData."""
        configuration = run["configuration"]
        try:
            if fingerprint_of(configuration) != run["fingerprint"]:
                raise ValueError("its fingerprint is not that of its configuration")
            shape = [configuration[key] for key in ("steps_per_batch", "batch_size", "seq_len")]
            if any(type(size) is not int or not 0 < size < 1 << 31 for size in shape):
                raise ValueError("steps_per_batch, batch_size and seq_len are not sizes")
            limit, hook_points = configuration["max_records"], configuration["hook_points"]
            if limit is not None and (type(limit) is not int or limit < 0):
                raise ValueError("max_records is not a number of records")
            if not _are_names(hook_points):
                raise ValueError("hook_points are not a list of names")
            if configuration["store_dtype"] not in STORE_DTYPES or type(run["streams"]) is not str:
                raise ValueError("store_dtype or streams cannot be")
            return cls(
                run["fingerprint"], run["streams"], configuration["manifest_digest"], limit, tuple(hook_points),
                configuration["store_dtype"], shape[2], shape[1], shape[0] * shape[1] * shape[2],
                configuration["long_documents"] == "truncate", _selection(configuration), _special_ids(run),
            )
        except (KeyError, TypeError, ValueError, InvalidRequest) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DamagedData(f"{name}: not a readable run description ({what})") from error


def _selection(configuration: dict) -> Selection:
    positions, drop_special = configuration.get("positions", "all"), configuration.get("drop_special", False)
    if type(positions) is not str or type(drop_special) is not bool:
        raise ValueError("positions or drop_special cannot be")
    return Selection.parse(positions, drop_special)


def _special_ids(run: dict) -> tuple[int, ...]:
    """None where `run.json` does not tell them."""
    ids = run.get("special_tokens", {"ids": {}})["ids"]
    if type(ids) is not dict or any(type(number) is not int or not 0 <= number < 1 << 31 for number in ids.values()):
        raise ValueError("special_tokens have no ids")
    return tuple(ids.values())


def _are_names(value: object) -> bool:
    return type(value) is list and all(type(name) is str and name.isprintable() for name in value)
