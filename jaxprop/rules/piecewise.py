"""Piecewise linear activations with more than one kink, or with a slope that is learned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import InputResiduals, OutputResiduals, few_cases
from jaxprop.samples import normal


def relu6_reference(x: jax.Array) -> jax.Array:
    """Clip to 0 .. 6.

    Use it in networks that are to be quantised: its range is known.

    Scope      elementwise: any shape
    Forward    y = where(x <= 0, 0, where(x >= 6, 6, x))               (F1)
    Backward   dx = where(y == 0, 0, where(y == 6, 0, g))              (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output).

    Numerics: exact. At the kinks x = 0 and x = 6 the subgradient is 0. nan stays nan, and passes g.

    Raises:
        TypeError: where x is not floating.

    Source: Krizhevsky (2010), Convolutional deep belief networks on CIFAR-10, section 2.
    """
    return _clipped(floating("relu6", "x", x), 0, 6)  # F1


def relu6_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = relu6_reference(x)  # F1
    return y, OutputResiduals(y)


def relu6_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((res.y == 0) | (res.y == 6), 0, g),)  # B1


def hard_tanh_reference(x: jax.Array) -> jax.Array:
    """Clip to -1 .. 1.

    Use it in place of tanh where that is too dear.

    Scope      elementwise: any shape
    Forward    y = where(x <= -1, -1, where(x >= 1, 1, x))             (F1)
    Backward   dx = where(abs(y) == 1, 0, g)                           (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output).

    Numerics: exact. At the kinks x = -1 and x = 1 the subgradient is 0, as in PyTorch; jax.nn has
        1, which cannot be told from y. nan stays nan, and passes g.

    Raises:
        TypeError: where x is not floating.

    Source: Collobert (2004), Large scale machine learning, section 3.1.
    """
    return _clipped(floating("hard_tanh", "x", x), -1, 1)  # F1


def hard_tanh_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = hard_tanh_reference(x)  # F1
    return y, OutputResiduals(y)


def hard_tanh_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(jnp.abs(res.y) == 1, 0, g),)  # B1


def hard_sigmoid_reference(x: jax.Array) -> jax.Array:
    """Squash into 0 .. 1 by a straight line: y = (x + 3) / 6, clipped.

    Use it in place of sigmoid where that is too dear.

    Scope      elementwise: any shape
    Forward    y = where(x <= -3, 0, where(x >= 3, 1, (x + 3) / 6))    (F1)
    Backward   dx = where(abs(x) >= 3, 0, g / 6)                       (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument): y may round to 0 or 1 before x gets to a kink.

    Numerics: in float32 at least, rounded once. At the kinks x = -3 and x = 3 the subgradient is 0.

    Raises:
        TypeError: where x is not floating.

    Source: Howard et al. (2019), Searching for MobileNetV3, section 5.2.
    """
    return hard_gate(floating("hard_sigmoid", "x", x)).astype(x.dtype)  # F1


def hard_sigmoid_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return hard_sigmoid_reference(x), InputResiduals(x)  # F1


def hard_sigmoid_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(jnp.abs(res.x) >= 3, 0, up(g) / 6),)  # B1


def hard_gate(x: jax.Array) -> jax.Array:
    """(x + 3) / 6, clipped to 0 .. 1, in the dtype to compute in."""
    x = up(x)
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 3) / 6))


def prelu_reference(x: jax.Array, slope: jax.Array) -> jax.Array:
    """Scale what is negative by a slope that is learned: y = x above zero, slope * x below.

    Use it as leaky_relu whose slope the data shall decide, for all channels or for each.

    Scope      rows: x (B, C), slope (C,)
    Forward    y = where(x > 0, x, slope * x)                          (F1)
    Backward   dx = where(x > 0, g, slope * g)                         (B1) from F1
               dslope = sum_rows(where(x > 0, 0, x * g))               (B2) from F1

    Args:
        x: (..., C), floating; any shape where slope is a scalar.
        slope: a scalar or (C,), floating; any sign.

    Returns:
        y: x's shape and dtype.

    Residuals: x and slope (arguments): with a slope of any sign y does not tell that of x.

    Numerics: products in float32 at least, rounded once; dslope is summed there too. At the kink
        x = 0 the subgradient is slope, as in leaky_relu and PyTorch; in Flax it is 1. On a CPU XLA
        lays out what B2 adds up, an array of x's size; what automatic differentiation adds up it
        does not.

    Raises:
        TypeError: where x or slope is not floating.
        ValueError: where slope is neither a scalar nor (C,).

    Source: He et al. (2015), Delving deep into rectifiers, equations 1 and 3.
    """
    x, slope = floating("prelu", "x", x), floating("prelu", "slope", slope)
    if slope.shape not in ((), x.shape[-1:]):
        raise ValueError(
            f"prelu: slope must be a scalar or one per channel, {x.shape[-1:]}, got {slope.shape} "
            f"for x {x.shape}. Channels are the last axis."
        )
    wide = up(x)
    slope = slope.astype(wide.dtype)
    return jnp.where(wide > 0, wide, slope * wide).astype(x.dtype)  # F1


class PreluResiduals(NamedTuple):
    x: jax.Array
    slope: jax.Array


def prelu_forward(x: jax.Array, slope: jax.Array) -> tuple[jax.Array, PreluResiduals]:
    return prelu_reference(x, slope), PreluResiduals(x, slope)  # F1


def prelu_backward(res: PreluResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = at_least_float32(res.x.dtype, res.slope.dtype)
    x, slope, g = res.x.astype(wide), res.slope.astype(wide), g.astype(wide)
    axes = tuple(range(g.ndim - slope.ndim))
    dslope = jnp.sum(jnp.where(x > 0, 0, x * g), axes)  # B2
    return jnp.where(x > 0, g, slope * g), dslope  # B1


def _clipped(x: jax.Array, low: int, high: int) -> jax.Array:
    """x within low .. high; at either the constant is meant, so that the subgradient is 0."""
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def relu6_cases() -> list[Case]:
    return few_cases(6.0)


def hard_tanh_cases() -> list[Case]:
    return few_cases(-1.0, 1.0)


def hard_sigmoid_cases() -> list[Case]:
    return few_cases(-3.0, 3.0)


def prelu_cases() -> list[Case]:
    x, slope = normal(0, 4, 3), jnp.array([0.25, -0.5, 1.5], jnp.float32)
    rows = {"x": x, "slope": slope}
    return [
        Case("slope per channel", (x, slope)),
        Case("one slope", (x, slope[0]), given=rows),
        Case("more axes", (normal(1, 4, 2, 3), slope)),
        Case("bfloat16, float32 slope", (x.astype(jnp.bfloat16), slope)),
        Case("zeros", (0 * x, slope), edge=True),
        Case("empty", (x[:0], slope), edge=True),
    ]


relu6 = Rule(relu6_reference, relu6_forward, relu6_backward, relu6_cases, budget=0)
hard_tanh = Rule(
    hard_tanh_reference, hard_tanh_forward, hard_tanh_backward, hard_tanh_cases, budget=0
)
hard_sigmoid = Rule(
    hard_sigmoid_reference,
    hard_sigmoid_forward,
    hard_sigmoid_backward,
    hard_sigmoid_cases,
    budget=0,
)
prelu = Rule(prelu_reference, prelu_forward, prelu_backward, prelu_cases, budget=0)
