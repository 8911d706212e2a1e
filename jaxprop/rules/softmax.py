"""Softmax, its logarithm, and the logarithm of its denominator, along an axis."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def softmax_reference(x: jax.Array, mask: jax.Array | None = None, *, axis: int = -1) -> jax.Array:
    """Turn logits into probabilities: y = exp(x) / sum(exp(x)) along an axis.

    Use it for attention weights and mixture weights. As the last layer before a
    cross-entropy use softmax_cross_entropy on the logits instead.

    Scope      rows: x (B, C), axis=-1; what is masked is as x = -inf
    Forward    e = exp(x - max(x))                                     (F1)
               y = e / sum(e)                                          (F2)
    Backward   de = (g - sum(g * y)) / sum(e)                          (B1) from F2
               dx = y * (g - sum(g * y))                               (B2) from F1, F2

    Args:
        x: any shape of at least one axis, floating.
        mask: what counts, boolean, of a shape that broadcasts to x's, or None for all.
        axis: the axis that y sums to 1 along.

    Returns:
        y: x's shape and dtype; 0 where masked.

    Residuals: y (the output). The maximum is a shift that y does not depend on, so B2 leaves
        it out.

    Numerics: computed in float32 at least, shifted by the maximum, rounded once. An entry of
        -inf has probability 0 and gradient 0. A row of which all is masked is zeros, value and
        gradient, as in jax.nn. A row of -inf alone, or with an inf, is nan: no distribution has
        those logits. What x is where masked is not read.

    Raises:
        TypeError: where x is not floating, or mask is not boolean.
        ValueError: where x has no such axis, or mask does not broadcast to x.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    x = _checked("softmax", x, mask, axis)
    if mask is None:
        e = jnp.exp(up(x) - _largest(up(x), axis))  # F1
        return (e / jnp.sum(e, axis, keepdims=True)).astype(x.dtype)  # F2
    z, shift, some = _masked(up(x), mask, axis)
    e = jnp.exp(z - shift)  # F1
    total = jnp.where(some, jnp.sum(e, axis, keepdims=True), 1)
    return (e / total).astype(x.dtype)  # F2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftmaxResiduals:
    y: jax.Array
    axis: int = field(metadata={"static": True})


def softmax_forward(
    x: jax.Array, mask: jax.Array | None, *, axis: int
) -> tuple[jax.Array, SoftmaxResiduals]:
    y = softmax_reference(x, mask, axis=axis)  # F1, F2
    return y, SoftmaxResiduals(y, axis)


def softmax_backward(res: SoftmaxResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    y, g = up(res.y), up(g)
    return y * (g - jnp.sum(g * y, res.axis, keepdims=True)), None  # B2


def log_softmax_reference(
    x: jax.Array, mask: jax.Array | None = None, *, axis: int = -1
) -> jax.Array:
    """Turn logits into logarithms of probabilities: y = x - log(sum(exp(x))) along an axis.

    Use it where log-probabilities of every class are wanted. For those of labels use
    softmax_cross_entropy or token_log_probs.

    Scope      rows: x (B, C), axis=-1; what is masked is as x = -inf
    Forward    y = x - log(sum(exp(x)))                                (F1)
    Backward   dx = g - exp(y) * sum(g)                                (B1) from F1

    Args:
        x: any shape of at least one axis, floating.
        mask: what counts, boolean, of a shape that broadcasts to x's, or None for all.
        axis: the axis that exp(y) sums to 1 along.

    Returns:
        y: x's shape and dtype; -inf where masked.

    Residuals: y (the output) and mask (an argument).

    Numerics: computed in float32 at least, shifted by the maximum, rounded once. Where masked, y is
        -inf and the gradient 0, in a row of which all is masked too. A row of -inf alone, or with
        an inf, is nan.

    Raises:
        TypeError: where x is not floating, or mask is not boolean.
        ValueError: where x has no such axis, or mask does not broadcast to x.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    x = _checked("log_softmax", x, mask, axis)
    if mask is None:
        z = up(x) - _largest(up(x), axis)
        return (z - jnp.log(jnp.sum(jnp.exp(z), axis, keepdims=True))).astype(x.dtype)  # F1
    z, shift, some = _masked(up(x), mask, axis)
    total = jnp.where(some, jnp.sum(jnp.exp(z - shift), axis, keepdims=True), 1)
    return jnp.where(mask, z - shift - jnp.log(total), -jnp.inf).astype(x.dtype)  # F1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogSoftmaxResiduals:
    y: jax.Array
    mask: jax.Array | None
    axis: int = field(metadata={"static": True})


def log_softmax_forward(
    x: jax.Array, mask: jax.Array | None, *, axis: int
) -> tuple[jax.Array, LogSoftmaxResiduals]:
    y = log_softmax_reference(x, mask, axis=axis)  # F1
    return y, LogSoftmaxResiduals(y, mask, axis)


def log_softmax_backward(res: LogSoftmaxResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    y, g = up(res.y), up(g)
    g = g if res.mask is None else jnp.where(res.mask, g, 0)
    return g - jnp.exp(y) * jnp.sum(g, res.axis, keepdims=True), None  # B1


def logsumexp_reference(x: jax.Array, mask: jax.Array | None = None, *, axis: int) -> jax.Array:
    """Sum in the domain of logarithms: y = log(sum(exp(x))) along an axis, which goes.

    Use it to add probabilities that are known by their logarithms.

    Scope      one row: x (C,), axis=-1; what is masked is as x = -inf
    Forward    y = log(sum_all(exp(x)))                                (F1)
    Backward   dx = g * exp(x - y)                                     (B1) from F1

    Args:
        x: any shape of at least one axis, floating.
        mask: what counts, boolean, of a shape that broadcasts to x's, or None for all.
        axis: the axis that is summed over.

    Returns:
        y: x's shape without the axis, x's dtype.

    Residuals: x and mask (arguments), the maximum and the sum of exp(x - maximum), two numbers per
        row. Their logarithm y would lose the digits that a large maximum takes.

    Numerics: computed in float32 at least, shifted by the maximum, rounded once. Exponentials are
        recomputed for lower precisions. float32 ones XLA may keep from forward to backward, as it
        does for automatic differentiation; recomputing them takes longer. A row of which
        nothing counts, masked or -inf, is -inf with gradient 0, where jax.scipy has a gradient of
        nan. A row with an inf is inf, and its gradient nan.

    Raises:
        TypeError: where x is not floating, or mask is not boolean.
        ValueError: where x has no such axis, or mask does not broadcast to x.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 4.1.
    """
    x = _checked("logsumexp", x, mask, axis)
    return _log(*_shifted_sum(x, mask, axis)).astype(x.dtype)  # F1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogsumexpResiduals:
    x: jax.Array
    mask: jax.Array | None
    shift: jax.Array
    total: jax.Array
    axis: int = field(metadata={"static": True})


def logsumexp_forward(
    x: jax.Array, mask: jax.Array | None, *, axis: int
) -> tuple[jax.Array, LogsumexpResiduals]:
    x = _checked("logsumexp", x, mask, axis)
    shift, total = _shifted_sum(x, mask, axis)
    y = _log(shift, total).astype(x.dtype)  # F1
    return y, LogsumexpResiduals(x, mask, shift, total, axis)


def logsumexp_backward(res: LogsumexpResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    x, shift, total = res.x, res.shift, res.total
    if x.dtype != total.dtype:  # XLA shall not keep the exponentials of forward in float32
        x, shift, total = lax.optimization_barrier((x, shift, total))
    x = up(x) if res.mask is None else jnp.where(res.mask, up(x), -jnp.inf)
    share = up(g) / jnp.where(total == 0, 1, total)  # where it is 0, all exponentials are
    share, shift = (jnp.expand_dims(array, res.axis) for array in (share, shift))
    return jnp.exp(x - shift) * share, None  # B1


def _shifted_sum(x: jax.Array, mask: jax.Array | None, axis: int) -> tuple[jax.Array, jax.Array]:
    """The largest x that counts, 0 where it is not finite; and sum(exp(x - shift)) without it."""
    z = x if mask is None else jnp.where(mask, x, -jnp.inf)
    largest = up(lax.stop_gradient(jnp.max(z, axis, initial=-jnp.inf)))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return shift, jnp.sum(jnp.exp(up(z) - jnp.expand_dims(shift, axis)), axis)


def _log(shift: jax.Array, total: jax.Array) -> jax.Array:
    """log(total) + shift, -inf where nothing counts."""
    none = total == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, total)) + shift)


def _masked(x: jax.Array, mask: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x with -inf where masked; the maximum, 0 where all is masked; whether some is not."""
    z = jnp.where(mask, x, -jnp.inf)
    some = jnp.any(mask & jnp.ones_like(x, bool), axis, keepdims=True)
    return z, jnp.where(some, _largest(z, axis), 0), some


def _largest(x: jax.Array, axis: int) -> jax.Array:
    """The maximum, a constant for differentiation; an axis of length 0 has one too."""
    return lax.stop_gradient(jnp.max(x, axis, keepdims=True, initial=-jnp.inf))


def _checked(owner: str, x: jax.Array, mask: jax.Array | None, axis: int) -> jax.Array:
    """x, after what is wrong with the arguments has been said."""
    x = floating(owner, "x", x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"{owner}: axis must be one of x's {x.ndim} axes, got axis {axis} for x {x.shape}. "
            "Give an axis between -x.ndim and x.ndim - 1."
        )
    if mask is None:
        return x
    if mask.dtype != bool:
        raise TypeError(
            f"{owner}: mask must be boolean, got {mask.dtype}. True counts; write mask != 0."
        )
    trailing = x.shape[x.ndim - mask.ndim :] if mask.ndim <= x.ndim else None
    if trailing is None or any(m not in (1, n) for m, n in zip(mask.shape, trailing, strict=True)):
        raise ValueError(
            f"{owner}: mask must broadcast to x, got mask {mask.shape} for x {x.shape}. Give it "
            "x's axes, of length 1 where it is the same for all."
        )
    return x


def softmax_cases() -> list[Case]:
    x, odd = 2 * normal(0, 4, 5), normal(1, 2, 3, 7)
    masked = np.where(np.eye(4, 5, dtype=bool), -np.float32(np.inf), x)
    rows = {"x": x, "mask": None, "axis": -1}
    return [
        Case("rows", (x,)),
        Case("a mask", (x, ~np.eye(4, 5, dtype=bool)), given=rows),
        Case("one class", (x[:, :1],)),
        Case("vector", (x[0],)),
        Case("axis 0", (x,), {"axis": 0}, given=rows),
        Case("axis 1 of 3", (odd,), {"axis": 1}, given=rows),
        Case("bfloat16", (x.astype(jnp.bfloat16),)),
        Case("ties", (0 * x,), edge=True),
        Case("large", (1e4 * x,), edge=True),
        Case("masked", (masked,), edge=True),
        Case("a row masked", (x, (np.arange(4) > 0)[:, None]), edge=True),
        Case("all masked", (np.full((2, 3), -np.inf, np.float32),), edge=True),
        Case("empty", (x[:0],), edge=True),
        Case("no class", (x[:, :0],), edge=True),
    ]


def log_softmax_cases() -> list[Case]:
    x, odd = 2 * normal(0, 4, 5), normal(1, 2, 3, 7)
    rows = {"x": x, "mask": None, "axis": -1}
    return [
        Case("rows", (x,)),
        Case("a mask", (x, ~np.eye(4, 5, dtype=bool)), given=rows),
        Case("axis 1 of 3", (odd,), {"axis": 1}, given=rows),
        Case("bfloat16", (x.astype(jnp.bfloat16),)),
        Case("ties", (0 * x,), edge=True),
        Case("large", (1e4 * x,), edge=True),
        Case("a row masked", (x, (np.arange(4) > 0)[:, None]), edge=True),
        Case("empty", (x[:0],), edge=True),
    ]


def logsumexp_cases() -> list[Case]:
    x, odd = 2 * normal(0, 4, 5), normal(1, 2, 3, 7)
    last = {"axis": -1}
    row = {"x": x[0], "mask": None, "axis": -1}
    return [
        Case("rows", (x,), last, given=row),
        Case("a mask", (x, ~np.eye(4, 5, dtype=bool)), last, given=row),
        Case("axis 1 of 3", (odd,), {"axis": 1}, given=row),
        Case("bfloat16", (x.astype(jnp.bfloat16),), last, given=row),
        Case("ties", (0 * x,), last, given=row, edge=True),
        Case("large", (1e4 * x,), last, edge=True),
        Case("a row masked", (x, (np.arange(4) > 0)[:, None]), last, edge=True),
        Case("all masked", (np.full((2, 3), -np.inf, np.float32),), last, edge=True),
        Case("empty", (x[:0],), last, edge=True),
    ]


softmax = Rule(softmax_reference, softmax_forward, softmax_backward, softmax_cases, budget=0)
log_softmax = Rule(
    log_softmax_reference, log_softmax_forward, log_softmax_backward, log_softmax_cases, budget=0
)
logsumexp = Rule(
    logsumexp_reference, logsumexp_forward, logsumexp_backward, logsumexp_cases, budget=8
)
