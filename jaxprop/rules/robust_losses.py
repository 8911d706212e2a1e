"""Losses of regression that grow with the difference, not with its square: outliers do not rule."""

from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.rule import Case, Rule
from jaxprop.rules.losses import (
    PairResiduals,
    check_optional,
    checked_pair,
    per_loss,
    reduce_losses,
    together,
)
from jaxprop.rules.penalties import magnitude
from jaxprop.samples import normal


def mean_absolute_error_reference(
    y_hat: jax.Array, y: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Mean over every element of the absolute difference.

    Use it for regression where outliers should count no more than they are off; what is fitted
    is the median.

    Scope      any shape, reduction="mean"
    Forward    diff = y_hat - y                                        (F1)
               loss = mean_all(abs(diff))                              (F2)
    Backward   ddiff = g * sign(diff) / size(diff)                     (B1) from F2
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

    Numerics: the difference and the sum in the dtype of the loss. At the kink diff = 0 the
        subgradient is 0. The mean of nothing is nan.

    Raises:
        TypeError: where y_hat or y is not floating.
        ValueError: where their shapes differ, or the reduction is unknown.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 10.6.
    """
    y_hat, y = checked_pair("mean_absolute_error", ("y_hat", y_hat), ("y", y), reduction)
    diff = y_hat - y  # F1
    return reduce_losses(magnitude(diff), reduction)  # F2


def mean_absolute_error_forward(
    y_hat: jax.Array, y: jax.Array, *, reduction: str
) -> tuple[jax.Array, PairResiduals]:
    loss = mean_absolute_error_reference(y_hat, y, reduction=reduction)  # F1, F2
    return loss, PairResiduals(y_hat, y, reduction)


def mean_absolute_error_backward(res: PairResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_hat, y = together(res.prediction, res.target)
    diff = y_hat - y  # F1, recomputed
    ddiff = per_loss(g, diff.shape, res.reduction) * jnp.sign(diff)  # B1
    return ddiff, -ddiff  # B2, B3


def huber_reference(
    y_hat: jax.Array,
    y: jax.Array,
    delta: jax.typing.ArrayLike = 1.0,
    *,
    reduction: str = "mean",
) -> jax.Array:
    """Mean over every element of half the squared difference, growing linearly beyond delta.

    Use it for regression with outliers: delta says from which difference on one is an outlier.

    Scope      any shape, reduction="mean"
    Forward    diff = y_hat - y                                        (F1)
               r = abs(diff)                                           (F2)
               c = minimum(r, delta)                                   (F3)
               loss = mean_all(c * (r - c / 2))                        (F4)
    Backward   dc = g * (r - c) / size(diff)                           (B1) from F4
               dr = g * c / size(diff)                                 (B2) from F3, F4
               ddelta = sum_all(dc)                                    (B3) from F3
               ddiff = sign(diff) * dr                                 (B4) from F2
               dy_hat = ddiff                                          (B5) from F1
               dy = -ddiff                                             (B6) from F1

    Args:
        y_hat: any shape, floating.
        y: y_hat's shape, floating, in the units of y_hat.
        delta: a positive scalar, floating, in the units of y_hat.
        reduction: "mean" or "sum" over every element, or "none".

    Returns:
        loss: a scalar, or y_hat's shape where reduction="none"; the wider of the dtypes of y_hat
        and y, float32 at least.

    Residuals: the arguments; diff, r and c are recomputed.

    Numerics: in the dtype of the loss; no square overflows. There is no kink: where r < delta
        dc is 0, which is why B2 and B3 need not ask. The mean of nothing is nan.

    Raises:
        TypeError: where y_hat, y or delta is not floating.
        ValueError: where the shapes differ, delta is not a scalar, or the reduction is unknown.

    Source: Huber (1964), Robust estimation of a location parameter, section 4, where delta is k.
    """
    check_optional("huber", "delta", jnp.asarray(delta), ())
    y_hat, y = checked_pair("huber", ("y_hat", y_hat), ("y", y), reduction)
    r = jnp.abs(y_hat - y)  # F1, F2
    delta = jnp.asarray(delta).astype(r.dtype)
    near, far = jnp.where(r < delta, r, 0), delta * (r - delta / 2)
    return reduce_losses(jnp.where(r < delta, near * near / 2, far), reduction)  # F3, F4


class HuberResiduals(NamedTuple):
    pair: PairResiduals
    delta: jax.Array


def huber_forward(
    y_hat: jax.Array, y: jax.Array, delta: jax.Array, *, reduction: str
) -> tuple[jax.Array, HuberResiduals]:
    loss = huber_reference(y_hat, y, delta, reduction=reduction)  # F1 to F4
    return loss, HuberResiduals(PairResiduals(y_hat, y, reduction), delta)


def huber_backward(res: HuberResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    y_hat, y = together(res.pair.prediction, res.pair.target)
    diff = y_hat - y  # F1, recomputed
    r = jnp.abs(diff)  # F2, recomputed
    c = jnp.minimum(r, res.delta.astype(r.dtype))  # F3, recomputed
    g = per_loss(g, diff.shape, res.pair.reduction)
    ddelta = jnp.sum(g * (r - c))  # B1, B3
    ddiff = jnp.sign(diff) * g * c  # B2, B4
    return ddiff, -ddiff, ddelta  # B5, B6


def log_cosh_reference(y_hat: jax.Array, y: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """Mean over every element of the logarithm of the hyperbolic cosine of the difference.

    Use it as a huber loss without a delta that has all its derivatives: half a square near 0,
    abs(diff) - log(2) far out.

    Scope      any shape, reduction="mean"
    Forward    diff = y_hat - y                                        (F1)
               loss = mean_all(log((exp(diff) + exp(-diff)) / 2))      (F2)
    Backward   ddiff = g * tanh(diff) / size(diff)                     (B1) from F2
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

    Numerics: in the dtype of the loss, near 0 as log1p(2 * sinh(diff / 2) ** 2), so that a small
        loss keeps its digits, and without overflow far out. The mean of nothing is nan.

    Raises:
        TypeError: where y_hat or y is not floating.
        ValueError: where their shapes differ, or the reduction is unknown.

    Source: Chen et al. (2019), Log hyperbolic cosine loss improves variational auto-encoder.
    """
    y_hat, y = checked_pair("log_cosh", ("y_hat", y_hat), ("y", y), reduction)
    diff = y_hat - y  # F1
    is_near = jnp.abs(diff) < 1
    near = jnp.log1p(2 * jnp.square(jnp.sinh(jnp.where(is_near, diff, 0) / 2)))
    far = jnp.logaddexp(diff, -diff) - log(2)
    return reduce_losses(jnp.where(is_near, near, far), reduction)  # F2


def log_cosh_forward(
    y_hat: jax.Array, y: jax.Array, *, reduction: str
) -> tuple[jax.Array, PairResiduals]:
    loss = log_cosh_reference(y_hat, y, reduction=reduction)  # F1, F2
    return loss, PairResiduals(y_hat, y, reduction)


def log_cosh_backward(res: PairResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_hat, y = together(res.prediction, res.target)
    diff = y_hat - y  # F1, recomputed
    ddiff = per_loss(g, diff.shape, res.reduction) * jnp.tanh(diff)  # B1
    return ddiff, -ddiff  # B2, B3


def robust_cases() -> list[Case]:
    y_hat = 2 * normal(0, 4, 3)
    y = normal(1, 4, 3)
    mean, inf = {"reduction": "mean"}, jnp.full(2, jnp.inf, jnp.float32)
    low = y_hat.astype(jnp.bfloat16)
    return [
        Case("matrix", (y_hat, y)),
        Case("sum", (y_hat, y), {"reduction": "sum"}, given=mean),
        Case("none", (y_hat, y), {"reduction": "none"}, given=mean),
        Case("scalar", (y_hat[0, 0], y[0, 0])),
        Case("odd shape", (y_hat.reshape(2, 1, 6), y.reshape(2, 1, 6))),
        Case("bfloat16", (low, y.astype(jnp.bfloat16))),
        Case("bfloat16 against float32", (low, y)),
        Case("equal", (y, y), edge=True),
        Case("large", (1e4 * y_hat, -1e4 * y), edge=True),
        Case("infinite", (inf, -inf), edge=True),
        Case("empty", (y_hat[:0], y[:0]), {"reduction": "sum"}, edge=True),
    ]


def huber_cases() -> list[Case]:
    pair = robust_cases()[0].args
    halves = jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0], jnp.float32)
    return [
        *robust_cases(),
        Case("small delta", (*pair, jnp.float32(0.3))),
        Case("at delta", (halves, 0 * halves, jnp.float32(0.5)), edge=True),
    ]


mean_absolute_error = Rule(
    mean_absolute_error_reference,
    mean_absolute_error_forward,
    mean_absolute_error_backward,
    robust_cases,
    budget=0,
)
huber = Rule(huber_reference, huber_forward, huber_backward, huber_cases, budget=4)
log_cosh = Rule(log_cosh_reference, log_cosh_forward, log_cosh_backward, robust_cases, budget=0)
