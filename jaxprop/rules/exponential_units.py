"""Activations that end in an exponential below zero: elu, celu, selu; and log_sigmoid."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import OutputResiduals, few_cases

# Klambauer et al. (2017), equation 14: with these, mean 0 and variance 1 are a fixed point.
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def elu_reference(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """Bend what is negative towards -alpha: y = x above zero, alpha * (exp(x) - 1) below.

    Use it in hidden layers where a relu that has a gradient below zero is wanted.

    Scope      elementwise: any shape
    Forward    y = where(x > 0, x, alpha * (exp(x) - 1))               (F1)
    Backward   dx = where(y > 0, g, g * (y + alpha))                   (B1) from F1

    Args:
        x: any shape, floating.
        alpha: what y tends to, negated; positive and finite.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output): it is positive exactly where x is.

    Numerics: exp(x) - 1 by expm1, in float32 at least, rounded once. At the kink x = 0 the
        subgradient is alpha. The gradient has the rounding of the stored y in it: it is 0 where y
        rounds to -alpha.

    Raises:
        TypeError: where x is not floating.
        ValueError: where alpha is not positive and finite.

    Source: Clevert, Unterthiner and Hochreiter (2016), Fast and accurate deep network learning by
        exponential linear units, equation 15.
    """
    _check_alpha("elu", alpha)
    return _exponential(floating("elu", "x", x), 1.0, alpha, 1.0)  # F1


def elu_forward(x: jax.Array, *, alpha: float) -> tuple[jax.Array, "ExponentialResiduals"]:
    y = elu_reference(x, alpha=alpha)  # F1
    return y, ExponentialResiduals(y, 1.0, alpha, 1.0)


def celu_reference(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """Bend what is negative towards -alpha, smoothly for every alpha: y = x above zero.

    Use it in place of elu with another alpha than 1: its slope is 1 on both sides of 0.

    Scope      elementwise: any shape
    Forward    y = where(x > 0, x, alpha * (exp(x / alpha) - 1))       (F1)
    Backward   dx = where(y > 0, g, g * (y / alpha + 1))               (B1) from F1

    Args:
        x: any shape, floating.
        alpha: what y tends to, negated; positive and finite.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output): it is positive exactly where x is.

    Numerics: those of elu; there is no kink.

    Raises:
        TypeError: where x is not floating.
        ValueError: where alpha is not positive and finite.

    Source: Barron (2017), Continuously differentiable exponential linear units, equation 2.
    """
    _check_alpha("celu", alpha)
    return _exponential(floating("celu", "x", x), 1.0, alpha, alpha)  # F1


def celu_forward(x: jax.Array, *, alpha: float) -> tuple[jax.Array, "ExponentialResiduals"]:
    y = celu_reference(x, alpha=alpha)  # F1
    return y, ExponentialResiduals(y, 1.0, alpha, alpha)


def selu_reference(x: jax.Array) -> jax.Array:
    """Scale an elu so that layers keep mean 0 and variance 1.

    Use it in deep dense networks without normalisation, with weights of variance 1 / n_in.

    Scope      elementwise: any shape
    Forward    e = where(x > 0, x, 1.6732632423543772 * (exp(x) - 1))  (F1)
               y = 1.0507009873554805 * e                              (F2)
    Backward   de = 1.0507009873554805 * g                             (B1) from F2
               dx = where(e > 0, de, de * (e + 1.6732632423543772))    (B2) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output); e is y over its scale.

    Numerics: those of elu. At the kink x = 0 the subgradient is the product of the two constants.

    Raises:
        TypeError: where x is not floating.

    Source: Klambauer et al. (2017), Self-normalizing neural networks, equation 2.
    """
    return _exponential(floating("selu", "x", x), SELU_SCALE, SELU_ALPHA, 1.0)  # F1, F2


def selu_forward(x: jax.Array) -> tuple[jax.Array, "ExponentialResiduals"]:
    y = selu_reference(x)  # F1, F2
    return y, ExponentialResiduals(y, SELU_SCALE, SELU_ALPHA, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExponentialResiduals:
    y: jax.Array
    scale: float = field(metadata={"static": True})
    alpha: float = field(metadata={"static": True})
    width: float = field(metadata={"static": True})


def _exponential(x: jax.Array, scale: float, alpha: float, width: float) -> jax.Array:
    """scale * x above zero, scale * alpha * (exp(x / width) - 1) below."""
    wide = up(x)
    below = jnp.where(wide > 0, 0, wide)  # exp of a large x would be inf, its gradient nan
    y = jnp.where(wide > 0, wide, alpha * jnp.expm1(below / width))
    return (scale * y).astype(x.dtype)


def exponential_backward(res: ExponentialResiduals, g: jax.Array) -> tuple[jax.Array]:
    """The backward of elu, celu and selu."""
    y, dy = up(res.y), res.scale * up(g)
    slope = (y / res.scale + res.alpha) / res.width
    return (jnp.where(y > 0, dy, dy * slope),)  # B1; B1, B2 of selu


def log_sigmoid_reference(x: jax.Array) -> jax.Array:
    """Take the logarithm of the sigmoid: y = log(1 / (1 + exp(-x))).

    Use it for log-probabilities of one event, such as the loss on a difference of rewards.

    Scope      elementwise: any shape
    Forward    y = -log(1 + exp(-x))                                   (F1)
    Backward   dx = g * (1 - exp(y))                                   (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output). The derivative is 1 - sigmoid(x), and exp(y) is the sigmoid.

    Numerics: computed as -log(exp(-x) + exp(0)), shifted by the larger exponent, in float32 at
        least; 1 - exp(y) by tanh(y / 2), which takes less time than expm1 and which the rounding of
        y harms nowhere. At -inf and inf y is -inf and 0, the gradient g and 0.

    Raises:
        TypeError: where x is not floating.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.2.2.2.
    """
    x = floating("log_sigmoid", "x", x)
    return (-jnp.logaddexp(-up(x), 0.0)).astype(x.dtype)  # F1


def log_sigmoid_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = log_sigmoid_reference(x)  # F1
    return y, OutputResiduals(y)


def log_sigmoid_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    t = jnp.tanh(up(res.y) / 2)  # exp(y) - 1 = 2 * t / (1 - t)
    return (up(g) * (-2 * t / (1 - t)),)  # B1


def _check_alpha(owner: str, alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(
            f"{owner}: alpha must be positive and finite, got {alpha!r}. The sign of y would not "
            "tell that of x."
        )


def alpha_cases() -> list[Case]:
    return [*few_cases(), *few_cases(alpha=0.5)[:1]]


elu = Rule(elu_reference, elu_forward, exponential_backward, alpha_cases, budget=0)
celu = Rule(celu_reference, celu_forward, exponential_backward, alpha_cases, budget=0)
selu = Rule(selu_reference, selu_forward, exponential_backward, few_cases, budget=0)
log_sigmoid = Rule(
    log_sigmoid_reference, log_sigmoid_forward, log_sigmoid_backward, few_cases, budget=0
)
