"""Losses of regression, and what every loss does with its elements.

A loss is float32 at least. Its `reduction` is "mean", "sum" or "none": over its elements, or
over examples where the loss of an example is one number (softmax_cross_entropy).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import jax
import jax.numpy as jnp

from jaxprop.precision import at_least_float32, floating
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal

REDUCTIONS = ("mean", "sum", "none")


def mean_squared_error_reference(
    y_hat: jax.Array, y: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Mean over every element of the squared difference; there is no half.

    Use it for regression.

    Scope      any shape, reduction="mean"
    Forward    diff = y_hat - y                                        (F1)
               loss = mean_all(diff * diff)                            (F2)
    Backward   ddiff = 2 * g * diff / size(diff)                       (B1) from F2
               dy_hat = ddiff                                          (B2) from F1
               dy = -ddiff                                             (B3) from F1

    Args:
        y_hat: any shape, floating.
        y: y_hat's shape, floating, in the units of y_hat.
        reduction: "mean" or "sum" over every element, or "none".

    Returns:
        loss: a scalar, or y_hat's shape where reduction="none"; the wider of the two dtypes,
        float32 at least.

    Residuals: y_hat and y (arguments); diff is recomputed.

    Numerics: the difference and the sum in the dtype of the loss. The mean of nothing is nan.

    Raises:
        TypeError: where y_hat or y is not floating.
        ValueError: where their shapes differ, or the reduction is unknown.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 5.1.4.
    """
    y_hat, y = checked_pair("mean_squared_error", ("y_hat", y_hat), ("y", y), reduction)
    diff = y_hat - y  # F1
    return reduce_losses(diff * diff, reduction)  # F2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairResiduals:
    prediction: jax.Array
    target: jax.Array
    reduction: str = field(metadata={"static": True})


def mean_squared_error_forward(
    y_hat: jax.Array, y: jax.Array, *, reduction: str
) -> tuple[jax.Array, PairResiduals]:
    loss = mean_squared_error_reference(y_hat, y, reduction=reduction)  # F1, F2
    return loss, PairResiduals(y_hat, y, reduction)


def mean_squared_error_backward(res: PairResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_hat, y = together(res.prediction, res.target)
    diff = y_hat - y  # F1, recomputed
    ddiff = 2 * per_loss(g, diff.shape, res.reduction) * diff  # B1
    return ddiff, -ddiff  # B2, B3


def together(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in one dtype: the widest, float32 at least."""
    arrays = tuple(map(jnp.asarray, arrays))
    dtype = at_least_float32(*(x.dtype for x in arrays))
    return [x.astype(dtype) for x in arrays]


def reduce_losses(losses: jax.Array, reduction: str) -> jax.Array:
    if reduction == "none":
        return losses
    return jnp.sum(losses) if reduction == "sum" else jnp.mean(losses)


def per_loss(g: jax.Array, shape: Sequence[int], reduction: str) -> jax.Array:
    """The cotangent of each loss, from that of their reduction."""
    return jnp.broadcast_to(g / prod(shape) if reduction == "mean" else g, shape)


def checked_pair(
    owner: str, prediction: tuple[str, jax.Array], target: tuple[str, jax.Array], reduction: str
) -> list[jax.Array]:
    """Both arrays in the dtype of the loss, once they are known to fit each other."""
    check_reduction(owner, reduction)
    (name, x), (other, y) = prediction, target
    x, y = floating(owner, name, x), floating(owner, other, y)
    if x.shape != y.shape:
        raise ValueError(
            f"{owner}: {name} and {other} must have the same shape, got {x.shape} and {y.shape}. "
            "Nothing is broadcast: add, drop or repeat an axis."
        )
    return together(x, y)


def divisor(counted: jax.Array) -> jax.Array:
    """What a weighted mean divides by: the sum of what counts; inf where that is 0, to give 0."""
    total = jnp.sum(counted)
    return jnp.where(total == 0, jnp.inf, total)


def check_optional(owner: str, name: str, x: jax.Array | None, shape: tuple[int, ...]) -> None:
    """TypeError or ValueError where an optional argument is neither None nor floating of shape."""
    if x is not None and floating(owner, name, x).shape != shape:
        raise ValueError(
            f"{owner}: {name} must have the shape {shape}, got {jnp.shape(x)}. Nothing is "
            "broadcast: add, drop or repeat an axis, or leave it None."
        )


def check_reduction(owner: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"{owner}: reduction must be one of {REDUCTIONS}, got {reduction!r}.")


def mean_squared_error_cases() -> list[Case]:
    y_hat = normal(0, 4, 3)
    y = normal(1, 4, 3)
    mean = {"reduction": "mean"}
    return [
        Case("matrix", (y_hat, y)),
        Case("sum", (y_hat, y), {"reduction": "sum"}, given=mean),
        Case("none", (y_hat, y), {"reduction": "none"}, given=mean),
        Case("batch of one", (y_hat[:1], y[:1])),
        Case("scalar", (y_hat[0, 0], y[0, 0])),
        Case("odd shape", (y_hat.reshape(2, 1, 6), y.reshape(2, 1, 6))),
        Case("bfloat16", (y_hat.astype(jnp.bfloat16), y.astype(jnp.bfloat16))),
        Case("bfloat16 against float32", (y_hat.astype(jnp.bfloat16), y)),
        Case("no difference", (y, y), edge=True),
        Case("large", (1e4 * y_hat, -1e4 * y), edge=True),
        Case("empty", (y_hat[:0], y[:0]), {"reduction": "sum"}, edge=True),
        Case("empty, none", (y_hat[:0], y[:0]), {"reduction": "none"}, edge=True),
    ]


mean_squared_error = Rule(
    mean_squared_error_reference,
    mean_squared_error_forward,
    mean_squared_error_backward,
    mean_squared_error_cases,
    budget=0,
)
