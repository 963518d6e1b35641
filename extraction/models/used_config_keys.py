"""The attributes that the model code of transformers reads, found in its source. No jax and no torch.

In: a configuration of transformers. Out: a `ModelView` of it, which has the attributes that the model's forward pass
reads and no others. Guarantee: no model code is run or imported. Its source is parsed, from the model's class on
through every class and function that it names. Cost: a few files of Python are parsed, 0.1 to 0.2 s.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_SHARED = ("masking_utils.py", "modeling_rope_utils.py")  # code that models share and that reads configurations
_NOT_RUN = "_init_weights"  # makes the values that a file replaces
# Attributes that the code reads and that change no hidden state of a forward pass over whole documents.
_WITHOUT_EFFECT = {
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "hidden_dropout",
    "resid_pdrop",
    "router_jitter_noise",  # training
    "embedding_dropout",
    "residual_dropout",
    "resid_dropout",
    "embed_dropout",
    "dropout",
    "layerdrop",  # training
    "dtype",  # of flash attention
    "pretraining_tp",  # only with `slow_but_exact`, which is refused
    "_attn_implementation",
    "_experts_implementation",
    "reorder_and_upcast_attn",  # another way to the same values
    "max_position_embeddings",  # the longest input; where it shapes a rotation, `rope_parameters` has it too
    "chunk_size",  # of the scan of Mamba-2, which has the same values for any
    "use_mamba_kernels",
    "pad_token_id",  # the row of the embedding that is not trained
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",  # what is returned besides
    "_is_quantized",  # of flash attention
}

_HEADS = ("ForCausalLM", "LMHeadModel")
# Attributes that a head reads and that change no logit: of training, of sizes that the tensors have.
_NOT_OF_LOGITS = {"output_router_logits", "router_aux_loss_coef", "tie_word_embeddings"} | {
    "original_max_position_embeddings",  # where the cache of generation starts anew
    "num_logits_to_keep",  # of the last tokens of a prompt
}


class ModelView:
    """A configuration with only the attributes that its model reads.

    It records the attributes that were read, so that `left` returns the others.
    """

    def __init__(self, config: Any):
        self.model_type: str = config.model_type
        self.model: str = f"{type(config).__name__.removesuffix('Config')}Model"
        self._config, self._asked = config, set[str]()
        self._source = _source_of(config)
        self._read = {self._real(name): otherwise for name, otherwise in _reads(self._source, self.model).items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._real(name) not in self._read:
            raise AttributeError(f"{self.model} of transformers reads no {name}")
        self._asked.add(self._real(name))
        return getattr(self._config, name)

    def of_layers(self, layer_type: str) -> "ModelView":
        """Return the view of the layers of one type, in models whose `per_layer_config` says how layers differ."""
        view = ModelView(self.per_layer_config[layer_type])
        view._asked = self._asked
        return view

    def pass_over(self, *names: str) -> None:
        """Take attributes as read that only layers read which this model does not have."""
        self._asked |= set(map(self._real, names))

    def left(self) -> dict[str, Any]:
        """Return the attributes that the model reads, that were not read here, and that differ from their defaults."""
        default = type(self._config)()
        found = {}
        for name in sorted(self._read.keys() - self._asked - set(map(self._real, _WITHOUT_EFFECT))):
            otherwise = self._read[name]
            value = getattr(self._config, name, otherwise)
            if not callable(value) and (value or None) != (getattr(default, name, otherwise) or None):
                found[name] = value
        return found

    def of_head(self) -> dict[str, Any]:
        """Return the attributes that the head reads besides the model, and that are set."""
        named = [name for name in _definitions(self._source) if name.endswith(_HEADS)]
        read = {self._real(name) for head in named[:1] for name in _reads(self._source, head)}
        found = {name: getattr(self._config, name, None) for name in sorted(read - self._read.keys() - _NOT_OF_LOGITS)}
        return {name: value for name, value in found.items() if value is not None and not callable(value)}

    def ignored(self, written: dict[str, Any]) -> list[str]:
        """Return the keys of a file that neither the class of the configuration nor the model has."""
        kind = type(self._config)
        own = _strings(_definitions(Path(inspect.getfile(kind)))[kind.__name__])
        rotation = getattr(self._config, "rope_parameters", None) or {}
        inner = {key for value in rotation.values() if isinstance(value, dict) for key in value}
        moved = {"original_max_position_embeddings"} & (rotation.keys() | inner)  # by the class of the configuration
        known = self._read.keys() | kind.__dataclass_fields__.keys() | own | moved
        return sorted(key for key in written if key in vars(self._config) and self._real(key) not in known)

    def rope_keys(self, kind: str) -> set[str]:
        """Return the parameters that the model reads for a rotation of this kind."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if kind in ROPE_INIT_FUNCTIONS:
            return _strings(ast.parse(inspect.getsource(ROPE_INIT_FUNCTIONS[kind])))
        nodes = ast.walk(ast.Module(list(_definitions(self._source).values()), []))
        own = [node for node in nodes if getattr(node, "name", "") == "compute_default_rope_parameters"]
        return set().union(*map(_strings, own))

    def _real(self, name: str) -> str:
        return type(self._config).attribute_map.get(name, name)


def _source_of(config: Any) -> Path:
    """Return the source file of the model of a configuration."""
    path = Path(inspect.getfile(type(config)))
    return path.with_name(path.name.replace("configuration_", "modeling_"))


@cache
def _reads(source: Path, name: str) -> dict[str, Any]:
    """Return each attribute of a configuration that a class reads, and the default in its code."""
    found: dict[str, Any] = {}
    seen, left = set[tuple[Path, str]](), [(source, name)]
    while left:
        at = left.pop()
        node = None if at in seen else _definitions(at[0]).get(at[1])
        seen.add(at)
        if isinstance(node, ast.ImportFrom):
            left.extend(_followed(at[0], node, at[1]))
        elif node is not None:
            for inner in _walk(node):
                if isinstance(inner, ast.Name):
                    left.append((at[0], inner.id))
                found |= _read(inner)
    if not found:
        raise LookupError(f"transformers has no {name} in {source}")
    return found


@cache
def _definitions(source: Path) -> dict[str, ast.stmt]:
    """Return the definitions and imports at the top of a file, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(source.read_bytes()).body if source.exists() else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def _followed(source: Path, node: ast.ImportFrom, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the file that defines an imported name, if it is code of a model or shared by models."""
    target = source.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
    if target.name in _SHARED or (target.name.startswith("modeling_") and target.parents[1].name == "models"):
        yield target, next(alias.name for alias in node.names if name in (alias.asname, alias.name))


def _strings(node: ast.AST) -> set[str]:
    return {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)}


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the node and the nodes in it that a forward pass may run."""
    if isinstance(node, ast.FunctionDef) and node.name == _NOT_RUN:
        return
    yield node
    for inner in ast.iter_child_nodes(node):
        yield from _walk(inner)


def _read(node: ast.AST) -> dict[str, Any]:
    """Return the attribute that an expression reads, as `config.x` or `getattr(self.config, "x", otherwise)`."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_config(node.value):
        return {node.attr: None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
        of, name, *others = node.args
        if _is_config(of) and isinstance(name, ast.Constant) and isinstance(name.value, str):
            otherwise = others[0] if others else None
            return {name.value: otherwise.value if isinstance(otherwise, ast.Constant) else None}
    return {}


def _is_config(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.endswith("config")
