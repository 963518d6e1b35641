"""The form of attention that a device chooses, compared with plain attention before a step uses it.

In: a configuration, the options of a step, its mesh. Guarantee: a kernel that does not compile, that fails, or that is
further from plain attention of the same numbers in float32 than rounding explains raises InvalidRequest, which names
the flag for plain attention. A query is compared by its own values, so that none can hide among others; padding must be
finite. Cost: nothing where plain attention is chosen, as on a CPU. Else two programs for each kind of attention, with
two rows on each device of at most 2,048 tokens or twice the window, in blocks like those of the step: a few seconds of
compilation, which the compile cache keeps, and milliseconds of arithmetic, while the weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..core.errors import InvalidRequest
from .attention import attend_blocks, form_for
from .attention_rule import AttentionRule, rule_of
from .capture_plan import CapturePlan
from .config import ModelConfig
from .devices import current_device, is_gone, is_of_device
from .splash_blocks import splash_block
from .step_options import StepOptions

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Of the norm of a query's values in a head: several times what rounding weights and results gives.
LIMITS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
_SHORT_DOCUMENTS = (1, 2, 61, 127, 129, 3)  # tokens; some end at, before and behind the edge of a kernel's block
_LONGEST, _KV_HEADS = 2048, 2
_TILE = 128  # tokens; the blocks of a GPU's kernels divide it
_OTHER_WAY = "give --attention plain, which needs no kernel and is slower, and please report this"


class Case(NamedTuple):
    """A kind of attention: the shapes of its tensors, its rule and whether it has sinks."""

    dtype: str
    length: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    value_width: int
    rule: AttentionRule
    sinks: bool

    def __str__(self) -> str:
        words = [f"{self.dtype}, {self.num_heads} heads of {self.head_width}, {self.num_kv_heads} of keys"]
        words += [f"window {self.rule.window}"] * (self.rule.window is not None)
        words += ["softcap"] * (self.rule.softcap is not None) + ["sinks"] * self.sinks
        return ", ".join(words)


class _Tensors(NamedTuple):
    q: Float[np.ndarray, "B T H Dh"]
    k: Float[np.ndarray, "B T K Dh"]
    v: Float[np.ndarray, "B T K Dv"]
    segment_ids: Int[np.ndarray, "B T"]
    sinks: Float[np.ndarray, " H"] | None


def check_attention(
    config: ModelConfig, options: StepOptions, mesh: jax.sharding.Mesh, choose: Callable = form_for
) -> None:
    """Compare each kind of attention of a step with the plain form. `choose` has the arguments of `form_for`.

    Raises InvalidRequest for a kernel that is wrong or fails, and what jax raises if a device disappears, or fails
    or lacks memory while it runs the kernel.
    """
    for case in cases_of(config, options):
        with jax.set_mesh(mesh):
            q = jax.ShapeDtypeStruct((1, case.length, case.num_heads, case.head_width), case.dtype)
            form = choose(current_device(), q, case.rule, case.sinks, case.value_width)
            if form is not attend_blocks:
                _compare(form, case, mesh)


def cases_of(config: ModelConfig, options: StepOptions) -> list[Case]:
    """Return the kinds of attention of a step, none for the plain form; two key-value heads for each device."""
    if options.attention == "plain":
        return []
    plan, cases = CapturePlan.of(options.hook_points, config), []
    for kind in dict.fromkeys(config.layers[: plan.num_layers]):
        if kind.recurrent or "attention" not in kind.parts:
            continue
        rule = rule_of(config, kind, options.seq_len)
        kv_heads = min(kind.num_kv_heads, _KV_HEADS * options.mesh.model)
        heads = kv_heads * (kind.num_heads // kind.num_kv_heads)
        length = checked_length(options.seq_len, max(_LONGEST, 2 * (rule.window or 0)))
        shape = (length, heads, kv_heads, kind.head_width, kind.value_width)
        cases.append(Case(options.compute_dtype, *shape, rule, config.sinks))
    return list(dict.fromkeys(cases))


def checked_length(length: int, most: int) -> int:
    """Return the length of rows to check: that of the step, or up to `most` (2,048 or more) one with the same blocks.

    The kernel of a TPU then has blocks as large, and each kernel a last block as full.
    """
    if length <= most:
        return length
    alike = (each for each in range(most, 0, -1) if (each - length) % _TILE == 0)
    return next(each for each in alike if splash_block(each) == splash_block(length))


def _compare(form: Callable, case: Case, mesh: jax.sharding.Mesh) -> None:
    """Raise InvalidRequest if the form fails, or differs from plain attention by more than rounding."""
    tensors, name = _draw(case, mesh.shape["data"]), current_device().name
    kernel, arrays = f"the attention kernel for {name} ({case})", _placed(tensors, mesh)
    with _failures(kernel, is_gone):  # a compiler's error is about the kernel, whatever its status
        program = _compiled(form, case, arrays)
    with _failures(kernel, is_of_device):
        ours = np.asarray(program(*arrays))
    wide = tensors._replace(**{part: getattr(tensors, part).astype(np.float32) for part in ("q", "k", "v")})
    arrays = _placed(wide, mesh)
    plain = np.asarray(_compiled(attend_blocks, case._replace(dtype="float32"), arrays)(*arrays))
    real = tensors.segment_ids > 0
    errors = np.linalg.norm((ours - plain)[real], axis=2) / np.linalg.norm(plain[real], axis=2)  # [tokens, H]
    worst = errors.max() if np.isfinite(ours).all() else np.inf
    if not worst <= LIMITS[case.dtype]:
        raise InvalidRequest(
            f"the attention kernel for {name} is wrong ({case}): its values differ from plain attention by {worst:.2g} "
            f"of their norm; rounding explains at most {LIMITS[case.dtype]:g}; {_OTHER_WAY}"
        )


def _placed(tensors: _Tensors, mesh: jax.sharding.Mesh) -> list[jax.Array]:
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    arrays = [jax.device_put(array, rows) for array in tensors[:4]]
    return arrays if tensors.sinks is None else [*arrays, jax.device_put(tensors.sinks, whole)]


def _compiled(form: Callable, case: Case, arrays: list[jax.Array]) -> jax.stages.Compiled:
    """Return the program of a form, which gives float32 [B, T, H, Dv]."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *sinks: jax.Array) -> jax.Array:
        return form(q, k, v, ids, case.rule, *sinks).astype(jnp.float32)

    # A GPU's compiler would try many forms of each product, which takes longer than all of them here.
    options = {"xla_gpu_autotune_level": 0} if current_device().platform == "gpu" else None
    with jax.default_matmul_precision("highest" if case.dtype == "float32" else "default"):
        return jax.jit(attend, compiler_options=options).lower(*arrays).compile()


def _draw(case: Case, groups: int) -> _Tensors:
    """Return tensors of two rows for each group of devices: a row of short documents and padding, and one document.

    The scores differ enough for a softcap or a sink to matter.
    """
    short = [size for size in _SHORT_DOCUMENTS if size <= case.length // 8]
    padding = case.length // 32
    documents = [*short, case.length - sum(short) - padding]
    packed = np.pad(np.repeat(np.arange(1, len(documents) + 1), documents), (0, padding))
    segment_ids = np.tile(np.stack([packed, np.ones_like(packed)]), (groups, 1)).astype(np.int32)

    rng = np.random.default_rng(0)
    heads = ((case.num_heads, case.head_width), (case.num_kv_heads, case.head_width))
    shapes = [(2 * groups, case.length, *own) for own in (*heads, (case.num_kv_heads, case.value_width))]
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in shapes)
    q *= (case.rule.softcap or 4) / 2 / (case.rule.scale * case.head_width**0.5)
    sinks = np.linspace(0, 6, case.num_heads).astype(jnp.dtype(case.dtype)) if case.sinks else None
    q, k, v = (part.astype(jnp.dtype(case.dtype)) for part in (q, k, v))
    return _Tensors(q, k, v, segment_ids, sinks)


@contextmanager
def _failures(kernel: str, is_another: Callable[[Exception], bool]) -> Iterator[None]:
    """Raise InvalidRequest for whatever a kernel raises, unless the error has another cause."""
    try:
        yield
    except Exception as error:
        if is_another(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InvalidRequest(f"{kernel} does not run: {reason}; {_OTHER_WAY}") from error
