"""Softmax cross-entropy of logits h @ w that are never whole."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.rule import Case, Rule
from jaxprop.rules.cross_entropy import softmax_cross_entropy
from jaxprop.rules.labelled_rows import Statistics, reduce_rows, weigh
from jaxprop.rules.logit_blocks import (
    Gradients,
    LinearInputs,
    capped_logits,
    check_linear,
    flat,
    gradients_by_blocks,
    kept_rows,
    losses_by_blocks,
    rows_at_once,
    without_logits,
)
from jaxprop.rules.losses import check_reduction
from jaxprop.samples import normal, replaced

VARIANTS = ("forward", "recompute")


def linear_cross_entropy_reference(
    h: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    label_smoothing: jax.Array | None = None,
    z_loss: jax.Array | None = None,
    soft_cap: jax.Array | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
    variant: str = "forward",
    block: int | None = None,
) -> jax.Array:
    """Softmax cross-entropy of the logits h @ w, of which only a block of rows is ever held.

    Use it as the last layer and the loss of a language model, where N x V logits would be the
    largest array of all. Of the variants, "forward" is faster: the gradients are computed beside
    the loss, while a block of logits is there, and scaled by g later; it holds dh and dw between.
    "recompute" holds nothing as large, and multiplies h @ w once more in the backward. Losses
    that are not reduced have no one g, and are recomputed whatever the variant says.

    Scope      rows: h (N, D), w (D, V), weights (N,), 0 where a label is ignored;
               reduction="mean". What is absent: weights of ones, label_smoothing and z_loss
               of 0, a soft_cap without bound
    Forward    a = h @ w                                               (F1)
               u = tanh(a / soft_cap)                                  (F2)
               logits = soft_cap * u                                   (F3)
               q = one_hot(labels, logits)                             (F4)
               t = (1 - label_smoothing) * q
                   + label_smoothing * rows(logits) / size(logits)     (F5)
               lse = log(sum(exp(logits)))                             (F6)
               log_p = logits - lse                                    (F7)
               each = z_loss * lse * lse - sum(t * log_p)              (F8)
               total = sum_all(weights)                                (F9)
               loss = sum_all(column(weights) * each) / total          (F10)
    Backward   deach = g * column(weights) / total                     (B1) from F10
               dweights = sum_rows((g * (each - loss) / total).T)      (B2) from F9, F10
               dz_loss = sum_all(deach * lse * lse)                    (B3) from F8
               dt = -deach * log_p                                     (B4) from F8
               dlse = deach * (2 * z_loss * lse + sum(t))              (B5) from F7, F8
               dlogits = dlse * exp(log_p) - deach * t                 (B6) from F6, F7, F8
               dlabel_smoothing = sum_all(
                   (rows(logits) / size(logits) - q) * dt)             (B7) from F5
               dsoft_cap = sum_all(
                   dlogits * (u - a / soft_cap * (1 - u * u)))         (B8) from F2, F3
               da = dlogits * (1 - u * u)                              (B9) from F2, F3
               dh = da @ w.T                                           (B10) from F1
               dw = h.T @ da                                           (B11) from F1

    Args:
        h: (N, D), floating; or (..., D), every axis but the last being rows.
        w: (D, V), floating; taken in h's dtype.
        labels: the class of each row, (N,), integers from 0 to V - 1; no cotangent.
        weights: how much each row counts, (N,), floating; None for 1.
        label_smoothing: e, a scalar from 0 to 1: labels are mixed with the uniform distribution,
            (1 - e) * q + e / V. None for 0.
        z_loss: a scalar, the strength of a penalty on lse ** 2. None for 0.
        soft_cap: a positive scalar that logits stay within, by tanh. None for no cap.
        reduction: "mean" or "sum" over the rows, or "none". The mean divides by the sum of the
            weights that are counted.
        ignore_index: the label that marks rows to leave out, such as -1 for padding.
        variant: "forward" or "recompute", when the gradients are computed.
        block: how many rows of logits are held at once; None for 128, or for 256 where V is above
            32768, as each block visits all of dw.

    Returns:
        loss: a scalar, or (N,) where reduction="none"; in nats, float32 at least.

    Residuals: "forward": dh and dw for a g of 1, in float32 at least, N * D and D * V numbers,
        which pays where N is well above D; weights also hold each. "recompute": the arguments,
        and per row the maximum of the logits and the logarithm of the sum.

    Numerics: products accumulate in float32 at least, where the logits stay and are never
        rounded; dw is added up there over all rows; da is rounded to h's dtype for its products, as
        any layer's g is. Labels outside 0 to V - 1, infinite logits and rows that are ignored are
        as in softmax_cross_entropy. Second derivatives hold all logits, in both variants.

    Raises:
        TypeError: where h, w or weights are not floating, or labels not integers.
        ValueError: where the shapes do not fit, reduction or variant is unknown, or block is
            not a positive integer. With Explicit mesh axes, the forward variant and any batch
            of more rows than a block: use Auto axes, as the error says.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.3; gradients in the
        forward: Hsu et al. (2024), Liger Kernel, section 3.2; soft cap: Gemma Team (2024), Gemma 2,
        section 2.
    """
    inputs = LinearInputs(h, w, labels, weights, label_smoothing, z_loss, soft_cap)
    _check(inputs, reduction, variant, rows_at_once(block, w))
    logits, _, _ = capped_logits(inputs._replace(h=kept_rows(h, labels, ignore_index)))
    return softmax_cross_entropy.reference(
        logits,
        labels,
        weights,
        None,
        label_smoothing,
        z_loss,
        reduction=reduction,
        ignore_index=ignore_index,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearCrossEntropyResiduals:
    """The arguments, and of the forward variant the gradients, of the other the statistics."""

    inputs: LinearInputs
    found: Statistics | None
    each: jax.Array | None
    gradients: Gradients | None
    reduction: str = field(metadata={"static": True})
    ignore_index: int | None = field(metadata={"static": True})
    block: int = field(metadata={"static": True})


def linear_cross_entropy_forward(
    h: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    label_smoothing: jax.Array | None,
    z_loss: jax.Array | None,
    soft_cap: jax.Array | None,
    *,
    reduction: str,
    ignore_index: int | None,
    variant: str,
    block: int | None,
) -> tuple[jax.Array, LinearCrossEntropyResiduals]:
    inputs = LinearInputs(h, w, labels, weights, label_smoothing, z_loss, soft_cap)
    block = rows_at_once(block, w)
    _check(inputs, reduction, variant, block)
    rows, found, gradients = flat(inputs), None, None
    if variant == "forward" and reduction != "none":
        each, gradients = gradients_by_blocks(rows, ignore_index, block)  # F1 to F8, B1 to B11
    else:
        each, found = losses_by_blocks(rows, ignore_index, block)  # F1 to F8
    loss = reduce_rows(without_logits(rows, ignore_index), each, reduction)  # F9, F10
    kept = None if weights is None or gradients is None else each
    saved = (inputs, found, kept, gradients, reduction, ignore_index, block)
    return loss.reshape(labels.shape if reduction == "none" else ()), (
        LinearCrossEntropyResiduals(*saved)
    )


def linear_cross_entropy_backward(
    res: LinearCrossEntropyResiduals, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    rows = flat(res.inputs)
    x = without_logits(rows, res.ignore_index)
    v, scale = None, g
    if res.reduction == "none":
        g = g.reshape(rows.labels.shape)
        v, scale = g[:, None], jnp.ones((), g.dtype)
    elif res.reduction == "mean":
        scale = g / x.total
    each, gradients = res.each, res.gradients
    if gradients is None:
        each, gradients = gradients_by_blocks(rows, res.ignore_index, res.block, res.found, v)
    dh, dw, dlabel_smoothing, dz_loss, dsoft_cap = jax.tree.map(
        lambda d: scale.astype(d.dtype) * d, gradients
    )
    dweights = None
    if res.inputs.weights is not None and each is not None:
        _, _, dweights = weigh(x, each, g, res.reduction)  # B2
        dweights = dweights.reshape(res.inputs.weights.shape)
    return dh.reshape(res.inputs.h.shape), dw, None, dweights, dlabel_smoothing, dz_loss, dsoft_cap


def _check(inputs: LinearInputs, reduction: str, variant: str, block: int) -> None:
    owner = "linear_cross_entropy"
    check_reduction(owner, reduction)
    if variant not in VARIANTS:
        raise ValueError(f"{owner}: variant must be one of {VARIANTS}, got {variant!r}.")
    check_linear(owner, "labels", inputs, block)


def linear_cross_entropy_cases() -> list[Case]:
    h, w, labels = normal(0, 5, 3), normal(1, 3, 7), jnp.array([0, 6, 2, 2, 5], jnp.int32)
    weights = jnp.array([1.0, 0.5, 2.0, 0.0, 3.0], jnp.float32)
    e, z, cap = jnp.float32(0.1), jnp.float32(0.01), jnp.float32(5.0)
    scalars, ignored = (e, z, cap), replaced(labels, 1, -1)
    absent = {"weights": jnp.ones(5, jnp.float32), "soft_cap": jnp.float32(30.0)}
    absent |= {"label_smoothing": jnp.float32(0), "z_loss": jnp.float32(0)}
    plain = absent | {"h": h, "w": w, "labels": labels, "reduction": "mean"}
    two, none = {"block": 2}, {"block": 2, "reduction": "none"}
    total = {"block": 2, "reduction": "sum", "ignore_index": -1}
    again = {"block": 2, "variant": "recompute", "ignore_index": -1}
    low = h.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    deep, deep_labels = normal(2, 2, 3, 3), jnp.array([[1, 2, 0], [6, 6, 4]], jnp.int32)
    return [
        Case("blocks of 2", (h, w, labels), two, given=absent),
        Case("everything", (h, w, labels, weights, *scalars), two),
        Case("recomputed", (h, w, ignored, weights, *scalars), again, given=plain),
        Case("sum", (h, w, ignored, weights, *scalars), total, given=plain),
        Case("none", (h, w, labels, weights, *scalars), none, given=plain),
        Case("one row", (h[:1], w, labels[:1]), two, given=plain),
        Case("one class", (h, w[:, :1], 0 * labels), two, given=plain),
        Case("more axes", (deep, w, deep_labels), two, given=plain),
        Case("bfloat16", (*low, labels), two, given=plain),
        Case("zeros", (0 * h, 0 * w, labels), two, given=absent, edge=True),
        Case("large", (100 * h, 100 * w, labels), two, edge=True),
        Case("label out of range", (h, w, jnp.array([0, 7, -1, 2, 3], jnp.int32)), two, edge=True),
        Case("every label ignored", (h, w, jnp.full(5, -1, jnp.int32)), again, edge=True),
        Case("ignored nan", (replaced(h, 1, jnp.nan), w, ignored), again, edge=True),
        Case("no row", (h[:0], w, labels[:0]), total, edge=True),
    ]


linear_cross_entropy = Rule(
    linear_cross_entropy_reference,
    linear_cross_entropy_forward,
    linear_cross_entropy_backward,
    linear_cross_entropy_cases,
)
