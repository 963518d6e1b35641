"""What all forms of attention are told, beside their tensors. No jax."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionRule:
    """How scores are made of q and k: `scale * q.k`, capped to +-`softcap` by a tanh, of the last `window` keys only.

    All three are known when the step is compiled.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
