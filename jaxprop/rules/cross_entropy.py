"""Softmax cross-entropy: minus the logarithm of the probability that logits give a label."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import floating
from jaxprop.rule import Case, Rule
from jaxprop.rules.labelled_rows import (
    Inputs,
    Statistics,
    apart,
    each_loss,
    examples,
    log_probabilities,
    logits_gradient,
    logsumexps,
    possible,
    reduce_rows,
    smoothing_slope,
    statistics,
    sum_rows,
    targets,
    weigh,
)
from jaxprop.rules.losses import check_optional, check_reduction
from jaxprop.samples import normal, replaced


def softmax_cross_entropy_reference(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    label_smoothing: jax.Array | None = None,
    z_loss: jax.Array | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> jax.Array:
    """Mean over the examples of -log of the probability that softmax(logits) gives the label.

    Use it for classification into one of C classes, and for fitting a distribution over them.
    Where logits are h @ w and C is large, linear_cross_entropy never holds them.

    Scope      rows: logits (B, C), weights (B,), 0 where a label is ignored; reduction="mean";
               integer: whether labels are classes. What is absent: weights and class_weights
               of ones, label_smoothing and z_loss of 0
    Forward    q = one_hot(labels, logits)                             (F1)
               s = (1 - label_smoothing) * q
                   + label_smoothing * rows(logits) / size(logits)     (F2)
               t = class_weights * s                                   (F3)
               lse = log(sum(exp(logits)))                             (F4)
               log_p = logits - lse                                    (F5)
               share = where(integer, sum(class_weights * q), 1)       (F6)
               each = z_loss * share * lse * lse - sum(t * log_p)      (F7)
               total = sum_all(column(weights) * share)                (F8)
               loss = sum_all(column(weights) * each) / total          (F9)
    Backward   deach = g * column(weights) / total                     (B1) from F9
               dtotal = -g * loss / total                              (B2) from F9
               dweights = sum_rows((g * each / total + dtotal * share).T)  (B3) from F8, F9
               dz_loss = sum_all(deach * share * lse * lse)            (B4) from F7
               dt = -deach * log_p                                     (B5) from F7
               dlog_p = -deach * t                                     (B6) from F7
               dshare = deach * z_loss * lse * lse
                        + dtotal * column(weights)                     (B7) from F7, F8
               dlse = 2 * deach * z_loss * share * lse - sum(dlog_p)   (B8) from F5, F7
               dlogits = dlog_p + dlse * exp(log_p)                    (B9) from F4, F5
               ds = class_weights * dt                                 (B10) from F3
               dclass_weights = sum_rows(s * dt)
                   + sum_rows(where(integer, q * dshare, 0))           (B11) from F3, F6
               dlabel_smoothing = sum_all(
                   (rows(logits) / size(logits) - q) * ds)             (B12) from F2
               dlabels = (1 - label_smoothing) * ds                    (B13) from F1, F2

    Args:
        logits: (..., C), floating.
        labels: the class of each example, (...), integers from 0 to C - 1, no cotangent; or
            its distribution over the classes, (..., C), floating. The dtype tells which.
        weights: how much each example counts, (...), floating; None for 1.
        class_weights: how much each class counts, (C,), floating; None for 1.
        label_smoothing: e, a scalar from 0 to 1: the label's distribution is mixed with the
            uniform one, (1 - e) * q + e / C. None for 0.
        z_loss: a scalar, the strength of a penalty on lse ** 2, which keeps the logits from
            drifting. None for 0.
        reduction: "mean" or "sum" over the examples (every axis but the last), or "none". The
            mean divides by the weight of what is counted: weights, times the class weight of
            the label where labels are classes.
        ignore_index: the class that marks examples to leave out, such as -1 for padding.

    Returns:
        loss: a scalar, or (...) where reduction="none"; in nats, float32 at least.

    Residuals: the arguments, and per example the maximum and the logarithm of the sum, of
        which lse is the sum. The probabilities are recomputed.

    Numerics: statistics in float32 at least, shifted by the maximum. A distribution need not
        sum to 1. A logit of -inf is a class of probability 0: where the label gives it none, it
        adds nothing to the loss and has gradient 0, otherwise the loss is inf (with smoothing,
        always). Logits that are all -inf, or inf, give nan, and so does an integer label outside
        0 to C - 1, in the loss and in its example's gradient: jit cannot raise. The logits of an
        ignored example are not read. Where every weight is 0 or every label is ignored, loss and
        gradients are 0; the plain mean over no example is nan.

    Raises:
        TypeError: where logits or weights are not floating, or labels neither integers nor
            floating.
        ValueError: where the shapes do not fit, the reduction is unknown, or ignore_index is
            given for distributions.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3; smoothing: Szegedy
        et al. (2016), Rethinking the Inception architecture, section 7; z-loss: Chowdhery et al.
        (2022), PaLM, section 5.
    """
    inputs = Inputs(logits, labels, weights, class_weights, label_smoothing, z_loss)
    _check(inputs, reduction, ignore_index)
    if ignore_index is not None:
        logits = jnp.where((labels != ignore_index)[..., None], logits, 0)
    x = examples(inputs._replace(logits=logits), ignore_index)
    return reduce_rows(x, each_loss(x, statistics(logits, x.dtype)), reduction)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossEntropyResiduals:
    inputs: Inputs
    found: Statistics
    reduction: str = field(metadata={"static": True})
    ignore_index: int | None = field(metadata={"static": True})


def softmax_cross_entropy_forward(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    class_weights: jax.Array | None,
    label_smoothing: jax.Array | None,
    z_loss: jax.Array | None,
    *,
    reduction: str,
    ignore_index: int | None,
) -> tuple[jax.Array, CrossEntropyResiduals]:
    inputs = Inputs(logits, labels, weights, class_weights, label_smoothing, z_loss)
    _check(inputs, reduction, ignore_index)
    x = examples(inputs, ignore_index)
    found = statistics(logits, x.dtype)
    loss = reduce_rows(x, each_loss(x, found), reduction)
    return loss, CrossEntropyResiduals(inputs, found, reduction, ignore_index)


def softmax_cross_entropy_backward(
    res: CrossEntropyResiduals, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    inputs, found = apart((res.inputs, res.found))
    x = examples(inputs, res.ignore_index)
    each = each_loss(x, found)  # F7, recomputed
    deach, dtotal, dweights = weigh(x, each, g, res.reduction)  # B1, B2, B3
    lse, log_p = logsumexps(x, found), log_probabilities(x, found)  # F4, F5
    q, s, t = targets(x)  # F1, F2, F3
    dz_loss = jnp.sum(deach * x.share * lse * lse)  # B4
    dt = -deach * possible(log_p, t)  # B5
    dlogits = logits_gradient(x, deach, lse, log_p, t)  # B6, B8, B9
    ds = x.class_weights * dt  # B10
    dclass_weights = sum_rows(s * dt)  # B11
    if x.are_classes:
        dshare = deach * x.z_loss * lse * lse + dtotal * x.weights  # B7
        dclass_weights += sum_rows(q * dshare)  # B11
    dlabel_smoothing = jnp.sum(deach * smoothing_slope(x, found))  # B12
    dlabels = None if x.are_classes else (1 - x.smoothing) * ds  # B13
    optional = (dweights, dclass_weights, dlabel_smoothing, dz_loss)
    return dlogits, dlabels, *map(_where_given, inputs[2:], optional)


def _where_given(argument: jax.Array | None, cotangent: jax.Array) -> jax.Array | None:
    return None if argument is None else cotangent


def _check(inputs: Inputs, reduction: str, ignore_index: int | None) -> None:
    owner = "softmax_cross_entropy"
    logits, labels = inputs.logits, inputs.labels
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
    check_optional(owner, "weights", inputs.weights, logits.shape[:-1])
    check_optional(owner, "class_weights", inputs.class_weights, logits.shape[-1:])
    check_optional(owner, "label_smoothing", inputs.label_smoothing, ())
    check_optional(owner, "z_loss", inputs.z_loss, ())
    if ignore_index is not None and not integer:
        raise ValueError(
            f"{owner}: ignore_index must be None where labels are distributions, got "
            f"{ignore_index!r}. Give those examples a weight of 0 in weights."
        )


def softmax_cross_entropy_cases() -> list[Case]:
    logits, odd = 2 * normal(0, 4, 5), normal(1, 2, 3, 7)
    labels = np.array([0, 4, 2, 2], np.int32)
    odd_labels = jnp.array([[6, 0, 3], [1, 1, 5]], jnp.int32)
    p = jax.nn.softmax(normal(2, 4, 5))
    w, cw = np.array([1.0, 0.5, 0.0, 2.0], np.float32), np.exp(normal(3, 5))
    counted = {"weights": replaced(w, 1, 0)}
    e, z = jnp.float32(0.1), jnp.float32(0.01)
    ignored, ignoring = replaced(labels, 1, -1), {"ignore_index": -1}
    low, masked = logits.astype(jnp.bfloat16), jnp.where(jnp.arange(5) == 3, -jnp.inf, logits)
    ones = {"weights": jnp.ones(4, jnp.float32), "class_weights": jnp.ones(5, jnp.float32)}
    absent = ones | {"label_smoothing": jnp.float32(0), "z_loss": jnp.float32(0)}
    classes, distributions = absent | {"integer": True}, absent | {"integer": False}
    rows = classes | {"logits": logits, "labels": labels, "reduction": "mean"}
    every, none = {"integer": True}, {"reduction": "none", "ignore_index": -1}
    return [
        Case("classes", (logits, labels), given=classes),
        Case("distributions", (logits, p), given=distributions),
        Case("everything", (logits, labels, w, cw, e, z), given=every),
        Case("everything, distributions", (logits, p, w, cw, e, z), given={"integer": False}),
        Case("ignored", (logits, ignored, w), ignoring, given=rows | counted),
        Case("sum, everything", (logits, labels, w, cw, e, z), {"reduction": "sum"}, given=rows),
        Case("none, ignored", (logits, ignored, w, cw, e, z), none, given=rows),
        Case("batch of one", (logits[:1], labels[:1]), given=rows),
        Case("one class", (logits[:, :1], jnp.zeros(4, jnp.int32)), given=rows),
        Case("one example without a batch", (logits[0], labels[0]), given=rows),
        Case("more axes", (odd, odd_labels), given=rows),
        Case("bfloat16", (low, labels, w, cw, e, z), given=every),
        Case("bfloat16 against float32", (low, p), given=distributions),
        Case("ties", (0 * logits, labels), given=classes, edge=True),
        Case("large", (1e4 * logits, labels), edge=True),
        Case("masked class", (masked, labels), edge=True),
        Case("masked label", (masked, jnp.full(4, 3, jnp.int32)), edge=True),
        Case("label out of range", (logits, jnp.array([0, 5, -1, 1], jnp.int32)), edge=True),
        Case("every label ignored", (logits, jnp.full(4, -1, jnp.int32)), ignoring, edge=True),
        Case("ignored nan", (replaced(logits, 1, jnp.nan), ignored), ignoring, edge=True),
        Case("empty", (logits[:0], labels[:0]), {"reduction": "sum"}, edge=True),
    ]


softmax_cross_entropy = Rule(
    softmax_cross_entropy_reference,
    softmax_cross_entropy_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_cases,
)
