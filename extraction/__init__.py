"""Language model activations over millions of documents, extracted on machines that vanish, each token exactly once.

This is what other programs import: `extract`, which makes a run in one call (`extract_texts.py`), the readers of a
run's output, and the errors that the library raises. Modules are in folders by layer, and imports point one way:

    `core` <- `storage` <- `format` <- `streams` <- `batching` <- `models` <- (`worker`, `read`, `audit`, `tools`)

`core`      errors, logs, JSON, threads, flags
`storage`   whole, create-only objects by name; one file for each backend
`format`    what is in the bucket, as names, bytes and types
`streams`   manifests and Parquet files; `streams/build` makes them
`datasets`  what turns a source into records; one file or folder for each dataset
`batching`  token ids, the token selection, packing
`models`    the compiled step: hook points, families, weights, sharding, cost
`worker`    flags, their resolution to a plan, and the loop
`read`      the reader, shuffled rows, statistics, exports
`audit`     the proof of exactly once
`tools`     status, plan, parity, report
"""

import importlib
from typing import TYPE_CHECKING, Any

from .core.errors import (
    BucketDenied,
    ConfigurationMismatch,
    DamagedData,
    DtypeOverflow,
    ExtractionError,
    Fenced,
    InvalidRequest,
    NoCredentials,
    NotRead,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    Stopped,
    TryAgain,
)

if TYPE_CHECKING:
    from .extract_texts import extract
    from .read.paired import PairedReader
    from .read.reader import ActivationReader
    from .read.shuffle import ShuffledReader, ShuffleOptions

__version__ = "0.2.0"
__all__ = [
    "ActivationReader",
    "BucketDenied",
    "ConfigurationMismatch",
    "DamagedData",
    "DtypeOverflow",
    "ExtractionError",
    "Fenced",
    "InvalidRequest",
    "NoCredentials",
    "NotRead",
    "ObjectExists",
    "ObjectNotFound",
    "PairedReader",
    "PermissionDenied",
    "ShuffleOptions",
    "ShuffledReader",
    "Stopped",
    "TryAgain",
    "__version__",
    "extract",
]
_MODULES = {
    "ActivationReader": "read.reader",
    "PairedReader": "read.paired",
    "ShuffleOptions": "read.shuffle",
    "ShuffledReader": "read.shuffle",
    "extract": "extract_texts",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: commands that read no activations start without NumPy."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
