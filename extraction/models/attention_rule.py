"""The parameters that all forms of attention share, besides their tensors. No jax."""

from dataclasses import dataclass

from .config import LayerKind, ModelConfig


@dataclass(frozen=True)
class AttentionRule:
    """The rule for scores: `scale * q.k`, capped to +-`softcap` by a tanh, over the last `window` keys.

    With `alibi` the slope of a head times the distance of query and key is subtracted. All are constants of the
    compiled step.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False


def rule_of(config: ModelConfig, kind: LayerKind, length: int) -> AttentionRule:
    """Return the rule of a kind of layer for rows of this length."""
    scale = kind.head_width**-0.5 if config.attention_scale is None else config.attention_scale
    window = kind.window if kind.window is not None and kind.window < length else None
    return AttentionRule(scale, window, config.softcap, config.alibi)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slopes of ALiBi (arXiv 2108.12409): powers of 2^(-8 / P), P the largest power of 2 up to `num_heads`.

    Further heads get the odd powers of 2^(-4 / P).
    """
    power = 2 ** (num_heads.bit_length() - 1)
    first = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return first + [2 ** (-4 * (2 * head + 1) / power) for head in range(num_heads - power)]
