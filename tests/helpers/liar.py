"""A consistent liar: changes a finished run so that sizes, checksums, statistics, counts, totals and digests all fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from extraction.format.batch_file import batch_arrays
from extraction.format.run_config import RunConfig
from extraction.format.safetensors import allocate, decode
from extraction.storage import Storage, crc32c_base64, open_storage
from tests.helpers.batches import fill_hook
from tests.helpers.stream_runs import edited, relink

Change = Callable[[dict], None]


class Liar:
    """A run in a local folder, and the means to change it behind everybody's back."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.storage: Storage = open_storage(str(folder))
        self.hooks = json.loads(self.storage.read("run.json"))["config"]["hook_points"]

    def put(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def commits(self, stream: int = 0) -> list[str]:
        return [info.name for info in self.storage.list(f"worker-{stream:05d}/commits/")]

    def change_batch(self, change: Change, batch: int = 1, stream: int = 0) -> None:
        """Apply `change` to {array: values, "meta": list} of a batch file; everything that follows from it is made to fit."""
        name = self.commits(stream)[batch]
        commit = json.loads(self.storage.read(name))
        path = f"worker-{stream:05d}/{commit['data']['name']}"
        old = decode(self.storage.read(path))
        content = {key: array.copy() for key, array in old.arrays.items() if not self._is_derived(key)}
        content["meta"] = json.loads(old.metadata.get("record_meta", "null"))
        change(content)
        meta, lengths = content.pop("meta"), content["record_lengths"]
        rows = len(content["tokens"])
        widths = {hook: content[hook].shape[1] for hook in self.hooks}
        layout = batch_arrays(widths, content[self.hooks[0]].dtype, rows, len(lengths), False)
        header = old.metadata | ({} if meta is None else {"record_meta": json.dumps(meta)})
        new = allocate(layout, header)
        for key, array in content.items():
            if key not in self.hooks:
                new.arrays[key][:] = array
        new.arrays["record_offsets"][:] = np.concatenate([[0], np.cumsum(lengths)])
        for hook in self.hooks:
            fill_hook(new.arrays, hook, content[hook].astype(np.float32))
        self.put(path, bytes(new.data))
        data = commit["data"] | {"size": len(new.data), "crc32c": crc32c_base64(new.data)}
        self.put(name, edited(self.storage.read(name), data=data, num_rows=rows, num_tokens=int(lengths.sum())))
        self.add_up(stream)

    def _is_derived(self, key: str) -> bool:
        return any(key.startswith(f"{hook}.") for hook in self.hooks)

    def add_up(self, stream: int = 0) -> None:
        """Make the totals of the commits, and the chain of digests, fit."""
        rows = tokens = size = 0
        for name in self.commits(stream):
            commit = json.loads(self.storage.read(name))
            rows, tokens = rows + commit["num_rows"], tokens + commit["num_tokens"]
            size += commit["data"]["size"] if commit["data"] else 0
            changes = {"totals__rows": rows, "totals__tokens": tokens, "totals__bytes": size}
            self.put(name, edited(self.storage.read(name), **changes))
        relink(self.storage, self.put)

    def relabel(self, **changes: object) -> None:
        """Change the run config, and the fingerprint everywhere."""
        value = json.loads(self.storage.read("run.json"))
        config = RunConfig.from_json(value["config"] | changes)
        self.put(
            "run.json", json.dumps(value | {"config": config.to_json(), "fingerprint": config.fingerprint}).encode()
        )
        for info in list(self.storage.list()):
            if "/commits/" in info.name:
                self.put(info.name, edited(self.storage.read(info.name), fingerprint=config.fingerprint))
        relink(self.storage, self.put)
