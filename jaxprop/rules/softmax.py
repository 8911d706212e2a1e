"""Softmax: logits to probabilities along an axis."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def softmax_reference(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """Turn logits into probabilities: y = exp(x) / sum(exp(x)) along an axis.

    Use it for attention weights and mixture weights. As the last layer before a
    cross-entropy use softmax_cross_entropy on the logits instead.

    Scope      rows: x (B, C), axis=-1
    Forward    e = exp(x - max(x))                                     (F1)
               y = e / sum(e)                                          (F2)
    Backward   de = (g - sum(g * y)) / sum(e)                          (B1) from F2
               dx = y * (g - sum(g * y))                               (B2) from F1, F2

    Args:
        x: any shape of at least one axis, floating.
        axis: the axis that y sums to 1 along.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output). The maximum is a shift that y does not depend on, so B2 leaves
        it out.

    Numerics: computed in float32 at least, shifted by the maximum, rounded once. An entry of
        -inf has probability 0 and gradient 0. A row of -inf alone, or with an inf, is nan:
        no distribution has those logits.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x has no such axis.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    x = floating("softmax", "x", x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"softmax: axis must be one of x's {x.ndim} axes, got axis {axis} for x {x.shape}. "
            "Give an axis between -x.ndim and x.ndim - 1."
        )
    e = jnp.exp(up(x) - _largest(up(x), axis))  # F1
    return (e / jnp.sum(e, axis, keepdims=True)).astype(x.dtype)  # F2


def _largest(x: jax.Array, axis: int) -> jax.Array:
    """The maximum, a constant for differentiation; an axis of length 0 has one too."""
    return lax.stop_gradient(jnp.max(x, axis, keepdims=True, initial=-jnp.inf))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftmaxResiduals:
    y: jax.Array
    axis: int = field(metadata={"static": True})


def softmax_forward(x: jax.Array, *, axis: int) -> tuple[jax.Array, SoftmaxResiduals]:
    y = softmax_reference(x, axis=axis)  # F1, F2
    return y, SoftmaxResiduals(y, axis)


def softmax_backward(res: SoftmaxResiduals, g: jax.Array) -> tuple[jax.Array]:
    y, g = up(res.y), up(g)
    return (y * (g - jnp.sum(g * y, res.axis, keepdims=True)),)  # B2


def softmax_cases() -> list[Case]:
    x = 2 * normal(0, 4, 5)
    odd = normal(1, 2, 3, 7)
    masked = jnp.where(jnp.eye(4, 5, dtype=bool), -jnp.inf, x)
    rows = {"x": x, "axis": -1}
    return [
        Case("rows", (x,)),
        Case("batch of one", (x[:1],)),
        Case("one class", (x[:, :1],)),
        Case("vector", (x[0],)),
        Case("more axes", (odd,), given=rows),
        Case("axis 0", (x,), {"axis": 0}, given=rows),
        Case("axis 1 of 3", (odd,), {"axis": 1}, given=rows),
        Case("bfloat16", (x.astype(jnp.bfloat16),)),
        Case("ties", (jnp.zeros_like(x),), edge=True),
        Case("large", (1e4 * x,), edge=True),
        Case("masked", (masked,), edge=True),
        Case("all masked", (jnp.full((2, 3), -jnp.inf, jnp.float32),), edge=True),
        Case("empty", (x[:0],), edge=True),
        Case("no class", (x[:, :0],), edge=True),
    ]


softmax = Rule(softmax_reference, softmax_forward, softmax_backward, softmax_cases, budget=0)
