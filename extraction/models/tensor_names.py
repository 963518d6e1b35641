"""The mapping from the names of a weight table to the tensors of the files.

In: the tensors by their names in the files, and a family's table. Out: the place of each needed tensor, by the table's
name. Guarantee: an unknown, missing or doubled tensor of a layer that runs, the embedding or the final norm raises.
Other tensors (heads, further layers, other towers) are ignored. Cost: only headers are read.

Files may have any prefix before the names of a text model, or none. The prefix is found by the names that follow it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..core.count_of import count_of
from ..core.errors import DamagedData
from ..core.logs import say
from .config import LayerKind
from .families import Family
from .tensors import TensorPlace, WeightFiles
from .weight_tables import Table

_HEADS = ("lm_head.weight", "embed_out.weight")  # each holds the embedding where the two are tied


@dataclass(frozen=True)
class TextModel:
    """The tensors of a text model, by their names without a prefix.

    The first `running` of `layers` run. `tied`: the head is the embedding. `head`: the head runs too.
    """

    family: Family
    table: Table
    layers: tuple[LayerKind, ...]
    running: int
    tied: bool
    head: bool = False

    def names(self, num_layers: int) -> list[str]:
        """Return the names of embedding, final norm and this many layers."""
        named = [entry.tensors([]) for entry in (*self.table.embedding.values(), *self.table.final_norm.values())]
        for layer, kind in enumerate(self.layers[:num_layers]):
            named += [entry.tensors([layer]) for entry in self.table.block(kind).values()]
        return list(dict.fromkeys(self.short(name) for names in named for name in names))

    @property
    def embedding(self) -> str:
        """The name of the embedding."""
        return self.short(self.table.embedding["table"].name)

    @property
    def block(self) -> str:
        """The name of a tensor of the first layer, with `{l}` in place of the layer."""
        return self.short(next(iter(self.table.block(self.layers[0]).values())).name)

    def covers(self, name: str) -> bool:
        """Return whether a tensor of this name belongs to a layer that runs, the embedding or the final norm."""
        if number := re.match(rf"{re.escape(self.block.partition('{l}')[0])}(\d+)\.", name):
            return int(number[1]) < self.running and not re.search(self.family.buffers, name)
        entries = (*self.table.embedding.values(), *self.table.final_norm.values())
        return _module(name) in {_module(self.short(entry.name)) for entry in entries}

    @cached_property
    def unread(self) -> set[str]:
        """The names of tensors of layers that run, and that none of them reads."""
        running = enumerate(self.layers[: self.running])
        return {self.short(name.format(l=layer)) for layer, kind in running for name in self.family.unread(kind)}

    def short(self, name: str) -> str:
        """Return a name of the table without its prefix."""
        return name.removeprefix(self.family.prefix)


def find_tensors(files: WeightFiles, model: TextModel) -> dict[str, TensorPlace]:
    """Return the place of each needed tensor, by its name in the table. Raises DamagedData."""
    prefix, known = _prefix(files, model), dict.fromkeys(model.names(model.running))
    ignored = list[str]()
    for name, place in files.places.items():
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            if short in model.unread:
                ignored.append(name)
            elif short not in known and model.covers(short):
                raise DamagedData(f"{files.where(place.file)}: tensor {name} is unknown to this architecture")
    if ignored:
        say(f"{files}: ignored, since no layer reads them: {count_of(len(ignored), 'tensor')}, such as {ignored[0]}")
    found = {}
    for name in known:
        _refuse_doubled(files, {prefix, "", model.family.prefix}, name)
        stored = _stored(files, model, prefix, name)
        if stored is None:
            raise DamagedData(f"{files}: {_missing(files, model, prefix, name)}")
        found[model.family.prefix + name] = files.places[stored]
    for entry in model.table.head.values() if model.head else ():
        stored = _above(files, prefix, [entry.name, *(_HEADS if entry.name in _HEADS else ())])
        if not stored and model.tied:
            stored = [found[model.family.prefix + model.embedding].name]
        if not stored:
            missing = f"tensor {entry.name} is missing from the safetensors files"
            raise DamagedData(f"{files}: {missing}: without a head there is no hook_loss")
        found[entry.name] = files.places[stored[0]]
    return found


def _prefix(files: WeightFiles, model: TextModel) -> str:
    """Return the prefix of the text model's names in the files."""
    whole = model.names(max(model.running, 1))
    layer = model.block.replace("{l}", "0")
    found = {
        name.removesuffix(end)
        for name in files.places
        for end in (model.embedding, layer)
        if name == end or name.endswith(f".{end}")
    }
    if not found:
        raise DamagedData(
            f"{files}: no tensor is called {model.family.prefix}{model.embedding}, with this or another prefix "
            f"(there are {', '.join(list(files.places)[:2])}, …): config.json and these files are not of one model"
        )
    count = {prefix: sum(_stored(files, model, prefix, name) is not None for name in whole) for prefix in sorted(found)}
    complete = [prefix for prefix in count if count[prefix] == len(whole)]
    if len(complete) > 1:
        names = " and ".join(prefix + layer for prefix in complete)
        raise DamagedData(
            f"{files}: the whole text model is there more than once, with {names}; save one of them alone"
        )
    return max(count, key=count.__getitem__)


def _refuse_doubled(files: WeightFiles, prefixes: set[str], name: str) -> None:
    there = sorted(prefix + name for prefix in prefixes if prefix + name in files.places)
    if len(there) > 1:
        where = files.where(files.places[there[0]].file)
        raise DamagedData(
            f"{where}: tensor {there[0]} is doubled, also stored as {there[1]}; save the model with one of them"
        )


def _missing(files: WeightFiles, model: TextModel, prefix: str, name: str) -> str:
    """Return an error message for a missing tensor."""
    what = f"tensor {prefix}{name} is missing from the safetensors files"
    if name == model.embedding and (heads := _heads(files, prefix)):
        return f"{what}; {heads[0]} is there, but config.json says that it is another matrix (tie_word_embeddings)"
    if name == model.embedding and model.tied:
        what = f"{what}, and so is the head that has the same values ({_HEADS[0]})"
    if any("lora_" in stored for stored in files.places):
        return f"{what}; they hold a LoRA adapter that is not merged: merge it with peft (merge_and_unload) and save it"
    return f"{what}; save or download the model again, and see that config.json is of the same model"


def _stored(files: WeightFiles, model: TextModel, prefix: str, name: str) -> str | None:
    """Return the name of a tensor in the files, or of a tied head in place of the embedding; None if missing."""
    if prefix + name in files.places:
        return prefix + name
    heads = _heads(files, prefix) if model.tied and name == model.embedding else []
    return heads[0] if heads else None


def _heads(files: WeightFiles, prefix: str) -> list[str]:
    """Return the heads of a text model."""
    return _above(files, prefix, _HEADS)


def _above(files: WeightFiles, prefix: str, names: Sequence[str]) -> list[str]:
    """Return the tensors of these names that there are with the text model's prefix, or with the beginning of it."""
    parts = prefix.split(".")
    above = {"".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts))}
    return sorted(full for place in above | {prefix} for name in names if (full := place + name) in files.places)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
