"""What cross-entropies share: labelled rows of logits, their losses and gradients.

The labels F and B are those of softmax_cross_entropy, which has every line.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32
from jaxprop.rules.losses import divisor


class Inputs(NamedTuple):
    logits: jax.Array
    labels: jax.Array
    weights: jax.Array | None = None
    class_weights: jax.Array | None = None
    label_smoothing: jax.Array | None = None
    z_loss: jax.Array | None = None


class Statistics(NamedTuple):
    """Of each row of logits, their axis kept; lse is the sum of both."""

    largest: jax.Array
    log_sum: jax.Array


@dataclass(frozen=True)
class Examples:
    """The inputs, ready to compute with; columns are per example, (..., 1).

    In the dtype of the loss, but for the logits: they are converted where they are read.
    """

    logits: jax.Array
    labels: jax.Array  # classes from 0 to C - 1 (others give nan), or distributions
    kept: jax.Array | bool  # a column: whether the label is not ignored
    weights: jax.Array | float  # a column, 0 where the label is ignored
    class_weights: jax.Array | float
    smoothing: jax.Array | float
    z_loss: jax.Array | float
    share: jax.Array | float  # a column: the class weight of the label
    total: jax.Array | float  # what the mean divides by
    dtype: jnp.dtype

    @property
    def are_classes(self) -> bool:
        return self.labels.ndim < self.logits.ndim

    @property
    def classes(self) -> int:
        return self.logits.shape[-1]


def examples(inputs: Inputs, ignore_index: int | None = None) -> Examples:
    given = [x for x in inputs if x is not None and jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = at_least_float32(*(x.dtype for x in given))

    def wide(x: jax.Array | None, absent: float) -> jax.Array | float:
        return absent if x is None else x.astype(dtype)

    logits, labels = inputs.logits, inputs.labels
    kept: jax.Array | bool = True
    share: jax.Array | float = 1.0
    weights = wide(None if inputs.weights is None else inputs.weights[..., None], 1.0)
    class_weights = wide(inputs.class_weights, 1.0)
    if ignore_index is not None:
        ignored = labels == ignore_index
        labels, kept = jnp.where(ignored, 0, labels), ~ignored[..., None]
        weights = jnp.where(kept, weights, 0.0).astype(dtype)
    if labels.ndim == logits.ndim:
        labels = labels.astype(dtype)
    elif isinstance(class_weights, jax.Array):
        rows = jnp.broadcast_to(class_weights, logits.shape)  # gathers over a mesh need rows
        share = at_label(rows, labels)[..., None]  # F6
    counted = weights * share
    every = float(prod(logits.shape[:-1]))
    total = every if isinstance(counted, float) else divisor(counted)  # F8
    smoothing, z_loss = wide(inputs.label_smoothing, 0.0), wide(inputs.z_loss, 0.0)
    return Examples(
        logits, labels, kept, weights, class_weights, smoothing, z_loss, share, total, dtype
    )


def statistics(logits: jax.Array, dtype: jnp.dtype) -> Statistics:
    """The maximum over the classes, and the logarithm of the sum of exp(logits - maximum)."""
    largest = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)).astype(dtype)
    logits, largest = apart((logits, largest))
    exps = jnp.exp(logits.astype(dtype) - largest)
    return Statistics(largest, jnp.log(_sum(exps)))


def apart(arrays: Any) -> Any:
    """The same arrays, of which XLA does not know it.

    What two passes over the logits both compute (their conversion from a lower precision, their
    difference from the maximum) it would else compute once and keep, as large as the logits.
    """
    return lax.optimization_barrier(arrays)


def each_loss(x: Examples, found: Statistics) -> jax.Array:
    """The loss of each example before its weight, a column."""
    losses = -_product(1 - x.smoothing, _label_log_p(x, found))
    if isinstance(x.smoothing, jax.Array):
        losses -= _product(x.smoothing, _mean_log_p(x, found))
    if isinstance(x.z_loss, jax.Array):
        lse = logsumexps(x, found)
        losses += x.z_loss * x.share * lse * lse
    return jnp.where(x.kept, losses, 0)  # F7


def smoothing_slope(x: Examples, found: Statistics) -> jax.Array:
    """The derivative of each loss in label_smoothing, a column: B12 without its sum over rows."""
    of_label = possible(_label_log_p(x, found), 1 - x.smoothing)
    return jnp.where(x.kept, of_label - possible(_mean_log_p(x, found), x.smoothing), 0)


def _label_log_p(x: Examples, found: Statistics) -> jax.Array:
    """sum(class_weights * q * log_p); of classes one logit is read, no row of 0 and 1 is made."""
    if not x.are_classes:
        return _sum(_product(x.class_weights * x.labels, log_probabilities(x, found)))
    exists, _ = _legal(x.labels, x.classes)
    log_p = shifted(at_label(x.logits, x.labels)[..., None].astype(x.dtype), found)
    return _product(x.share, log_p) * jnp.where(exists, 1, jnp.nan).astype(x.dtype)[..., None]


def _mean_log_p(x: Examples, found: Statistics) -> jax.Array:
    """The mean over the classes of class_weights * log_p."""
    logits, (largest, log_sum) = apart((x.logits, found))
    if isinstance(x.class_weights, float):
        return jnp.mean(logits.astype(x.dtype) - largest, axis=-1, keepdims=True) - log_sum
    return _sum(_product(x.class_weights, log_probabilities(x, found))) / x.classes


def reduce_rows(x: Examples, each: jax.Array, reduction: str) -> jax.Array:
    weighted = (x.weights * each)[..., 0]
    if reduction == "none":
        return weighted
    return jnp.sum(weighted) if reduction == "sum" else jnp.sum(weighted) / x.total  # F9


def weigh(
    x: Examples, each: jax.Array, g: jax.Array, reduction: str
) -> tuple[jax.Array, jax.Array | float, jax.Array]:
    """(deach, dtotal, dweights), for any reduction."""
    g = g[..., None] if reduction == "none" else g
    dtotal: jax.Array | float = 0.0
    if reduction == "mean":
        g = g / x.total
        dtotal = -g * reduce_rows(x, each, "mean")  # B2
    dweights = jnp.where(x.kept, g * each + dtotal * x.share, 0)  # B3
    return jnp.broadcast_to(g * x.weights, each.shape), dtotal, dweights[..., 0]  # B1


def logsumexps(x: Examples, found: Statistics) -> jax.Array:
    return jnp.where(x.kept, found.largest + found.log_sum, 0)  # F4


def log_probabilities(x: Examples, found: Statistics) -> jax.Array:
    """log_p; 0 where the label is ignored, whatever the logits are there."""
    return jnp.where(x.kept, shifted(x.logits.astype(x.dtype), found), 0)  # F5


def targets(x: Examples) -> tuple[jax.Array, jax.Array, jax.Array]:
    q = one_hot(x.labels, x.classes, x.dtype) if x.are_classes else x.labels  # F1
    s = (1 - x.smoothing) * q + x.smoothing / x.classes  # F2
    return q, s, x.class_weights * s  # F3


def logits_gradient(
    x: Examples, deach: jax.Array, lse: jax.Array, log_p: jax.Array, t: jax.Array
) -> jax.Array:
    if x.are_classes:  # sum(t), of which the other forms are sums over C
        mass = (1 - x.smoothing) * x.share + x.smoothing * jnp.mean(x.class_weights, dtype=x.dtype)
    else:
        mass = _sum(t)
    dlse = deach * (2 * x.z_loss * x.share * lse + mass)  # B6, B8
    return dlse * jnp.exp(log_p) - deach * t  # B6, B9


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def possible(log_p: jax.Array, t: jax.Array | float) -> jax.Array:
    """log_p, but 0 where the class is impossible and has no weight: 0 * -inf would be nan."""
    return jnp.where((log_p == -jnp.inf) & (t == 0), 0, log_p)


def _product(t: jax.Array | float, log_p: jax.Array) -> jax.Array:
    return t * possible(log_p, t)


def shifted(logits: jax.Array, found: Statistics) -> jax.Array:
    return (logits - found.largest) - found.log_sum


def at_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """The entry of each row of x at its label; that of class 0 where there is no such class."""
    _, label = _legal(labels, x.shape[-1])
    return jnp.take_along_axis(x, label[..., None], axis=-1)[..., 0]


def one_hot(labels: jax.Array, classes: int, dtype: jnp.dtype) -> jax.Array:
    """Classes as rows of 0 and 1, nan where there is no such class; fused, so never stored."""
    inside, label = _legal(labels, classes)
    hot = (jnp.arange(classes, dtype=label.dtype) == label[..., None]).astype(dtype)
    return jnp.where(inside[..., None], hot, jnp.nan)


def _legal(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Whether there is such a class, and the label, 0 where there is not."""
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # holds C
    inside = (wide >= 0) & (wide < classes)
    return inside, jnp.where(inside, wide, 0).astype(jnp.int32)


def sum_rows(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)))
