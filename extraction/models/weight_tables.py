"""Weight tables: for each part of a model, the path of a parameter -> the tensor in the files. No jax.

In: a model's configuration. Out: a `Table`. Guarantee: a table names each tensor of its layers once for each parameter
that is made of it. Cost: none. Most families name their tensors as Llama does: `llama_table` is the table of those.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .config import LayerKind, ModelConfig

if TYPE_CHECKING:
    import jax

LLAMA_NORMS = {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
GEMMA_NORMS = {
    "norm_attention": "input_layernorm",
    "norm_attention_out": "post_attention_layernorm",
    "norm_mlp": "pre_feedforward_layernorm",
    "norm_mlp_out": "post_feedforward_layernorm",
}


def unchanged(tensor: "jax.Array") -> "jax.Array":
    """Return the tensor."""
    return tensor


def transposed(tensor: "jax.Array") -> "jax.Array":
    """Return [I, O], made of [O, I]."""
    return tensor.T


def to_heads(head_width: int, tensor: "jax.Array") -> "jax.Array":
    """Return [H, Dh, ...], made of [H*Dh, ...]."""
    return tensor.reshape(-1, head_width, *tensor.shape[1:])


def from_heads(head_width: int, tensor: "jax.Array") -> "jax.Array":
    """Return [H, Dh, D], made of [D, H*Dh]."""
    return to_heads(head_width, tensor.T)


@dataclass(frozen=True)
class Entry:
    """The tensor that a parameter is made of, and the function that makes it.

    `{l}` in the name is replaced by the layer. `{e}` is replaced by the expert, or by the head: such a parameter has a
    leading axis of `num_experts` and is filled from as many tensors. `transform` runs on the device, compiled. Two
    entries may use parts of one tensor. A `packed` tensor is of bytes, `transform` gets its scales as a second
    argument.
    """

    name: str
    transform: Callable[..., "jax.Array"] = unchanged
    num_experts: int = 1
    packed: bool = False

    def names(self, layers: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield each tensor's index on the leading axes (place in `layers`, expert) that the name has, and its name."""
        for at, layer in enumerate(layers if "{l}" in self.name else (0,)):
            for expert in range(self.num_experts if "{e}" in self.name else 1):
                index = [n for mark, n in (("{l}", at), ("{e}", expert)) if mark in self.name]
                yield tuple(index), self.name.replace("{l}", str(layer)).replace("{e}", str(expert))

    def tensors(self, layers: Sequence[int]) -> Iterator[str]:
        """Yield the names of all tensors that the parameter is made of, those of scales included."""
        for _, name in self.names(layers):
            yield from (name, *self.scales(name))

    def scales(self, name: str) -> tuple[str, ...]:
        """Return the name of the scales of a packed tensor; of another tensor none."""
        return (f"{name.removesuffix('_blocks')}_scales",) if self.packed else ()


Entries = dict[str, Entry]  # the path of a parameter -> its tensor


class Table(NamedTuple):
    """The entries of each part of a model; `block` returns those of a kind of layer. A head may be the embedding."""

    embedding: Entries
    block: Callable[[LayerKind], Entries]
    final_norm: Entries
    head: Entries


LM_HEAD: Entries = {"table": Entry("lm_head.weight")}


def linear(ours: str, theirs: str, bias: bool) -> Entries:
    """Return the entries of a linear map, whose kernel torch stores as [O, I]."""
    table = {f"{ours}.kernel": Entry(f"{theirs}.weight", transposed)}
    return table | {f"{ours}.bias": Entry(f"{theirs}.bias")} if bias else table


def affine(ours: str, theirs: str) -> Entries:
    """Return the entries of a norm with scale and bias; `ours` ends in a dot if the norm is part of a module."""
    return {f"{ours}scale": Entry(f"{theirs}.weight"), f"{ours}bias": Entry(f"{theirs}.bias")}


def output(config: ModelConfig, kind: LayerKind, theirs: str) -> Entries:
    """Return the entries of attention's output projection, whose kernel torch stores as [D, H*Dh]."""
    table = {"attention.o.kernel": Entry(f"{theirs}.weight", partial(from_heads, kind.value_width))}
    return table | {"attention.o.bias": Entry(f"{theirs}.bias")} if config.output_bias else table


def attention(
    config: ModelConfig, kind: LayerKind, place: str = "model.layers.{l}.self_attn", out: str = "o_proj"
) -> Entries:
    """Return the entries of Llama's attention: q, k, v, o, and the norms of q and k if the model has them."""
    table, heads = output(config, kind, f"{place}.{out}"), partial(to_heads, kind.head_width)
    for name in "qkv":
        theirs = f"{place}.{name}_proj"
        table[f"attention.{name}.kernel"] = Entry(f"{theirs}.weight", heads)
        if config.qkv_bias:
            table[f"attention.{name}.bias"] = Entry(f"{theirs}.bias", heads)
    if config.qk_norm:
        table |= norms({"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"})
    return table


def part_of(
    widths: tuple[int, ...], index: int, transform: Callable[["jax.Array"], "jax.Array"], tensor: "jax.Array"
) -> "jax.Array":
    """Return one of the kernels that are below each other in a tensor, transformed. `widths` are the rows of each."""
    if tensor.shape[0] != sum(widths):
        raise ValueError(f"{tensor.shape[0]} rows in place of {sum(widths)}")
    start = sum(widths[:index])
    return transform(tensor[start : start + widths[index]])


def fused_attention(config: ModelConfig, kind: LayerKind) -> Entries:
    """Return the entries of attention with q, k and v below each other in one tensor, without biases."""
    table, heads = output(config, kind, "model.layers.{l}.self_attn.o_proj"), partial(to_heads, kind.head_width)
    widths = (kind.heads_width, kind.kv_width, kind.kv_width)
    for index, name in enumerate("qkv"):
        part = partial(part_of, widths, index, heads)
        table[f"attention.{name}.kernel"] = Entry("model.layers.{l}.self_attn.qkv_proj.weight", part)
    return table


def fused_mlp(kind: LayerKind) -> Entries:
    """Return the entries of a mlp with gate and up below each other in one tensor, without biases."""
    table = linear("mlp.down", "model.layers.{l}.mlp.down_proj", False)
    for index, name in enumerate(("gate", "up")):
        part = partial(part_of, (kind.mlp_width, kind.mlp_width), index, transposed)
        table[f"mlp.{name}.kernel"] = Entry("model.layers.{l}.mlp.gate_up_proj.weight", part)
    return table


def gated_mlp(config: ModelConfig) -> Entries:
    """Return the entries of Llama's mlp."""
    table: Entries = {}
    for name in ("gate", "up", "down"):
        table |= linear(f"mlp.{name}", f"model.layers.{{l}}.mlp.{name}_proj", config.mlp_bias)
    return table


def mixture_entries(place: str, names: Mapping[str, str], kind: LayerKind) -> Entries:
    """Return the entries of a mixture at `place` of its block, and these `names` of an expert's kernels."""
    mixture = f"model.layers.{{l}}.{place}"
    entries = {"mlp.router.kernel": Entry(f"{mixture}.gate.weight", transposed)}
    for ours, theirs in names.items():
        name = f"{mixture}.experts.{{e}}.{theirs}.weight"
        entries[f"mlp.experts.{ours}.kernel"] = Entry(name, transposed, kind.required_experts.count)
    return entries


named_experts = partial(mixture_entries, "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
# How some files keep the kernels of all experts of a layer: two tensors in place of three for each expert.
EXPERT_STACKS = {"gate_up_proj": ("gate_proj.weight", "up_proj.weight"), "down_proj": ("down_proj.weight",)}


def shared_entries(config: ModelConfig, theirs: str) -> Entries:
    """Return the entries of the mlp that sees every token beside a mixture."""
    table: Entries = {}
    for name in ("gate", "up", "down"):
        table |= linear(f"mlp.shared.{name}", f"{theirs}.{name}_proj", config.mlp_bias)
    return table


def norms(names: Mapping[str, str]) -> Entries:
    """Return the entries of norms without bias in a block, given our name -> the name in the files."""
    return {f"{ours}.scale": Entry(f"model.layers.{{l}}.{theirs}.weight") for ours, theirs in names.items()}


def llama_table(
    config: ModelConfig,
    norm_names: Mapping[str, str] = LLAMA_NORMS,
    mixture: Callable[[LayerKind], Entries] | None = None,
    fused: Sequence[str] = (),
) -> Table:
    """Return the table of a model named as Llama.

    Args:
        config: the model.
        norm_names: our name of each norm of a block -> its name in the files.
        mixture: the entries of a mixture, for kinds of layers that have one.
        fused: `attention`, `mlp` or both, where their first kernels are one tensor.
    """

    def block(kind: LayerKind) -> Entries:
        dense = fused_mlp(kind) if "mlp" in fused else gated_mlp(config)
        mlp = mixture(kind) if mixture and kind.experts else dense
        attend = fused_attention if "attention" in fused else attention
        return attend(config, kind) | mlp | norms(norm_names)

    return Table(
        embedding={"table": Entry("model.embed_tokens.weight")},
        block=block,
        final_norm={"scale": Entry("model.norm.weight")},
        head=LM_HEAD,
    )
