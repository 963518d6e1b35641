"""The table of hook points, and the choice among them. No jax.

In: `--layers`, `--hooks`, `--hook-points`, and the hook points that a model lacks. Out: full names in depth order.
Guarantee: each chosen name exists in the model. Cost: none.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..core.errors import InvalidRequest

FINAL_HOOK = "ln_final.hook_normalized"


@dataclass(frozen=True)
class HookKind:
    """A hook point that each block has.

    `width` names the property of `ModelConfig` that is its last axis. Where it `is_split`, each device of the mesh's
    `model` axis holds only its own columns.
    """

    short: str
    suffix: str
    width: str = "width"
    is_split: bool = False


HOOK_KINDS = (
    HookKind("resid_pre", "hook_resid_pre"),
    HookKind("z", "attn.hook_z", "heads_width", is_split=True),
    HookKind("attn_out", "hook_attn_out"),
    HookKind("resid_mid", "hook_resid_mid"),
    HookKind("post", "mlp.hook_post", "mlp_width", is_split=True),
    HookKind("mlp_out", "hook_mlp_out"),
    HookKind("resid_post", "hook_resid_post"),
)
BY_SHORT_NAME = {kind.short: kind for kind in HOOK_KINDS}
BY_SUFFIX = {kind.suffix: kind for kind in HOOK_KINDS}
FINAL_KIND = HookKind("final", FINAL_HOOK)


def kind_of(hook_point: str) -> HookKind:
    """Return the kind of a full name such as `blocks.3.hook_resid_post`."""
    return FINAL_KIND if hook_point == FINAL_HOOK else BY_SUFFIX[suffix_of(hook_point)]


def suffix_of(hook_point: str) -> str:
    """Return what follows the layer in a full name."""
    return hook_point.split(".", 2)[-1]


def all_hook_points(num_layers: int, absent: Container[str] = ()) -> list[str]:
    """Return every hook point, in depth order, of a model whose blocks have all but the `absent` suffixes."""
    suffixes = [kind.suffix for kind in HOOK_KINDS if kind.suffix not in absent]
    return [*(f"blocks.{layer}.{suffix}" for layer in range(num_layers) for suffix in suffixes), FINAL_HOOK]


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
    layers: str | None, hooks: str, hook_points: str | None, num_layers: int, absent: Mapping[str, str]
) -> tuple[str, ...]:
    """Return full names in depth order, from `--layers` with `--hooks`, and from `--hook-points` (names, globs).

    Args:
        layers: the value of `--layers`, or None.
        hooks: the value of `--hooks`, short names.
        hook_points: the value of `--hook-points`, full names and globs, or None.
        num_layers: layers of the model.
        absent: {suffix: reason} of the hook points that the blocks of this model lack; globs ignore them.

    Raises InvalidRequest for a layer, short name or pattern that the model does not have.
    """
    names = all_hook_points(num_layers, absent)
    chosen: set[str] = set()
    for pattern in hook_points.split(",") if hook_points else []:
        found = [name for name in names if fnmatchcase(name, pattern.strip())]
        if not found:
            reason = absent.get(suffix_of(pattern.strip()), f"the model has {num_layers} layers")
            raise InvalidRequest(f"--hook-points {pattern.strip()}: no such hook point: {reason}")
        chosen.update(found)
    for short in hooks.split(",") if layers else []:
        suffix = _suffix_of_short(short.strip(), absent)
        chosen.update(f"blocks.{layer}.{suffix}" for layer in parse_layers(layers or "", num_layers))
    if not chosen:
        raise InvalidRequest("give --layers (with --hooks) or --hook-points: which activations are to be stored?")
    return tuple(name for name in names if name in chosen)


def _suffix_of_short(short: str, absent: Mapping[str, str]) -> str:
    if short not in BY_SHORT_NAME:
        raise InvalidRequest(f"--hooks {short}: choose from {', '.join(BY_SHORT_NAME)}")
    suffix = BY_SHORT_NAME[short].suffix
    if suffix in absent:
        raise InvalidRequest(f"--hooks {short}: no such hook point: {absent[suffix]}")
    return suffix
