"""Cross-entropies: the negative logarithm of the probability that logits give a label."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating
from jaxprop.rule import Case, Rule
from jaxprop.rules.losses import (
    PairResiduals,
    check_reduction,
    checked_pair,
    per_loss,
    reduce_losses,
    together,
)


def softmax_cross_entropy_reference(
    logits: jax.Array, labels: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Mean over the examples of -log of the probability that softmax(logits) gives the label.

    Use it for classification into one of C classes, and for fitting a distribution over them.

    Scope      rows: logits (B, C), reduction="mean"
    Forward    q = one_hot(labels, logits)                             (F1)
               z = logits - max(logits)                                (F2)
               log_p = z - log(sum(exp(z)))                            (F3)
               loss = -mean_all(sum(q * log_p))                        (F4)
    Backward   dq = -g * log_p / rows(logits)                          (B1) from F4
               dlog_p = -g * q / rows(logits)                          (B2) from F4
               dz = dlog_p - exp(log_p) * sum(dlog_p)                  (B3) from F3
               dlogits = dz                                            (B4) from F2
               dlabels = dq                                            (B5) from F1

    Args:
        logits: (..., C), floating.
        labels: the class of each example, (...), integers from 0 to C - 1, no cotangent; or
            its distribution over the classes, (..., C), floating. The dtype tells which.
        reduction: "mean" or "sum" over the examples (every axis but the last), or "none".

    Returns:
        loss: a scalar, or (...) where reduction="none"; in nats, float32 at least.

    Residuals: logits and labels (arguments), and per example the maximum and the logarithm of
        the sum. The rows of dz sum to 0 (the shift by the maximum changes nothing), so B4 is
        all of F2. The probabilities are recomputed.

    Numerics: statistics in float32 at least, shifted by the maximum. A distribution need not
        sum to 1. A logit of -inf is a class of probability 0: where the label gives it none, it
        adds nothing to the loss and has gradient 0, otherwise the loss is inf. Logits that are
        all -inf, or inf, give nan, and so does an integer label outside 0 to C - 1, in the loss
        and in its example's gradient: jit cannot raise. The mean over no example is nan.

    Raises:
        TypeError: where logits are not floating, or labels neither integers nor floating.
        ValueError: where the shapes do not fit, or the reduction is unknown.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3.
    """
    _check_labels(logits, labels, reduction)
    z, q = together(logits, _one_hot(labels, logits))  # F1
    largest, log_sum = _statistics(z)
    log_p = _log_p(z, q, largest, log_sum)  # F2, F3
    return reduce_losses(-jnp.sum(q * log_p, axis=-1), reduction)  # F4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossEntropyResiduals:
    logits: jax.Array
    labels: jax.Array
    largest: jax.Array
    log_sum: jax.Array
    reduction: str = field(metadata={"static": True})


def softmax_cross_entropy_forward(
    logits: jax.Array, labels: jax.Array, *, reduction: str
) -> tuple[jax.Array, CrossEntropyResiduals]:
    _check_labels(logits, labels, reduction)
    z, q = together(logits, _one_hot(labels, logits))  # F1
    largest, log_sum = _statistics(z)
    log_p = _log_p(z, q, largest, log_sum)  # F2, F3
    loss = reduce_losses(-jnp.sum(q * log_p, axis=-1), reduction)  # F4
    return loss, CrossEntropyResiduals(logits, labels, largest, log_sum, reduction)


def softmax_cross_entropy_backward(
    res: CrossEntropyResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    z, q = together(res.logits, _one_hot(res.labels, res.logits))  # F1, recomputed
    log_p = _log_p(z, q, res.largest, res.log_sum)  # F2, F3, recomputed
    g = per_loss(g, z.shape[:-1], res.reduction)[..., None]
    p = jnp.exp((z - res.largest) - res.log_sum)
    dlog_p = -g * q  # B2
    dlogits = dlog_p - p * jnp.sum(dlog_p, axis=-1, keepdims=True)  # B3, B4
    dlabels = -g * log_p  # B1, B5
    return dlogits, dlabels if res.labels.ndim == z.ndim else None


def sigmoid_binary_cross_entropy_reference(
    logits: jax.Array, labels: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Mean over every element of -log of the probability that sigmoid(logits) gives the label.

    Use it for yes-or-no classification, and for several labels that exclude nothing.

    Scope      any shape, reduction="mean"
    Forward    nats = labels * log(1 + exp(-logits))
                      + (1 - labels) * log(1 + exp(logits))            (F1)
               loss = mean_all(nats)                                   (F2)
    Backward   dlogits = g / size(logits) * (1 / (1 + exp(-logits)) - labels)  (B1) from F1
               dlabels = -g / size(logits) * logits                    (B2) from F1

    Args:
        logits: any shape, floating.
        labels: logits' shape, from 0 to 1; floating, or integer or bool (no cotangent).
        reduction: "mean" or "sum" over every element, or "none".

    Returns:
        loss: a scalar, or logits' shape where reduction="none"; in nats, float32 at least.

    Residuals: logits and labels (arguments).

    Numerics: both logarithms are softplus, stable at any finite logit; neither is subtracted
        from the other, so a small loss keeps its digits. An infinite logit whose label agrees
        gives nan (0 * inf), its gradient does not. The mean of nothing is nan.

    Raises:
        TypeError: where logits are not floating.
        ValueError: where the shapes differ, or the reduction is unknown.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.2.
    """
    labels = _as_floating(labels, logits)
    x, y = checked_pair(
        "sigmoid_binary_cross_entropy", ("logits", logits), ("labels", labels), reduction
    )
    nats = y * jnp.logaddexp(-x, 0.0) + (1 - y) * jnp.logaddexp(x, 0.0)  # F1
    return reduce_losses(nats, reduction)  # F2


def sigmoid_binary_cross_entropy_forward(
    logits: jax.Array, labels: jax.Array, *, reduction: str
) -> tuple[jax.Array, PairResiduals]:
    loss = sigmoid_binary_cross_entropy_reference(logits, labels, reduction=reduction)  # F1, F2
    return loss, PairResiduals(logits, labels, reduction)


def sigmoid_binary_cross_entropy_backward(
    res: PairResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits, labels = together(res.prediction, _as_floating(res.target, res.prediction))
    g = per_loss(g, logits.shape, res.reduction)
    return g * (jax.nn.sigmoid(logits) - labels), -g * logits  # B1, B2


def _as_floating(labels: jax.Array, like: jax.Array) -> jax.Array:
    labels = jnp.asarray(labels)
    kept = jnp.issubdtype(labels.dtype, jnp.floating)
    return labels if kept else labels.astype(jnp.asarray(like).dtype)


def _one_hot(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """The distribution that labels name: integers as one-hot rows, nan where out of range.

    By comparison and not by gathering, which meshes with Explicit axes refuse.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    classes, dtype = logits.shape[-1], at_least_float32(logits.dtype)
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # holds C
    label = wide[..., None]
    outside = (label < 0) | (label >= classes)
    hot = (jnp.arange(classes, dtype=wide.dtype) == label).astype(dtype)
    return jnp.where(outside, jnp.nan, hot)


def _statistics(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum over the classes, and the logarithm of the sum of exp(z - maximum)."""
    largest = lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    return largest, jnp.log(jnp.sum(jnp.exp(z - largest), axis=-1, keepdims=True))


def _log_p(z: jax.Array, q: jax.Array, largest: jax.Array, log_sum: jax.Array) -> jax.Array:
    """log softmax(z), but 0 where the class is impossible and the label says so too: 0 * -inf."""
    return jnp.where((z == -jnp.inf) & (q == 0), 0, (z - largest) - log_sum)  # F2, F3


def _check_labels(logits: jax.Array, labels: jax.Array, reduction: str) -> None:
    owner = "softmax_cross_entropy"
    check_reduction(owner, reduction)
    floating(owner, "logits", logits)
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if not integer and not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"{owner}: labels must be integers (classes) or floating (distributions), got "
            f"{labels.dtype}. Convert them with labels.astype."
        )
    expected = logits.shape[:-1] if integer else logits.shape
    if logits.ndim < 1 or logits.shape[-1] < 1 or labels.shape != expected:
        raise ValueError(
            f"{owner}: logits must be (..., C) with C of at least 1, and labels (...) of integers "
            f"or (..., C) floating, got logits {logits.shape} and labels {labels.shape} of "
            f"{labels.dtype}. Give each example one class, or one distribution."
        )


def softmax_cross_entropy_cases() -> list[Case]:
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 5), jnp.float32)
    odd = jax.random.normal(jax.random.key(1), (2, 3, 7), jnp.float32)
    labels = jnp.array([0, 4, 2, 2], jnp.int32)
    odd_labels = jnp.array([[6, 0, 3], [1, 1, 5]], jnp.int32)
    p = jax.nn.softmax(jax.random.normal(jax.random.key(2), (4, 5), jnp.float32))
    weights = p * jnp.array([[0.5], [1.0], [2.0], [3.0]], jnp.float32)  # rows that do not sum to 1
    rows = {"logits": logits, "labels": labels, "reduction": "mean"}
    masked = jnp.where(jnp.arange(5) == 3, -jnp.inf, logits)
    return [
        Case("classes", (logits, labels)),
        Case("distributions", (logits, p)),
        Case("weighted rows", (logits, weights)),
        Case("sum", (logits, labels), {"reduction": "sum"}, given=rows),
        Case("none", (logits, labels), {"reduction": "none"}, given=rows),
        Case("none, distributions", (logits, p), {"reduction": "none"}, given=rows),
        Case("batch of one", (logits[:1], labels[:1])),
        Case("one class", (logits[:, :1], jnp.zeros(4, jnp.int32))),
        Case("one example without a batch", (logits[0], labels[0]), given=rows),
        Case("more axes", (odd, odd_labels), given=rows),
        Case("uint8 classes", (logits, labels.astype(jnp.uint8))),
        Case("bfloat16", (logits.astype(jnp.bfloat16), labels)),
        Case("bfloat16 against float32", (logits.astype(jnp.bfloat16), p)),
        Case("ties", (jnp.zeros_like(logits), labels), edge=True),
        Case("large", (1e4 * logits, labels), edge=True),
        Case("large, distributions", (1e4 * logits, p), edge=True),
        Case("masked class", (masked, labels), edge=True),
        Case("masked class, one-hot", (masked, jnp.eye(5, dtype=jnp.float32)[labels]), edge=True),
        Case("masked label", (masked, jnp.full(4, 3, jnp.int32)), edge=True),
        Case("label out of range", (logits, jnp.array([0, 5, -1, 1], jnp.int32)), edge=True),
        Case("empty", (logits[:0], labels[:0]), {"reduction": "sum"}, edge=True),
    ]


def sigmoid_binary_cross_entropy_cases() -> list[Case]:
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 3), jnp.float32)
    p = jax.random.uniform(jax.random.key(1), (4, 3), jnp.float32)
    hard, mean = p > 0.5, {"reduction": "mean"}
    large = jnp.array([-1e4, -100.0, 100.0, 1e4], jnp.float32)
    return [
        Case("soft labels", (logits, p)),
        Case("bool labels", (logits, hard)),
        Case("integer labels", (logits, hard.astype(jnp.int32))),
        Case("sum", (logits, p), {"reduction": "sum"}, given=mean),
        Case("none", (logits, p), {"reduction": "none"}, given=mean),
        Case("batch of one", (logits[:1], p[:1])),
        Case("scalar", (logits[0, 0], p[0, 0])),
        Case("bfloat16", (logits.astype(jnp.bfloat16), p.astype(jnp.bfloat16))),
        Case("zeros", (jnp.zeros_like(logits), p), edge=True),
        Case("large, label 0", (large, jnp.zeros_like(large)), edge=True),
        Case("large, label 1", (large, jnp.ones_like(large)), edge=True),
        Case("empty", (logits[:0], p[:0]), {"reduction": "sum"}, edge=True),
    ]


softmax_cross_entropy = Rule(
    softmax_cross_entropy_reference,
    softmax_cross_entropy_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_cases,
)
sigmoid_binary_cross_entropy = Rule(
    sigmoid_binary_cross_entropy_reference,
    sigmoid_binary_cross_entropy_forward,
    sigmoid_binary_cross_entropy_backward,
    sigmoid_binary_cross_entropy_cases,
    budget=0,
)
