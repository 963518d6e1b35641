"""Publish a finished run: its files, or the rows as Parquet, and a card that describes them.

In: the output of a run, and a place: a folder, a bucket or a dataset repository of the hub. Out: the files, README.md
last. Guarantee: only what is committed is published; a run that is not finished is refused. The same call after an
interruption continues. Cost: the run is read once; in memory are some batches.
"""

import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ..core.count_of import count_of
from ..core.errors import InvalidRequest
from ..core.progress_bar import track
from ..format.batch_file import BatchRef
from ..format.commit import commit_name
from ..format.extension_names import extension_name
from ..format.run_config import RUN
from ..read.reader import ActivationReader
from ..storage import backend_of, open_storage
from ..storage.hub import HubStorage
from ..storage.hub_upload import File, upload

CARD = "README.md"


def publish(output: str, target: str, form: str, licence: str) -> int:
    """Publish the run at `output` as `safetensors` or `parquet`; return how many files. Raises InvalidRequest."""
    reader = ActivationReader(output)
    _require_finished(reader)
    made = list[str]()

    def files() -> Iterator[File]:
        content = _as_they_are(reader) if form == "safetensors" else _as_parquet(reader)
        for name, data in track(content, "files"):
            made.append(name)
            yield name, data
        yield CARD, card(reader, target, form, licence).encode()

    if backend_of(target) is HubStorage:
        upload(target, files())
    else:
        storage = open_storage(target)
        for name, data in files():
            storage.create(name, data)
    return len(made) + 1


def _require_finished(reader: ActivationReader) -> None:
    total = len(reader.run.records_per_stream)
    lasts = map(reader.last_commit, range(total))
    finished = sum(last is not None and last.end_of_stream for last in lasts)
    if finished < max(total, 1):
        raise InvalidRequest(
            f"{reader.storage}: {finished} of {count_of(total, 'stream')} finished: publish it when all are"
        )


def _as_they_are(reader: ActivationReader) -> Iterator[File]:
    """Yield run.json, its extensions, measurements of parity, and the commits and batch files of each stream."""
    storage = reader.storage
    for info in storage.list("parity-"):
        yield info.name, storage.read(info.name)
    for stream in reader.streams:
        with_rows, last = {ref.batch: ref for ref in reader.refs(stream)}, reader.last_commit(stream)
        for batch in range(0 if last is None else last.batch + 1):
            if batch in with_rows:
                yield with_rows[batch].name, bytes(storage.view(with_rows[batch].name))
            yield commit_name(stream, batch), storage.read(commit_name(stream, batch))
    for number in range(1, len(reader.run.extensions) + 1):
        yield extension_name(number), storage.read(extension_name(number))
    yield RUN, storage.read(RUN)


def _as_parquet(reader: ActivationReader) -> Iterator[File]:
    """Yield a Parquet file for each batch: hook points as float32, or float16 where stored so, and places of rows."""
    import pyarrow.parquet

    from ..read.datasets import arrow_table, features_of

    features = features_of(reader, reader.hook_points)
    for batch in reader.batches():
        sink = io.BytesIO()
        table = arrow_table(batch, slice(None), features)
        table = table.append_column("record_id", pyarrow.array(_ids_of_rows(batch), pyarrow.string()))
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        yield _parquet_name(batch.ref), sink.getvalue()


def _ids_of_rows(batch: Any) -> list[str]:
    sizes = (batch.record_offsets[1:] - batch.record_offsets[:-1]).tolist()
    return [name for name, size in zip(batch.record_ids, sizes, strict=True) for _ in range(size)]


def _parquet_name(ref: BatchRef) -> str:
    return f"data/train-{ref.stream:05d}-{ref.batch:08d}.parquet"


# ---------------------------------------------------------------------------------------------- the card


def card(reader: ActivationReader, target: str, form: str, licence: str) -> str:
    """Return the text of README.md."""
    config, run = reader.run.config, reader.run
    files = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n"
    head = (
        f"---\nlicense: {licence}\ntags:\n- activations\n- interpretability\n{files if form == 'parquet' else ''}---\n"
    )
    facts = {
        "model": config.model + (f" at {config.revision}" if config.revision else ""), "weights": config.weights_digest,
        "tokenizer": config.tokenizer_digest, "streams": f"{run.streams} ({config.manifest_digest})",
        "tokens of a window": config.seq_len, "stored tokens": config.positions, "begin of records": config.bos,
        "computed in, stored in": f"{config.compute_dtype}, {config.store_dtype}", "fingerprint": run.fingerprint,
        "software": ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items())),
    }  # fmt: skip
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"{head}\n# Activations of {config.model}\n\n{reader.num_rows():,} rows of {reader.num_tokens():,} tokens.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n## Hook points\n\n{_hook_points(reader)}\n\n## Parity\n\n{_parity(reader)}\n\n"
        f"## Loading\n\n```python\n{_loading(target, form, reader.hook_points[0])}```\n\n## Licence\n\n"
        "Fill in: the licence of the text, the licence of the model, and what both permit.\n"
    )


def _hook_points(reader: ActivationReader) -> str:
    lines = [
        "| hook point | width | rows | root mean square of the norm | median of the norm |",
        "|---|---|---|---|---|",
    ]
    for name, facts in reader.statistics().items():
        median = facts.norms.get_quantile_value(0.5)
        lines.append(f"| `{name}` | {len(facts.mean)} | {facts.count:,} | {facts.norm:.4g} | {median:.4g} |")
    return "\n".join(lines)


def _parity(reader: ActivationReader) -> str:
    """Return a table of the largest relative errors that `parity --output` stored."""
    lines = []
    for info in reader.storage.list("parity-"):
        found = json.loads(reader.storage.read(info.name))
        worst = max(value["relative_error"] for value in found["hook_points"].values())
        tokens = found["setting"]["tokens"]
        lines.append(
            f"Relative error of the worst hook point, against transformers in float32: {worst:.2e} ({tokens:,} tokens)."
        )
    return "\n".join(lines) or "Not measured: `extract_activations.py parity --output OUTPUT` measures it."


def _loading(target: str, form: str, hook_point: str) -> str:
    if form == "parquet" and backend_of(target) is HubStorage:
        name = "/".join(PurePosixPath(target).parts[2:4])
        return f'from datasets import load_dataset\n\nrows = load_dataset("{name}", split="train", streaming=True)\n'
    if form == "parquet":
        return f'import pyarrow.dataset\n\nrows = pyarrow.dataset.dataset("{target}/data", format="parquet")\n'
    return (
        f'from extraction import ActivationReader\n\nreader = ActivationReader("{target}")\n'
        f'for activations, tokens, record, positions in reader.rows("{hook_point}"): ...\n'
    )
