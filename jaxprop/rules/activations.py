"""Elementwise activations whose derivative can be told from their output."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def identity_reference(x: jax.Array) -> jax.Array:
    """Return x as it is: y = x.

    Use it as the activation of a layer that has none, such as the output layer before
    softmax_cross_entropy.

    Scope      elementwise: any shape
    Forward    y = x                                                   (F1)
    Backward   dx = g                                                  (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: none.

    Numerics: exact.

    Raises:
        TypeError: where x is not floating.
    """
    return floating("identity", "x", x)  # F1


def identity_forward(x: jax.Array) -> tuple[jax.Array, tuple[()]]:
    return identity_reference(x), ()  # F1


def identity_backward(res: tuple[()], g: jax.Array) -> tuple[jax.Array]:
    return (g,)  # B1


def relu_reference(x: jax.Array) -> jax.Array:
    """Set what is negative to zero: y = max(x, 0).

    Use it in hidden layers. Its output is all that its backward reads, and the next
    layer keeps that anyway.

    Scope      elementwise: any shape
    Forward    y = where(x <= 0, 0, x)                                 (F1)
    Backward   dx = where(y == 0, 0, g)                                (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output).

    Numerics: exact. At the kink x = 0 the subgradient is 0. nan stays nan, and passes g.

    Raises:
        TypeError: where x is not floating.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.3.1.
    """
    x = floating("relu", "x", x)
    return jnp.where(x <= 0, 0, x)  # F1


class OutputResiduals(NamedTuple):
    y: jax.Array


class InputResiduals(NamedTuple):
    x: jax.Array


def relu_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = relu_reference(x)  # F1
    return y, OutputResiduals(y)


def relu_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(res.y == 0, 0, g),)  # B1


def leaky_relu_reference(x: jax.Array, *, slope: float = 0.01) -> jax.Array:
    """Scale what is negative by a small slope: y = x above zero, slope * x below.

    Use it in place of relu where units die (always negative, so without a gradient).

    Scope      elementwise: any shape
    Forward    y = where(x > 0, x, slope * x)                          (F1)
    Backward   dx = where(x > 0, g, slope * g)                         (B1) from F1

    Args:
        x: any shape, floating.
        slope: the slope below zero, a finite number of at least 0.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output): it is positive exactly where x is, as slope >= 0.

    Numerics: slope * x in float32 at least. At the kink x = 0 the subgradient is slope.
        With slope = 0, x = -inf gives nan; relu does not.

    Raises:
        TypeError: where x is not floating.
        ValueError: where slope is negative or not finite.

    Source: Maas, Hannun and Ng (2013), Rectifier nonlinearities improve neural network
        acoustic models.
    """
    x = floating("leaky_relu", "x", x)
    if not 0 <= slope < float("inf"):
        raise ValueError(
            f"leaky_relu: slope must be a finite number of at least 0, got {slope!r}. The sign of "
            "y would not tell that of x."
        )
    return jnp.where(x > 0, up(x), slope * up(x)).astype(x.dtype)  # F1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LeakyReluResiduals:
    y: jax.Array
    slope: float = field(metadata={"static": True})


def leaky_relu_forward(x: jax.Array, *, slope: float) -> tuple[jax.Array, LeakyReluResiduals]:
    y = leaky_relu_reference(x, slope=slope)  # F1
    return y, LeakyReluResiduals(y, slope)


def leaky_relu_backward(res: LeakyReluResiduals, g: jax.Array) -> tuple[jax.Array]:
    g = up(g)
    return (jnp.where(res.y > 0, g, res.slope * g),)  # B1


def sigmoid_reference(x: jax.Array) -> jax.Array:
    """Squash into (0, 1): y = 1 / (1 + exp(-x)).

    Use it for gates and for probabilities of one event. As the last layer before a
    cross-entropy use sigmoid_binary_cross_entropy on the logits instead.

    Scope      elementwise: any shape
    Forward    y = 1 / (1 + exp(-x))                                   (F1)
    Backward   dx = g * y * (1 - y)                                    (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output).

    Numerics: computed in float32 at least, rounded once; the gradient has the rounding of
        the stored y in it, so it is 0 where y rounds to 1 (x > 17 in float32, > 6.3 in
        bfloat16). At -inf and inf y is 0 and 1, the gradient 0.

    Raises:
        TypeError: where x is not floating.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 3.10.
    """
    x = floating("sigmoid", "x", x)
    return jax.nn.sigmoid(up(x)).astype(x.dtype)  # F1


def sigmoid_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = sigmoid_reference(x)  # F1
    return y, OutputResiduals(y)


def sigmoid_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    y, g = up(res.y), up(g)
    return (g * y * (1 - y),)  # B1


def tanh_reference(x: jax.Array) -> jax.Array:
    """Squash into (-1, 1): y = tanh(x).

    Use it where a bounded, zero-centred output is wanted, as in recurrent states.

    Scope      elementwise: any shape
    Forward    y = tanh(x)                                             (F1)
    Backward   dx = g * (1 - y) * (1 + y)                              (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output).

    Numerics: computed in float32 at least, rounded once. (1 - y) * (1 + y) and not
        1 - y * y: near saturation the first difference is exact, the second has lost the
        low digits of the square. What y's own rounding lost stays lost: the gradient is 0
        where y rounds to 1 (|x| > 9 in float32, > 3.5 in bfloat16).

    Raises:
        TypeError: where x is not floating.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 6.3.2.
    """
    x = floating("tanh", "x", x)
    return jnp.tanh(up(x)).astype(x.dtype)  # F1


def tanh_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = tanh_reference(x)  # F1
    return y, OutputResiduals(y)


def tanh_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    y, g = up(res.y), up(g)
    return (g * (1 - y) * (1 + y),)  # B1


def softplus_reference(x: jax.Array) -> jax.Array:
    """Smooth relu: y = log(1 + exp(x)).

    Use it where an output must be positive, such as a scale or a variance.

    Scope      elementwise: any shape
    Forward    y = log(1 + exp(x))                                     (F1)
    Backward   dx = g * (1 - exp(-y))                                  (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output). The derivative is sigmoid(x) = 1 - exp(-y), so x is not kept.

    Numerics: computed as log(exp(x) + exp(0)), shifted by the larger exponent, in float32 at
        least; 1 - exp(-y) by expm1, which keeps its relative accuracy where y is small, and
        the rounding of y harms it nowhere. At -inf and inf y is 0 and inf, the gradient 0, g.

    Raises:
        TypeError: where x is not floating.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 3.10.
    """
    x = floating("softplus", "x", x)
    return jnp.logaddexp(up(x), 0.0).astype(x.dtype)  # F1


def softplus_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = softplus_reference(x)  # F1
    return y, OutputResiduals(y)


def softplus_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    y, g = up(res.y), up(g)
    return (-g * jnp.expm1(-y),)  # B1


def elementwise_cases(**options: Hashable) -> list[Case]:
    """Arguments for a rule of one array that works on each element by itself."""
    x = normal(0, 4, 3)
    odd = normal(1, 3, 1, 7)
    zeros = jnp.array([0.0, -0.0, 0.0], jnp.float32)
    large = jnp.array([-1e4, -100.0, 100.0, 1e4], jnp.float32)
    infinite = jnp.array([-jnp.inf, jnp.inf], jnp.float32)
    return [
        Case("matrix", (x,), options),
        Case("batch of one", (x[:1],), options),
        Case("scalar", (x[0, 0],), options),
        Case("odd shape", (odd,), options),
        Case("bfloat16", (x.astype(jnp.bfloat16),), options),
        Case("zeros", (zeros,), options, edge=True),
        Case("large", (large,), options, edge=True),
        Case("infinite", (infinite,), options, edge=True),
        Case("nan", (jnp.full((2,), jnp.nan, jnp.float32),), options, edge=True),
        Case("empty", (x[:0],), options, edge=True),
    ]


def few_cases(*kinks: float, **options: Hashable) -> list[Case]:
    """The same, fewer, for a rule that shares its code with others; `kinks` beside 0."""
    zeros = jnp.array([*kinks, 0.0, -0.0], jnp.float32)
    far = jnp.array([-jnp.inf, -1e4, -100.0, 100.0, 1e4, jnp.inf], jnp.float32)
    x = 2 * normal(0, 4, 3)
    return [
        Case("matrix", (x,), options),
        Case("bfloat16", (x.astype(jnp.bfloat16),), options),
        Case("zeros", (zeros,), options, edge=True),
        Case("far out", (far,), options, edge=True),
        Case("empty", (x[:0],), options, edge=True),
    ]


def leaky_relu_cases() -> list[Case]:
    return [
        *elementwise_cases(),
        *elementwise_cases(slope=0.0)[:1],
        *elementwise_cases(slope=2.0)[:1],
    ]


identity = Rule(
    identity_reference, identity_forward, identity_backward, elementwise_cases, budget=0
)
relu = Rule(relu_reference, relu_forward, relu_backward, elementwise_cases, budget=0)
leaky_relu = Rule(
    leaky_relu_reference, leaky_relu_forward, leaky_relu_backward, leaky_relu_cases, budget=0
)
sigmoid = Rule(sigmoid_reference, sigmoid_forward, sigmoid_backward, elementwise_cases, budget=0)
tanh = Rule(tanh_reference, tanh_forward, tanh_backward, elementwise_cases, budget=0)
softplus = Rule(
    softplus_reference, softplus_forward, softplus_backward, elementwise_cases, budget=0
)
