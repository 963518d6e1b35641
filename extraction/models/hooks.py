"""The table of hook points, and the choice among them. No jax.

In: `--layers`, `--hooks`, `--hook-points`, and a model's configuration. Out: full names in depth order. Guarantee: each
chosen name exists in the model. Cost: none.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..core.amounts import consecutive
from ..core.errors import InvalidRequest
from ..format.dtypes import LOSS_HOOK

if TYPE_CHECKING:
    from .config import ModelConfig

EMBED_HOOK, FINAL_HOOK = "hook_embed", "ln_final.hook_normalized"
EXPERT_INDICES = "mlp.hook_expert_indices"


@dataclass(frozen=True)
class HookKind:
    """A hook point that a block may have, or that the model has once.

    `width` names the property of `LayerKind` that is its last axis, or is `width` for D. Where it `is_split`, each
    device of the mesh's `model` axis holds only its own columns.
    """

    short: str
    suffix: str
    width: str = "width"
    is_split: bool = False


HOOK_KINDS = (
    HookKind("resid_pre", "hook_resid_pre"),
    HookKind("ln1", "ln1.hook_normalized"),
    HookKind("attn_in", "hook_attn_in"),
    HookKind("q", "attn.hook_q", "heads_width", is_split=True),
    HookKind("k", "attn.hook_k", "kv_width", is_split=True),
    HookKind("v", "attn.hook_v", "values_width", is_split=True),
    HookKind("z", "attn.hook_z", "mixed_width", is_split=True),
    HookKind("attn_out", "hook_attn_out"),
    HookKind("resid_mid", "hook_resid_mid"),
    HookKind("ln2", "ln2.hook_normalized"),
    HookKind("mlp_in", "hook_mlp_in"),
    HookKind("router", "mlp.hook_router_logits", "num_experts"),
    HookKind("expert_weights", "mlp.hook_expert_weights", "experts_per_token"),
    HookKind("expert_indices", EXPERT_INDICES, "experts_per_token"),
    HookKind("mlp_pre", "mlp.hook_pre", "mlp_width", is_split=True),
    HookKind("post", "mlp.hook_post", "mlp_width", is_split=True),
    HookKind("mlp_out", "hook_mlp_out"),
    HookKind("resid_post", "hook_resid_post"),
)
_OF_MODEL = (HookKind("embed", EMBED_HOOK), HookKind("final", FINAL_HOOK), HookKind("loss", LOSS_HOOK, "one"))
DEFAULT_HOOKS = "resid_post"  # of the layers, if any are chosen
PRESETS = {
    "transcoder": ("mlp_in", "mlp_out"),
    "clt": ("resid_mid", "mlp_out"),  # a cross-layer transcoder
    "crosscoder": ("resid_post",),
}
_OF_ALL_LAYERS = ("clt", "crosscoder")  # presets that mean all layers without `--layers`
BY_SHORT_NAME = {kind.short: kind for kind in (*HOOK_KINDS, *_OF_MODEL)}
BY_SUFFIX = {kind.suffix: kind for kind in BY_SHORT_NAME.values()}


def kind_of(hook_point: str) -> HookKind:
    """Return the kind of a full name such as `blocks.3.hook_resid_post`."""
    return BY_SUFFIX[suffix_of(hook_point)]


def suffix_of(hook_point: str) -> str:
    """Return what follows the layer in a full name; the whole name of a hook point outside the blocks."""
    return hook_point.split(".", 2)[-1] if hook_point.startswith("blocks.") else hook_point


def layer_of(hook_point: str) -> int:
    """Return the layer in a full name. Raises ValueError for a hook point outside the blocks."""
    parts = hook_point.split(".", 2)
    if len(parts) < 3 or parts[0] != "blocks":
        raise ValueError(f"{hook_point} is in no block")
    return int(parts[1])


def parse_layers(text: str, num_layers: int) -> list[int]:
    """Return the sorted layers of `all`, lists, ranges `0:24:2` and negatives.

    Raises InvalidRequest naming the part that is wrong.
    """
    if text.strip() == "all":
        return list(range(num_layers))
    layers: set[int] = set()
    for part in text.split(","):
        layers.update(_layers_of(part, text, num_layers))
    if not layers:
        raise InvalidRequest(f"--layers {text}: names none of the model's {num_layers} layers")
    return sorted(layers)


def _layers_of(part: str, text: str, num_layers: int) -> list[int]:
    wrong = InvalidRequest(f"--layers {text}: {part!r} is not a layer, a range or 'all'")
    try:
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
    except ValueError:
        raise wrong from None
    if len(numbers) > 3 or (len(numbers) == 3 and numbers[2] == 0):
        raise wrong
    if len(numbers) > 1:
        return list(range(num_layers)[slice(*numbers)])
    (layer,) = numbers
    if layer is None:
        raise wrong
    if not -num_layers <= layer < num_layers:
        raise InvalidRequest(f"--layers {text}: the model has layers 0 to {num_layers - 1}, there is no {part.strip()}")
    return [layer % num_layers]


def resolve_hook_points(
    layers: str | None, hooks: str, hook_points: str | None, config: "ModelConfig"
) -> tuple[str, ...]:
    """Return full names in depth order, from `--layers` with `--hooks`, and from `--hook-points` (names, globs).

    Args:
        layers: the value of `--layers`, or None.
        hooks: the value of `--hooks`, short names and presets.
        hook_points: the value of `--hook-points`, full names and globs, or None.
        config: the model's configuration; globs skip the hook points that a layer lacks.

    Raises InvalidRequest for a layer, short name or pattern that the model does not have, and for short names of blocks
    without layers, the default aside.
    """
    names = config.hook_points
    chosen: set[str] = set()
    for pattern in hook_points.split(",") if hook_points else []:
        found = [name for name in names if fnmatchcase(name, pattern.strip())]
        if not found:
            raise InvalidRequest(f"--hook-points {pattern.strip()}: {why_absent(pattern.strip(), config)}")
        chosen.update(found)
    given = [short for short in map(str.strip, hooks.split(",")) if short]
    if layers is None and set(given) & set(_OF_ALL_LAYERS):
        layers = "all"
    numbers = parse_layers(layers, config.num_layers) if layers else []
    for short in [short for name in given for short in PRESETS.get(name, (name,))]:
        if short not in BY_SHORT_NAME:
            raise InvalidRequest(f"--hooks {short}: choose from {', '.join((*PRESETS, *BY_SHORT_NAME))}")
        kind = BY_SHORT_NAME[short]
        if not layers and kind not in _OF_MODEL and hooks != DEFAULT_HOOKS:
            raise InvalidRequest(f"--hooks {short}: of which layers? give --layers, such as --layers all")
        chosen.update([kind.suffix] if kind in _OF_MODEL else (_in_layer(kind, layer, config) for layer in numbers))
    if not chosen:
        raise InvalidRequest("give --layers (with --hooks) or --hook-points: which activations are to be stored?")
    return tuple(name for name in names if name in chosen)


def why_absent(hook_point: str, config: "ModelConfig") -> str:
    """Return the reason why no hook point of this model has this name or pattern."""
    suffix = suffix_of(hook_point)
    if suffix == LOSS_HOOK and config.no_loss:
        return f"no such hook point: {config.no_loss}"
    with_it = [layer for layer in range(config.num_layers) if suffix not in config.absent_hooks(layer)]
    layer = hook_point.split(".")[1] if hook_point.startswith("blocks.") else ""
    at = int(layer) if layer.isdecimal() and int(layer) < config.num_layers else 0
    reason = config.absent_hooks(at).get(suffix, f"the model has {config.num_layers} layers")
    if suffix in BY_SUFFIX and 0 < len(with_it) < config.num_layers:
        reason += f"; of its {config.num_layers} layers these have it: {_ranges(with_it)}"
    return f"no such hook point: {reason}"


def _in_layer(kind: HookKind, layer: int, config: "ModelConfig") -> str:
    """Return the full name of a hook point of a block. Raises InvalidRequest if the layer lacks it."""
    name = f"blocks.{layer}.{kind.suffix}"
    if kind.suffix in config.absent_hooks(layer):
        raise InvalidRequest(f"--hooks {kind.short}: {why_absent(name, config)}")
    return name


def _ranges(layers: list[int]) -> str:
    """Return sorted layers as text such as `3,7,11` or `0:3,5`, ranges as `--layers` takes them."""
    return ",".join(f"{first}" if first == last else f"{first}:{last + 1}" for first, last in consecutive(layers))
