"""Binary cross-entropy: minus the logarithm of the probability that a logit gives a label."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import at_least_float32
from jaxprop.rule import Case, Rule
from jaxprop.rules.losses import (
    check_optional,
    checked_pair,
    divisor,
    per_loss,
    reduce_losses,
)
from jaxprop.samples import normal, replaced, uniform


def sigmoid_binary_cross_entropy_reference(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    pos_weight: jax.Array | None = None,
    *,
    reduction: str = "mean",
) -> jax.Array:
    """Mean over every element of -log of the probability that sigmoid(logits) gives the label.

    Use it for yes-or-no classification, and for several labels that exclude nothing.

    Scope      rows: logits, labels and weights (B, C), pos_weight (C,), reduction="mean". What is
               absent: weights and pos_weight of ones
    Forward    yes = log(1 + exp(-logits))                             (F1)
               no = log(1 + exp(logits))                               (F2)
               nats = pos_weight * labels * yes + (1 - labels) * no    (F3)
               loss = sum_all(weights * nats) / sum_all(weights)       (F4)
    Backward   dweights = g * (nats - loss) / sum_all(weights)         (B1) from F4
               dnats = g * weights / sum_all(weights)                  (B2) from F4
               dpos_weight = sum_rows(dnats * labels * yes)            (B3) from F3
               dlogits = dnats * (1 - labels) / (1 + exp(-logits))
                   - dnats * pos_weight * labels / (1 + exp(logits))   (B4) from F1, F2, F3
               dlabels = dnats * (pos_weight * yes - no)               (B5) from F3

    Args:
        logits: any shape, floating.
        labels: logits' shape, from 0 to 1; floating, or integer or bool (no cotangent).
        weights: how much each element counts, logits' shape, floating; None for 1.
        pos_weight: how much a label of 1 counts beside one of 0, floating: a scalar, or one
            number for each entry of the last axis; None for 1.
        reduction: "mean" or "sum" over every element, or "none". The mean divides by the sum of
            weights (PyTorch's divides by their number), and not by pos_weight.

    Returns:
        loss: a scalar, or logits' shape where reduction="none"; in nats, float32 at least.

    Residuals: the arguments.

    Numerics: both logarithms are softplus, stable at any finite logit; neither is subtracted
        from the other, so a small loss keeps its digits, and so does its gradient. An infinite
        logit whose label agrees gives nan (0 * inf), its gradient does not. The mean of nothing is
        nan, that of weights of 0 is 0.

    Raises:
        TypeError: where logits, weights or pos_weight are not floating.
        ValueError: where the shapes do not fit, or the reduction is unknown.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.2; the arguments as in
        torch.nn.functional.binary_cross_entropy_with_logits.
    """
    inputs = BinaryInputs(logits, labels, weights, pos_weight)
    _check(inputs, reduction)
    return _reduce(inputs, _nats(inputs), reduction)


class BinaryInputs(NamedTuple):
    logits: jax.Array
    labels: jax.Array
    weights: jax.Array | None
    pos_weight: jax.Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BinaryResiduals:
    inputs: BinaryInputs
    reduction: str = field(metadata={"static": True})


def sigmoid_binary_cross_entropy_forward(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    pos_weight: jax.Array | None,
    *,
    reduction: str,
) -> tuple[jax.Array, BinaryResiduals]:
    inputs = BinaryInputs(logits, labels, weights, pos_weight)
    _check(inputs, reduction)
    loss = _reduce(inputs, _nats(inputs), reduction)  # F1 to F4
    return loss, BinaryResiduals(inputs, reduction)


def sigmoid_binary_cross_entropy_backward(
    res: BinaryResiduals, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    x = _wide(res.inputs)
    dnats, dweights = per_loss(g, x.logits.shape, res.reduction), None
    if x.weights is not None:
        nats = _nats(res.inputs)  # F3, recomputed
        loss = _reduce(res.inputs, nats, "mean") if res.reduction == "mean" else 0  # F4
        g = g / divisor(x.weights) if res.reduction == "mean" else g
        dweights, dnats = g * (nats - loss), g * x.weights  # B1, B2
    if x.pos_weight is None:
        dlabels, dpos_weight, positive = -dnats * x.logits, None, x.labels  # B5: yes - no
    else:
        yes, no = _softplus(-x.logits), _softplus(x.logits)  # F1, F2, recomputed
        dlabels, positive = dnats * (x.pos_weight * yes - no), x.pos_weight * x.labels  # B5
        shared = tuple(range(x.logits.ndim - x.pos_weight.ndim))
        dpos_weight = jnp.sum(dnats * x.labels * yes, axis=shared)  # B3
    slope = (1 - x.labels) * jax.nn.sigmoid(x.logits) - positive * jax.nn.sigmoid(-x.logits)
    return dnats * slope, dlabels, dweights, dpos_weight  # B4


def _wide(inputs: BinaryInputs) -> BinaryInputs:
    """The inputs in the dtype of the loss."""
    inputs = inputs._replace(labels=_as_floating(inputs.labels, inputs.logits))
    dtype = at_least_float32(*(x.dtype for x in inputs if x is not None))
    weights, pos_weight = (None if x is None else x.astype(dtype) for x in inputs[2:])
    logits, labels = inputs.logits.astype(dtype), inputs.labels.astype(dtype)
    return BinaryInputs(logits, labels, weights, pos_weight)


def _nats(inputs: BinaryInputs) -> jax.Array:
    x = _wide(inputs)
    positive = x.labels if x.pos_weight is None else x.pos_weight * x.labels
    return positive * _softplus(-x.logits) + (1 - x.labels) * _softplus(x.logits)  # F1, F2, F3


def _softplus(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, 0.0)


def _reduce(inputs: BinaryInputs, nats: jax.Array, reduction: str) -> jax.Array:
    if inputs.weights is None:
        return reduce_losses(nats, reduction)
    weights = inputs.weights.astype(nats.dtype)
    if reduction == "mean":
        return jnp.sum(weights * nats) / divisor(weights)  # F4
    return reduce_losses(weights * nats, reduction)


def _as_floating(labels: jax.Array, like: jax.Array) -> jax.Array:
    labels = jnp.asarray(labels)
    kept = jnp.issubdtype(labels.dtype, jnp.floating)
    return labels if kept else labels.astype(jnp.asarray(like).dtype)


def _check(inputs: BinaryInputs, reduction: str) -> None:
    owner, logits = "sigmoid_binary_cross_entropy", inputs.logits
    labels = _as_floating(inputs.labels, logits)
    checked_pair(owner, ("logits", logits), ("labels", labels), reduction)
    check_optional(owner, "weights", inputs.weights, logits.shape)
    one = inputs.pos_weight is not None and inputs.pos_weight.ndim == 0
    check_optional(owner, "pos_weight", inputs.pos_weight, () if one else logits.shape[-1:])


def sigmoid_binary_cross_entropy_cases() -> list[Case]:
    logits = 2 * normal(0, 4, 3)
    p, w = uniform(1, 2, 4, 3)
    hard, pos = p > 0.5, jnp.array([0.5, 1.0, 3.0], jnp.float32)
    large = jnp.array([-1e4, -100.0, 100.0, 1e4], jnp.float32)
    ones = {"weights": jnp.ones((4, 3), jnp.float32), "pos_weight": jnp.ones(3, jnp.float32)}
    rows = ones | {"logits": logits, "labels": p, "reduction": "mean"}
    total, none, low = {"reduction": "sum"}, {"reduction": "none"}, jnp.bfloat16
    return [
        Case("soft labels", (logits, p), given=ones),
        Case("bool labels", (logits, hard), given=rows),
        Case("integer labels", (logits, hard.astype(jnp.int32)), given=rows),
        Case("weights", (logits, p, w, pos)),
        Case("sum, weights", (logits, p, w, pos), total, given=rows),
        Case("none, one pos_weight", (logits, p, w, pos[2]), none, given=rows),
        Case("scalar", (logits[0, 0], p[0, 0]), given=rows),
        Case("bfloat16", (logits.astype(low), p.astype(low)), given=rows),
        Case("bfloat16 against float32", (logits.astype(low), p, w, pos)),
        Case("zeros", (replaced(logits, np.s_[:2], 0), p), given=ones, edge=True),
        Case("large, label 0", (large, jnp.zeros_like(large)), edge=True),
        Case("large, label 1", (large, jnp.ones_like(large)), edge=True),
        Case("weights of 0", (logits, p, 0 * w, pos), edge=True),
        Case("empty", (logits[:0], p[:0]), {"reduction": "sum"}, edge=True),
    ]


sigmoid_binary_cross_entropy = Rule(
    sigmoid_binary_cross_entropy_reference,
    sigmoid_binary_cross_entropy_forward,
    sigmoid_binary_cross_entropy_backward,
    sigmoid_binary_cross_entropy_cases,
    budget=0,
)
