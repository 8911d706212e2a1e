"""Divergences: how far one distribution is from another, both given by logits."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating
from jaxprop.rule import Case, Rule
from jaxprop.rules.labelled_rows import Statistics, apart, shifted, statistics
from jaxprop.rules.losses import check_reduction, per_loss, reduce_losses
from jaxprop.samples import normal


def kl_divergence_reference(
    logits: jax.Array, target_logits: jax.Array, *, reduction: str = "mean"
) -> jax.Array:
    """Mean over the examples of KL(p || q), p by target_logits and q by logits.

    Use it for distillation (p is the teacher), and as a penalty on the distance from a reference
    policy. The prediction comes first and the target second, as in every loss here; KL(q || p)
    is kl_divergence(target_logits, logits). Logarithms of probabilities are logits too: they may be
    given as they are. torch.nn.functional.kl_div(log_q, log_p, log_target=True,
    reduction="batchmean") and the mean of optax.losses.kl_divergence_with_log_targets(log_q,
    log_p) are kl_divergence(log_q, log_p).

    Scope      rows: logits and target_logits (B, C), reduction="mean"
    Forward    log_q = logits - log(sum(exp(logits)))                  (F1)
               log_p = target_logits - log(sum(exp(target_logits)))    (F2)
               p = exp(log_p)                                          (F3)
               diff = log_p - log_q                                    (F4)
               loss = sum_all(p * diff) / rows(logits)                 (F5)
    Backward   dp = g * diff / rows(logits)                            (B1) from F5
               ddiff = g * p / rows(logits)                            (B2) from F5
               dlog_q = -ddiff                                         (B3) from F4
               dlogits = dlog_q - exp(log_q) * sum(dlog_q)             (B4) from F1
               dlog_p = ddiff + p * dp                                 (B5) from F3, F4
               dtarget_logits = dlog_p - p * sum(dlog_p)               (B6) from F2

    Args:
        logits: (..., C), floating.
        target_logits: logits' shape, floating. Stop its gradient where it is a fixed teacher.
        reduction: "mean" or "sum" over the examples (every axis but the last), or "none".

    Returns:
        loss: a scalar, or (...) where reduction="none"; in nats, the wider of the two dtypes,
        float32 at least.

    Residuals: the arguments; per example and argument the maximum and the logarithm of the sum;
        per example the divergence, in two numbers. The probabilities are recomputed, and nothing
        is summed again.

    Numerics: statistics in float32 at least, shifted by the maxima. 0 * log(0) is 0: a class with
        p = 0 adds nothing, whatever q is; one with q = 0 alone makes the loss inf. The rows of
        ddiff sum to g / B, so dlogits is (q - p) times that, and 0 to the last digit where both
        are the same. diff is taken from its mean before it is weighed by p, so that the gradient
        of a class that is almost certain keeps its digits. Logits that are all -inf, or inf,
        give nan. The mean over no example is nan.

    Raises:
        TypeError: where an argument is not floating.
        ValueError: where the shapes differ or have no classes, or the reduction is unknown.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 3.13.
    """
    _check(logits, target_logits, reduction)
    q, p = _statistics(logits, target_logits)
    return reduce_losses(_divergence(logits, target_logits, q, p).whole, reduction)


class Divergence(NamedTuple):
    """The divergence of each row, (..., 1): a rounded mean of diff, and what that lacks."""

    centre: jax.Array
    rest: jax.Array

    @property
    def whole(self) -> jax.Array:
        return (self.centre + self.rest)[..., 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KlResiduals:
    logits: jax.Array
    target_logits: jax.Array
    q: Statistics
    p: Statistics
    divergence: Divergence
    reduction: str = field(metadata={"static": True})


def kl_divergence_forward(
    logits: jax.Array, target_logits: jax.Array, *, reduction: str
) -> tuple[jax.Array, KlResiduals]:
    _check(logits, target_logits, reduction)
    q, p = _statistics(logits, target_logits)
    divergence = _divergence(logits, target_logits, q, p)
    loss = reduce_losses(divergence.whole, reduction)
    return loss, KlResiduals(logits, target_logits, q, p, divergence, reduction)


def kl_divergence_backward(res: KlResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, target_logits, found_q, found_p = apart((res.logits, res.target_logits, res.q, res.p))
    centre, rest = res.divergence
    log_q, log_p = _log_probabilities(logits, target_logits, found_q, found_p)  # F1, F2
    q, p = jnp.exp(log_q), jnp.exp(log_p)  # F3
    g = per_loss(g, p.shape[:-1], res.reduction)[..., None]
    dlogits = g * (q - p)  # B2, B3, B4
    diff = _difference(p, log_p, log_q)  # F4
    dtarget_logits = g * p * ((diff - centre) - rest)  # B1, B2, B5, B6
    return dlogits, dtarget_logits


def _statistics(logits: jax.Array, target_logits: jax.Array) -> tuple[Statistics, Statistics]:
    dtype = at_least_float32(logits.dtype, target_logits.dtype)
    return statistics(logits, dtype), statistics(target_logits, dtype)


def _log_probabilities(
    logits: jax.Array, target_logits: jax.Array, q: Statistics, p: Statistics
) -> tuple[jax.Array, jax.Array]:
    dtype = q.largest.dtype
    return shifted(logits.astype(dtype), q), shifted(target_logits.astype(dtype), p)  # F1, F2


def _difference(p: jax.Array, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """log_p - log_q, but 0 where p is 0, which its product with p then is: 0 * inf would be nan."""
    return jnp.where(p == 0, 0, log_p - log_q)  # F4


def _divergence(
    logits: jax.Array, target_logits: jax.Array, q: Statistics, p: Statistics
) -> Divergence:
    """The mean of diff, rounded, as a constant; what is left of diff then loses no digits.

    As p sums to 1, neither the divergence nor its gradient depends on what is subtracted.
    """

    def weighted(centre: jax.Array | float) -> jax.Array:
        # Apart each time: to compute these again takes less than to write and read them.
        log_q, log_p = _log_probabilities(*apart((logits, target_logits, q, p)))  # F1, F2
        probability = jnp.exp(log_p)  # F3
        diff = _difference(probability, log_p, log_q)
        return _sum(probability * (diff - centre))

    mean = lax.stop_gradient(weighted(0))
    centre = jnp.where(jnp.isfinite(mean), mean, 0)
    return Divergence(centre, weighted(centre))  # F5


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def _check(logits: jax.Array, target_logits: jax.Array, reduction: str) -> None:
    owner = "kl_divergence"
    check_reduction(owner, reduction)
    floating(owner, "logits", logits)
    floating(owner, "target_logits", target_logits)
    if logits.ndim < 1 or logits.shape[-1] < 1 or target_logits.shape != logits.shape:
        raise ValueError(
            f"{owner}: logits and target_logits must both be (..., C) with C of at least 1, got "
            f"{logits.shape} and {target_logits.shape}. Nothing is broadcast: repeat the target."
        )


def kl_divergence_cases() -> list[Case]:
    x = 2 * normal(0, 4, 5)
    target = normal(1, 4, 5)
    odd = normal(2, 2, 2, 3, 7)
    rows = {"logits": x, "target_logits": target, "reduction": "mean"}
    masked = jnp.where(jnp.arange(5) == 3, -jnp.inf, x)
    masked_target = jnp.where(jnp.arange(5) == 3, -jnp.inf, target)
    low = x.astype(jnp.bfloat16)
    return [
        Case("logits", (x, target)),
        Case("log-probabilities", (jax.nn.log_softmax(x), jax.nn.log_softmax(target))),
        Case("sum", (x, target), {"reduction": "sum"}, given=rows),
        Case("none", (x, target), {"reduction": "none"}, given=rows),
        Case("batch of one", (x[:1], target[:1])),
        Case("one class", (x[:, :1], target[:, :1])),
        Case("one example without a batch", (x[0], target[0]), given=rows),
        Case("more axes", (odd[0], odd[1]), given=rows),
        Case("bfloat16", (low, target.astype(jnp.bfloat16))),
        Case("bfloat16 against float32", (low, target)),
        Case("ties", (0 * x, target), edge=True),
        Case("large", (1e4 * x, target), edge=True),
        Case("masked in the target", (x, masked_target), edge=True),
        Case("masked in both", (masked, masked_target), edge=True),
        Case("masked in the prediction", (masked, target), edge=True),
        Case("empty", (x[:0], target[:0]), {"reduction": "sum"}, edge=True),
    ]


kl_divergence = Rule(
    kl_divergence_reference, kl_divergence_forward, kl_divergence_backward, kl_divergence_cases
)
