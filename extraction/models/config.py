"""The configuration of a forward pass: `ModelConfig` and the `LayerKind` of each layer. No jax.

Widths are in elements, windows in tokens. A field that only some families use has a default without effect.
"""

import json
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from ..format.digests import digest_of
from ..format.dtypes import LOSS_HOOK
from .hooks import EMBED_HOOK, FINAL_HOOK, HOOK_KINDS, kind_of, layer_of


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `fraction` of a head's width is rotated; `attention_factor` scales the result.

    `interleaved`: each even column is rotated against the next one, not the first half against the second.

    `kind` is `default`, `linear`, `llama3`, `yarn`, `dynamic`, `longrope` or `proportional`, which has the frequencies
    of the whole width but turns only `fraction` of them. All but `default` and `longrope` use `factor`; `llama3` uses
    the frequency factors, `yarn` the betas and `truncate`, both `original_max_positions`. A document longer than
    `original_max_positions` has other frequencies with `dynamic`, which depend on its length, and with `longrope`,
    which divides by the long factors in place of the short ones.
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
    interleaved: bool = False
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class QueryGrowth:
    """The factor 1 + rate * log(1 + floor((p + ahead) / every)) of q at position p of a document."""

    rate: float
    every: int
    ahead: int = 0


@dataclass(frozen=True)
class ClampedGate:
    """The product (up + 1) * gate * sigmoid(alpha * gate), where `limit` bounds up on both sides and gate above."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Groups:
    """Groups of experts: a token chooses among the experts of `chosen` of `count` groups.

    A group's score is the sum of its `best` highest scores.
    """

    count: int
    chosen: int
    best: int


@dataclass(frozen=True)
class Experts:
    """A mixture: `per_token` of `count` experts see a token.

    Attributes:
        normalized: whether the weights of the chosen sum to 1, before they are scaled.
        width: that of one expert where a dense mlp of `mlp_width` runs beside the mixture, else None.
        biases: whether the router and the linear maps of the experts have biases.
        gated: whether an expert and the shared mlp have a gate beside their first linear map.
        gate: the gated product of an expert; None for that of a dense mlp.
        sigmoid: whether scores are sigmoids of the router's output; else they are its softmax.
        corrected: whether a learned correction is added to the scores for the choice.
        scaled_input: whether a weight multiplies what its expert reads, not the expert's output.
        groups: the groups that limit the choice, None for none.
        scale: a factor of the weights.
        shared_width: the width of an mlp that sees every token beside the chosen experts, None for none.
        shared_gate: whether that mlp's output is multiplied by the sigmoid of a linear map of x.
    """

    count: int
    per_token: int
    normalized: bool
    width: int | None = None
    biases: bool = False
    gated: bool = True
    gate: ClampedGate | None = None
    sigmoid: bool = False
    corrected: bool = False
    scaled_input: bool = False
    groups: Groups | None = None
    scale: float = 1.0
    shared_width: int | None = None
    shared_gate: bool = False


@dataclass(frozen=True)
class Latent:
    """Latent attention: k and v of all heads are made of one vector of a token, of width `kv_rank`.

    Attributes:
        q_rank: the width of the vector that q is made of, None for x itself.
        rotated_width: the last columns of a head of q and k, which are rotated; those of k are common to all heads.
        value_width: the width of a head of v.
    """

    kv_rank: int
    q_rank: int | None
    rotated_width: int
    value_width: int


@dataclass(frozen=True)
class Recurrence:
    """A state for each head in place of attention.

    Its values have the layer's `num_heads` heads of `head_width`, its queries and keys `num_kv_heads` of `key_width`.
    The short convolution sees `taps` tokens.
    """

    key_width: int
    taps: int


class DeltaNet(Recurrence):
    """A Gated DeltaNet: a token corrects what the state answers to its key."""


@dataclass(frozen=True)
class Mamba(Recurrence):
    """Mamba-2: a token adds its value to the state; its time step is at least `least_step`.

    `activation` follows the convolution.
    """

    least_step: float
    activation: str


@dataclass(frozen=True)
class LayerKind:
    """The differences between layers, besides their weights. Layers of one kind run the same program.

    Attributes:
        mlp_width: F; for a mixture, of one expert.
        rope: the rotation of q and k, None for none.
        window: tokens that attention sees, its own included; None for all before it.
        chunked: whether a new window begins at each `window` tokens of a document, in place of one that moves along.
        growth: the factor of q that grows with the position, None for none.
        unit_heads: whether heads of q and k are divided by their root mean square, after the rotation.
        experts: the mixture, None for a dense mlp.
        v_is_k: whether v is made of the output of k's projection, without one of its own.
        kv_kept_as: the number of this layer, if later layers use its k and v.
        kv_of: the earlier layer whose k and v this layer uses, if it has none of its own.
        recurrent: the recurrence in place of attention, None for attention.
        parts: `attention` (or what is in its place), `mlp` or both: the parts of the layer.
        latent: the latent attention, None for plain attention.
    """

    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    rope: Rope | None = None
    window: int | None = None
    chunked: bool = False
    growth: QueryGrowth | None = None
    unit_heads: bool = False
    experts: Experts | None = None
    v_is_k: bool = False
    kv_kept_as: int | None = None
    kv_of: int | None = None
    latent: Latent | None = None
    recurrent: Recurrence | None = None
    parts: tuple[str, ...] = ("attention", "mlp")

    @property
    def required_recurrence(self) -> Recurrence:
        """Return the recurrence. Raises ValueError for a layer with attention."""
        if self.recurrent is None:
            raise ValueError("this kind of layer has attention")
        return self.recurrent

    @property
    def required_experts(self) -> Experts:
        """Return the experts. Raises ValueError for a layer without a mixture."""
        if self.experts is None:
            raise ValueError("this kind of layer has no mixture of experts")
        return self.experts

    @property
    def value_width(self) -> int:
        """The width of a head of v."""
        return self.latent.value_width if self.latent else self.head_width

    @property
    def rotated_width(self) -> int:
        """The width of the part of a head that a rotation is for."""
        return self.latent.rotated_width if self.latent else self.head_width

    @property
    def heads_width(self) -> int:
        """The width of all heads side by side."""
        return self.num_heads * self.head_width

    @property
    def mixed_width(self) -> int:
        """The width of the results of all heads side by side."""
        return self.num_heads * self.value_width

    @property
    def values_width(self) -> int:
        """The width of all heads of v side by side."""
        return self.num_kv_heads * self.value_width

    @property
    def kv_width(self) -> int:
        """The width of all key-value heads side by side."""
        return self.num_kv_heads * self.head_width

    @property
    def inner_width(self) -> int:
        """The width of what one token is inside all the mlps that see it."""
        if "mlp" not in self.parts:
            return 0
        if self.experts is None:
            return self.mlp_width
        of_experts = self.experts.per_token * (self.experts.width or self.mlp_width)
        return of_experts + (self.mlp_width if self.experts.width else 0) + (self.experts.shared_width or 0)

    @property
    def num_experts(self) -> int:
        """E, the experts of a mixture."""
        return self.required_experts.count

    @property
    def experts_per_token(self) -> int:
        """k, the experts that see a token."""
        return self.required_experts.per_token


@dataclass(frozen=True)
class PerLayer:
    """Embeddings of tokens that each layer has of its own, beside the model's: their width and vocabulary."""

    width: int
    vocab_size: int


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a decoder.

    Attributes:
        layers: the kind of each layer.
        max_positions: rows of the embedding of positions, None if positions are not learned.
        qk_norm: `head` or `width` if q and k are normalized over each head or over all heads; `each_head` if each head
            has a layer norm of its own.
        output_gate: whether attention's heads are multiplied by the sigmoid of a linear map of its input.
        attention_scale: None for 1 / sqrt(head_width).
        scaled_by_layer: whether attention scores are divided by the number of the layer, counted from 1.
        norms: whether a block has norms `before` attention and mlp, `after` them, or both.
        parallel: whether attention and mlp read the same x.
        shared_norm: whether the norm before attention is also that before the mlp.
        tied: whether the head is the embedding.
        head_bias: whether the head adds a bias to the logits.
        logit_scale: the factor of the logits.
        logit_softcap: the bound of the logits, by a tanh.
        no_loss: the reason why `hook_loss` does not exist, None if it does.
        per_layer: the embeddings that each layer has of its own, None for none.
        embedding_scale: the factor of a `MultipliedEmbedding`.
        residual_scale: the factor of what attention and mlp add to the residual stream.
        alibi: whether attention scores fall linearly with the distance, by a slope of each head.
        sinks: whether the softmax of a head has one more term, a learned score.
        quantised: the quantisation of the weights in the files, None for none.
    """

    family: str
    layers: tuple[LayerKind, ...]
    width: int
    vocab_size: int
    norm_epsilon: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    max_positions: int | None = None
    attention_scale: float | None = None
    scaled_by_layer: bool = False
    softcap: float | None = None
    qk_norm: str | None = None
    output_gate: bool = False
    norms: tuple[str, ...] = ("before",)
    parallel: bool = False
    shared_norm: bool = False
    tied: bool = False
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    no_loss: str | None = None
    per_layer: PerLayer | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    alibi: bool = False
    sinks: bool = False
    quantised: str | None = None

    @property
    def num_layers(self) -> int:
        """L, the layers of the whole model."""
        return len(self.layers)

    @property
    def digest(self) -> str:
        """A digest of the fields that are not their defaults, so that a new field of a later version changes none."""
        return digest_of(json.dumps(_set_fields(self), sort_keys=True).encode())

    def absent_hooks(self, layer: int) -> dict[str, str]:
        """Return the hook points that a layer lacks: {suffix: reason}."""
        here = f"in this {self.family} model, "
        absent = {}
        if self.parallel:
            absent["hook_resid_mid"] = f"{here}attention and mlp are added at once"
        if "before" not in self.norms:
            absent |= dict.fromkeys(NORMALIZED, f"{here}attention and mlp read the residual stream without a norm")
        kind = self.layers[layer]
        if kind.kv_of is not None:
            reason = f"{here}layer {layer} uses those of layer {kind.kv_of}"
            absent |= {"attn.hook_k": reason, "attn.hook_v": reason}
        if kind.recurrent:
            name = "a Mamba-2 layer" if isinstance(kind.recurrent, Mamba) else "a Gated DeltaNet"
            reason = f"{here}layer {layer} is {name}, whose q, k and v are mixed with earlier tokens'"
            absent |= dict.fromkeys(OF_ATTENTION, reason)
        if kind.latent:
            absent["attn.hook_k"] = f"{here}a part of the keys is common to all heads"
        if self.shared_norm:
            absent["ln2.hook_normalized"] = f"{here}attention and mlp read the output of one norm, ln1"
        if kind.experts and kind.experts.width is None:
            reason = f"{here}each token of layer {layer} has its own choice of experts"
            absent |= {"mlp.hook_pre": reason, "mlp.hook_post": reason}
        if not kind.experts:
            absent |= dict.fromkeys(OF_A_MIXTURE, f"{here}layer {layer} has no mixture of experts")
        for part, hooks in OF_PARTS.items():
            if part not in kind.parts:
                absent |= dict.fromkeys((*hooks, "hook_resid_mid"), f"{here}layer {layer} has no {part}")
        return absent

    @property
    def hook_points(self) -> list[str]:
        """The name of every hook point that this model has, in depth order."""
        of_blocks = []
        for layer in range(self.num_layers):
            absent = self.absent_hooks(layer)
            of_blocks += [f"blocks.{layer}.{kind.suffix}" for kind in HOOK_KINDS if kind.suffix not in absent]
        return [EMBED_HOOK, *of_blocks, FINAL_HOOK, *([] if self.no_loss else [LOSS_HOOK])]

    def hook_width(self, hook_point: str) -> int:
        """Return the last axis of this hook point's tensor."""
        kind = kind_of(hook_point)
        if hook_point == LOSS_HOOK:
            return 1
        return self.width if kind.width == "width" else getattr(self.layers[layer_of(hook_point)], kind.width)


OF_ATTENTION = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
NORMALIZED = ("ln1.hook_normalized", "ln2.hook_normalized")
OF_A_MIXTURE = ("mlp.hook_router_logits", "mlp.hook_expert_weights", "mlp.hook_expert_indices")
OF_PARTS = {
    "attention": ("ln1.hook_normalized", "hook_attn_in", *OF_ATTENTION, "attn.hook_z", "hook_attn_out"),
    "mlp": ("ln2.hook_normalized", "hook_mlp_in", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"),
}


def _set_fields(value: Any) -> Any:
    """Return a value of the configuration as JSON, without the fields that are their defaults and `no_loss`, a text."""
    if isinstance(value, tuple):
        return [_set_fields(inner) for inner in value]
    if not is_dataclass(value):
        return value
    named = {each.name: getattr(value, each.name) for each in fields(value) if each.name != "no_loss"}
    defaults = {each.name: _default(each) for each in fields(value)}
    return {name: _set_fields(inner) for name, inner in named.items() if inner != defaults[name]}


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
