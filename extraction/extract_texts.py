"""Texts in, activations out, in one call of Python: streams, one worker in this process, and a reader.

In: a model, texts, and the arguments of `run`. Out: a run in `output`, with its streams in `output/streams`. Guarantee:
those of the command lines, whose parts it calls: a call that was interrupted continues at its last commit, other texts
or another run config are refused. Cost: the start of a worker, which loads the model; then what the worker costs.

    reader = extraction.extract("HuggingFaceTB/SmolLM2-135M", ["one text", "another"], layers=[8, 15], output="run")
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any

from .core.errors import ConfigurationMismatch, InvalidRequest
from .core.flags import flags_of
from .storage import Storage, open_storage

if TYPE_CHECKING:
    from .read.reader import ActivationReader
    from .streams.build.materialize import Row

_DEFAULTS = {"seq_len": 512, "batch_size": "auto"}  # on a CPU a step of 4,096 tokens


def extract(
    model: str | PathLike[str],
    texts: Iterable[str | tuple[object, str]],
    *,
    output: str | PathLike[str],
    layers: str | int | Iterable[int] | None = None,
    hooks: str | Iterable[str] = "resid_post",
    **flags: Any,
) -> "ActivationReader":
    """Extract the activations of texts in this process, and return a reader of the run.

    Args:
        model: hub id, folder or gs:// folder of a Hugging Face model.
        texts: strings, whose ids are their numbers, or pairs (id, text): a list, a column of a `datasets.Dataset`, ….
        output: folder or gs:// prefix of the run. The same call again continues it, or returns its reader.
        layers: numbers from 0, negatives from the end, or "all".
        hooks: short names of hook points, or presets such as "transcoder".
        flags: any other flag of `run`, such as positions="last", store_dtype="float32", progress=False. Here seq_len is
            512 and batch_size "auto" unless given, and environment variables are not read.

    Raises InvalidRequest for a wrong argument, before anything but the streams is written; ConfigurationMismatch if
    `output` has a run of other texts or with another run config; and what a worker raises.
    """
    from .read.reader import ActivationReader
    from .worker.flags import RunFlags
    from .worker.resolve import check_flags, resolve_model, resolve_run
    from .worker.shutdown import Stop
    from .worker.worker import extract as extract_stream

    begin, output = time.perf_counter(), str(output).rstrip("/")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # transformers advises to install torch
    own = {"model": model, "streams": f"{output}/streams", "output": output, "stream": 0}
    own |= {"worker_id": 0, "idle_after": 0.0}
    given = {"layers": _listed(layers), "hooks": _listed(hooks)}
    if taken := sorted(own.keys() & flags.keys()):
        raise InvalidRequest(f"{taken[0]}= is chosen by extract(), which writes one stream into output/streams")
    defaults = {name: value for name, value in _DEFAULTS.items() if flags.get(name) is None}
    run_flags = flags_of(RunFlags, own | given | flags | defaults)
    if (span := check_flags(run_flags).span) is not None:
        raise InvalidRequest(f"positions={span!r}: texts have no spans; give all, last, mean, a list or a slice")
    resolved = resolve_model(run_flags)
    _publish(open_storage(run_flags.streams), texts)
    extract_stream(resolve_run(run_flags, resolved), Stop(), begin)
    reader = ActivationReader(output)
    reader.num_rows()  # so that it shows how many
    return reader


def _first(names: Iterable[object]) -> str:
    """Return the first names, as a message shows them."""
    return ", ".join(str(name)[:50] for name in islice(names, 5)) or "nothing"


def _listed(values: Any) -> Any:
    """Return several values as the flag spells them, with commas."""
    return values if isinstance(values, str | Integral | None) else ",".join(map(str, values))


def _publish(storage: Storage, texts: Iterable[str | tuple[object, str]]) -> None:
    """Write the texts as one stream, or compare them with those that are there."""
    from .streams.build.materialize import Spool, publish_spool
    from .streams.build.publish import Origin, OtherStreams

    with Spool(_rows(texts)) as spool:
        if not len(spool):
            raise InvalidRequest("texts is empty: there is nothing to extract")
        try:
            publish_spool(storage, Origin("texts", "extraction.extract"), spool, 1)
        except OtherStreams as error:
            raise ConfigurationMismatch(
                f"{storage.location} has the texts of another call; give the same ones, or a new output ({error})"
            ) from None


def _rows(texts: Iterable[str | tuple[object, str]]) -> "Iterator[Row]":
    """Yield a row for each text. Raises InvalidRequest for a value of another form."""
    from .streams.build.materialize import Row
    from .streams.build.row_files import checked_text

    if isinstance(texts, str | bytes):
        raise InvalidRequest("texts is one string: give a list of strings, or of pairs (id, text)")
    if isinstance(texts, Mapping):
        raise InvalidRequest(
            f"texts is a {type(texts).__name__} with {_first(texts)}: give .items() of a dictionary {{id: text}}, or "
            'choose a split and a column, dataset["…"]["…"]'
        )
    table: Any = texts
    if hasattr(table, "columns"):  # of pandas, polars or pyarrow
        names = getattr(table, "column_names", table.columns)
        raise InvalidRequest(f'texts is a {type(table).__name__} with {_first(names)}: give a column, table["…"]')
    for number, item in enumerate(texts):
        if isinstance(item, Mapping):
            raise InvalidRequest(
                f'text {number} is a row with {", ".join(map(str, item))}: give a column, dataset["…"]'
            )
        if isinstance(item, tuple) and len(item) != 2:
            raise InvalidRequest(f"text {number} is a tuple of {len(item)}: give strings, or pairs (id, text)")
        name, text = item if isinstance(item, tuple) else (number, item)
        yield Row(str(name), checked_text(text, f"text {number}"))
