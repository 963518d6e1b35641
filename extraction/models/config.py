"""The configuration of a forward pass: `ModelConfig`. No jax.

Widths are in elements, windows in tokens. A field that only some families use has a default without effect.
"""

from dataclasses import dataclass

from .hooks import all_hook_points, kind_of


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `fraction` of a head's width is rotated; `attention_factor` scales the result.

    `kind` is `default`, `linear`, `llama3` or `yarn`. `linear`, `llama3` and `yarn` use `factor`; `llama3` uses the
    frequency factors, `yarn` the betas and `truncate`, both `original_max_positions`.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    fraction: float = 1.0


@dataclass(frozen=True)
class Experts:
    """A mixture: `per_token` of `count` experts see a token; `normalized` weights of the chosen sum to 1."""

    count: int
    per_token: int
    normalized: bool


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a decoder.

    Attributes:
        mlp_width: F; for a mixture, of one expert.
        max_positions: rows of the embedding of positions, None if positions are not learned.
        rope: the rotation, None for learned positions.
        window: tokens that a windowed layer attends to, its own included.
        windowed: for each layer whether it has the window; empty if the model has none.
        window_rope: the rotation of windowed layers, None if it is `rope`.
        qk_norm: `head` or `width` if q and k are normalized over each head or over all heads.
        attention_scale: None for 1 / sqrt(head_width).
        parallel: whether attention and mlp read the same x.
        tied: whether the head is the embedding.
    """

    family: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    vocab_size: int
    norm_epsilon: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: Rope | None
    max_positions: int | None = None
    attention_scale: float | None = None
    softcap: float | None = None
    qk_norm: str | None = None
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    window_rope: Rope | None = None
    parallel: bool = False
    experts: Experts | None = None
    tied: bool = False

    @property
    def mixture(self) -> Experts:
        """The experts. Raises ValueError for a model without a mixture."""
        if self.experts is None:
            raise ValueError(f"a {self.family} model has no mixture of experts")
        return self.experts

    @property
    def absent_hooks(self) -> dict[str, str]:
        """The hook points that the blocks of this model lack: {suffix: reason}."""
        absent = {}
        if self.parallel:
            absent["hook_resid_mid"] = f"in this {self.family} model, attention and mlp are added at once"
        if self.experts:
            absent["mlp.hook_post"] = f"in this {self.family} model, each token has its own choice of experts"
        return absent

    @property
    def hook_points(self) -> list[str]:
        """The name of every hook point that this model has, in depth order."""
        return all_hook_points(self.num_layers, self.absent_hooks)

    @property
    def heads_width(self) -> int:
        """The width of all heads side by side."""
        return self.num_heads * self.head_width

    def hook_width(self, hook_point: str) -> int:
        """Return the last axis of this hook point's tensor."""
        return getattr(self, kind_of(hook_point).width)
