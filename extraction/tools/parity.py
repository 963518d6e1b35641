"""Measure how far our activations are from those of the Hugging Face model, for each hook point, on real records.

In: a model, records, hook points. Out: a `Parity`: relative error, cosine and the worst token of each hook point.
Ours are what a worker would store: packed with other documents, in the compute dtype and rounded to the store dtype.
The reference is transformers' torch model in float32 on the CPU, one document at a time, each tensor taken where the
module that makes it is called. Guarantee: both see the same token ids, which are those of tokenizer.json alone; the
same machine gives the same numbers.

Cost: both models in host memory, the values of one step of ours and of one document of the reference, and a forward
pass of torch for each record.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.packing import BatchShape, PackedBatch, pack_batches
from ..batching.token_selection import Selection
from ..batching.tokenizer import RecordTokenizer
from ..core.errors import DamagedData, InvalidRequest
from ..core.strict_json import dumps
from ..format.dtypes import LOSS_HOOK
from ..format.records import Cursor, Record
from ..models.devices import open_devices
from ..models.families import family_of
from ..models.hooks import layer_of, suffix_of
from ..models.location import ModelFolder
from ..models.step import Step, load_step
from ..storage import open_storage
from ..streams.extensions import load_manifest
from ..streams.stream import open_stream
from ..worker.flags import ParityFlags
from ..worker.resolve import resolve_model, resolve_step
from .reference_ids import IdComparison, OurIds, compare_ids

SCHEMA = 2


@dataclass
class Distance:
    """Of one hook point, over all tokens seen: sums, and the token whose relative error is the largest."""

    squared_error: float = 0.0
    squared_norm: float = 0.0
    cosines: float = 0.0
    num_tokens: int = 0
    worst: dict[str, Any] = field(default_factory=lambda: {"relative_error": -1.0})

    def add(self, record_id: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Add one document: [t, width] each."""
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        errors, norms = np.linalg.norm(ours - theirs, axis=1), np.linalg.norm(theirs, axis=1)
        tiny = np.finfo(np.float64).tiny
        self.squared_error += float((errors**2).sum())
        self.squared_norm += float((norms**2).sum())
        self.cosines += float(((ours * theirs).sum(1) / np.maximum(np.linalg.norm(ours, axis=1) * norms, tiny)).sum())
        self.num_tokens += len(ours)
        relative = errors / np.maximum(norms, tiny)
        if not np.isfinite(relative).all():
            at = int(np.isfinite(relative).argmin())
            raise DamagedData(f"record {record_id}: position {at} has values that are no finite numbers")
        at = int(relative.argmax())
        if relative[at] > self.worst["relative_error"]:
            self.worst = {"relative_error": float(relative[at]), "record": record_id, "position": at}

    @property
    def relative_error(self) -> float:
        """‖ours - theirs‖ / ‖theirs‖ over all values."""
        return float(np.sqrt(self.squared_error / max(self.squared_norm, np.finfo(np.float64).tiny)))

    def to_json(self) -> dict[str, Any]:
        """Return the distance as a JSON object."""
        cosine = self.cosines / max(self.num_tokens, 1)
        return {"relative_error": self.relative_error, "mean_cosine": cosine, "worst_token": self.worst}


@dataclass(frozen=True)
class Parity:
    """A comparison: its setting, the distance of the values of each hook point, and the token ids."""

    setting: dict[str, Any]
    distances: dict[str, Distance]
    token_ids: IdComparison

    @property
    def worst(self) -> float:
        """The largest relative error of a hook point."""
        return max(distance.relative_error for distance in self.distances.values())

    def to_json(self) -> dict[str, Any]:
        """Return setting, distances and token ids as a JSON object."""
        found = {name: distance.to_json() for name, distance in self.distances.items()}
        token_ids = self.token_ids.to_json()
        return {"schema": SCHEMA, "setting": self.setting, "token_ids": token_ids, "hook_points": found}

    def to_text(self) -> str:
        """Return a line for each hook point, and what there is to say of the token ids."""
        width = max(map(len, self.distances))
        lines = [f"{'hook point':{width}}  relative error  mean cosine  worst token"]
        for name, distance in self.distances.items():
            found = distance.to_json()
            worst = found["worst_token"]
            lines.append(
                f"{name:{width}}  {found['relative_error']:14.2e}  {found['mean_cosine']:11.8f}  "
                f"{worst['relative_error']:.2e}, position {worst['position']} of {worst['record']}"
            )
        return "\n".join([*lines, self.token_ids.to_text()])

    def store(self, output: str) -> str:
        """Put it beside a run, under a name made of its content; the object's name. The same again is adopted."""
        data = dumps(self.to_json(), indent=2)
        name = f"parity-{hashlib.sha256(data).hexdigest()[:16]}.json"
        open_storage(output).create(name, data)
        return name


def measure(flags: ParityFlags) -> Parity:
    """Run both models over the records. Raises InvalidRequest (no torch, no records), and what loading raises."""
    if importlib.util.find_spec("torch") is None:
        raise InvalidRequest("parity compares with torch, which is not installed here: pip install torch")
    model = resolve_model(flags, default_hooks="*")
    if model.folder.bucket:
        raise InvalidRequest(f"--model {flags.model}: parity needs a folder on this machine; copy it first")
    tokenizer = RecordTokenizer(model.folder.path, flags.bos, model.config.vocab_size)
    records = list(islice(_records(flags), flags.records))
    tokenizer.require_tokens(records)
    tokenized = list(tokenizer.tokenize(records))
    if not any(len(record.tokens) for record in tokenized):
        raise InvalidRequest("parity found no tokens to compare: give --streams or --text with some text in it")
    texts = [record for record in records if record.tokens is None]
    ours = OurIds(list(tokenizer.special_tokens().record_prefix), tokenizer.text_ids(texts))
    token_ids = compare_ids(model.folder.path, texts, ours, model.config.vocab_size)
    hardware = open_devices()
    options = resolve_step(flags, model, Selection(), hardware)
    step = load_step(model.folder, model.config, options)
    reference = TorchReference.load(model.folder, model.hook_points)

    distances, num_records = {name: Distance() for name in model.hook_points}, 0
    for batch in pack_batches(tokenized, Cursor(0, 0), BatchShape(1, options.batch_size, options.seq_len), "truncate"):
        num_records += batch.num_records
        for record_id, tokens, ours in documents_of(batch, step):
            for name, theirs in reference(tokens).items():
                # The last token of a record has no loss.
                last = len(tokens) - 1 if name == LOSS_HOOK else len(tokens)
                if last:
                    distances[name].add(record_id, ours[name][:last], theirs[:last])
    num_tokens = next(iter(distances.values())).num_tokens
    found = {"devices": hardware.name, "records": num_records, "tokens": num_tokens}
    return Parity(_setting(flags, model.folder, step) | found, distances, token_ids)


def _setting(flags: ParityFlags, folder: ModelFolder, step: Step) -> dict[str, Any]:
    """Return what was compared, as far as it decides the numbers."""
    return {
        "model": folder.name, "revision": folder.revision, "weights_digest": step.weights_digest,
        "compute_dtype": step.options.compute_dtype, "store_dtype": step.options.store_dtype,
        "seq_len": step.options.seq_len, "batch_size": step.options.batch_size, "bos": flags.bos,
        "mesh": str(step.options.mesh),
        "reference": {name: metadata.version(name) for name in ("torch", "transformers")} | {"dtype": "float32"},
    }  # fmt: skip


def _records(flags: ParityFlags) -> Iterator[Record]:
    """Return the first records of stream 0, or the paragraphs of a text file."""
    if flags.streams is not None and flags.text is None:
        return open_stream(load_manifest(flags.streams), flags.streams, 0).read_records()
    if flags.text is None or flags.streams is not None:
        raise InvalidRequest("give --streams or --text, one of them: the records that the models are compared on")
    try:
        paragraphs = Path(flags.text).read_text("utf-8").split("\n\n")
    except OSError as error:
        raise InvalidRequest(f"--text {flags.text}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DamagedData(f"{flags.text}: not UTF-8 ({error})") from error
    texts = filter(None, (paragraph.strip() for paragraph in paragraphs))
    return (Record(index, f"paragraph {index}", text) for index, text in enumerate(texts))


def documents_of(batch: PackedBatch, step: Step) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Yield id, token ids [t] and our values {hook point: [t, width]} of each document of a batch of one step."""
    grids = batch.tokens[0], batch.segment_ids[0], batch.positions[0]
    ours, _ = step(*grids, batch.slots.astype(np.int32), targets=batch.targets[0]).get()
    tokens = batch.tokens.reshape(-1)[batch.slots]
    for record_id, first, end in zip(batch.record_ids, batch.record_offsets, batch.record_offsets[1:], strict=False):
        if first < end:
            yield record_id, tokens[first:end], {name: values[first:end] for name, values in ours.items()}


def reference_class(folder: Path) -> Any:
    """Return the class of transformers that loads the model in a folder: of models that also see, with their head."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    return AutoModelForCausalLM if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText


class TorchReference:
    """Transformers' torch model in float32; called with the ids of one document, it gives {hook point: [t, width]}."""

    def __init__(self, model: Any, hook_points: Iterable[str]):
        self._model, self._wanted = model, tuple(hook_points)
        self._places = family_of(model.config.model_type).places

    @classmethod
    def load(cls, folder: ModelFolder, hook_points: Iterable[str]) -> "TorchReference":
        """Return the model of a folder, with transformers' plain attention."""
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        settings = {"dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": False}
        return cls(reference_class(folder.path).from_pretrained(folder.path, **settings).eval(), hook_points)

    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Run one document of token ids [t] alone; return {hook point: [t, width]}."""
        import torch

        found: dict[str, np.ndarray] = {}
        handles = [self._watch(name, found, len(tokens)) for name in self._wanted if name != LOSS_HOOK]
        self._forget()
        try:
            with torch.no_grad():
                ids = torch.tensor(np.asarray(tokens, np.int64))
                logits = self._model(ids[None], use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        if LOSS_HOOK in self._wanted:
            losses = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
            found[LOSS_HOOK] = np.append(losses.numpy(), np.float32(np.nan))[:, None]
        return found

    def _forget(self) -> None:
        """Restore the frequencies of dynamic NTK, which the model keeps from a longer document before."""
        for module in self._model.modules():
            if getattr(module, "rope_type", None) == "dynamic":
                module.register_buffer("inv_freq", module.original_inv_freq, persistent=False)
                module.max_seq_len_cached = module.original_max_seq_len

    def _watch(self, name: str, found: dict[str, np.ndarray], length: int) -> Any:
        """Keep a hook point's values, which its place names, when the module runs."""
        place = self._places[suffix_of(name)]
        layer = layer_of(name) if name.startswith("blocks.") else None
        text_config = self._model.config.get_text_config()

        def keep(module: Any, inputs: tuple, keywords: dict[str, Any], output: Any) -> None:
            of_input = place.value in ("in", "normalized")
            value = (inputs[0] if inputs else keywords["hidden_states"]) if of_input else output
            if isinstance(value, tuple) and place.value != "outs":
                value = value[int(place.value.partition(".")[2] or 0)]
            values = _arrays(value)
            values = _normalized(values, module) if place.value == "normalized" else values
            values = values if place.pick is None else place.pick(text_config, values)
            found[name] = values.reshape(length, -1)

        return self._module(place.module.format(l=layer)).register_forward_hook(keep, with_kwargs=True)

    def _module(self, names: str) -> Any:
        """Return the first module that the model has of these names with `|` between them."""
        modules = dict(self._model.named_modules())
        return next(modules[name] for name in names.split("|") if name in modules)


def _arrays(value: Any) -> Any:
    """Return a tensor, or each of a tuple of tensors, as an array."""
    return tuple(map(_arrays, value)) if isinstance(value, tuple) else value.detach().numpy()


def _normalized(x: np.ndarray, norm: Any) -> np.ndarray:
    """Return x [..., D], normalized as torch's module does before its gain, in float64."""
    wide = x.astype(np.float64)
    if getattr(norm, "bias", None) is not None or type(norm).__name__.endswith("LayerNorm"):
        wide -= wide.mean(axis=-1, keepdims=True)
    epsilon = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    return wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + epsilon)
