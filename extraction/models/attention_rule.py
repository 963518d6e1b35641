"""The parameters that all forms of attention share, besides their tensors. No jax."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionRule:
    """The rule for scores: `scale * q.k`, capped to +-`softcap` by a tanh, over the last `window` keys.

    All three are constants of the compiled step.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
