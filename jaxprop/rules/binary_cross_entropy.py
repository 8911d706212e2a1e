"""Binary cross-entropy: minus the logarithm of the probability that a logit gives a label."""

import jax
import jax.numpy as jnp

from jaxprop.rule import Case, Rule
from jaxprop.rules.losses import PairResiduals, checked_pair, per_loss, reduce_losses, together


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


sigmoid_binary_cross_entropy = Rule(
    sigmoid_binary_cross_entropy_reference,
    sigmoid_binary_cross_entropy_forward,
    sigmoid_binary_cross_entropy_backward,
    sigmoid_binary_cross_entropy_cases,
    budget=0,
)
