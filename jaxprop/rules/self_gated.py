"""Self-gated activations: x times a probability that grows with x."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi, sqrt

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import InputResiduals, elementwise_cases, few_cases
from jaxprop.rules.piecewise import hard_gate

# Beyond this the probability is 0 or 1 in every dtype, and y is 0 or x.
LIMIT = 1000.0
# From here on mish's probability is 1 in every dtype; the exponential's fourth power is a float32.
MISH_LIMIT = 21.0


def silu_reference(x: jax.Array) -> jax.Array:
    """Gate x by its own sigmoid: y = x * sigmoid(x); also called swish.

    Use it in hidden layers where a smooth relu is wanted.

    Scope      elementwise: any shape
    Forward    p = 1 / (1 + exp(-x))                                   (F1)
               y = x * p                                               (F2)
    Backward   dp = x * g                                              (B1) from F2
               dx = p * g + p * (1 - p) * dp                           (B2) from F1, F2

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument); p is recomputed.

    Numerics: computed in float32 at least, rounded once. At -inf and inf y is 0 and inf, the
        gradient 0 and g (the limits; x * p would be nan).

    Raises:
        TypeError: where x is not floating.

    Source: Elfwing, Uchibe and Doya (2018), Sigmoid-weighted linear units, equation 1.
    """
    x = floating("silu", "x", x)
    return _with_limits(lambda x: x * jax.nn.sigmoid(x), up(x)).astype(x.dtype)  # F1, F2


def silu_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return silu_reference(x), InputResiduals(x)  # F1, F2


def silu_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    x, g = _again(res.x), up(g)
    p = jax.nn.sigmoid(x)  # F1, recomputed
    dp = x * g  # B1
    return (p * g + p * (1 - p) * dp,)  # B2


def gelu_reference(x: jax.Array, *, approximate: bool) -> jax.Array:
    """Gate x by the normal distribution: y = x * P(Z < x), Z standard normal.

    Use it in transformer blocks. The approximation replaces erf(x / sqrt(2)) by tanh(u).

    Scope      elementwise: any shape; one of the two forms of p
    Forward    u = sqrt(2 / pi) * (x + 0.044715 * x ** 3)              (F1)
               p = where(approximate, 1 / (1 + exp(-2 * u)),
                         (1 + erf(x / sqrt(2))) / 2)                   (F2)
               y = x * p                                               (F3)
    Backward   dp = x * g                                              (B1) from F3
               du = where(approximate, 2 * p * (1 - p) * dp, 0)        (B2) from F2
               dx = p * g + where(approximate,
                         sqrt(2 / pi) * (1 + 3 * 0.044715 * x ** 2) * du,
                         exp(-x * x / 2) / sqrt(2 * pi) * dp)          (B3) from F1, F2, F3

    Args:
        x: any shape, floating.
        approximate: whether p is the approximation, (1 + tanh(u)) / 2, or exact; there is no
            default, as libraries differ in theirs.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument); u and p are recomputed.

    Numerics: computed in float32 at least, rounded once; the exact p by erfc, which keeps its
        relative accuracy at negative x. At -inf and inf y is 0 and inf, the gradient 0 and g.

    Raises:
        TypeError: where x is not floating.

    Source: Hendrycks and Gimpel (2016), Gaussian error linear units, section 2.
    """
    x = floating("gelu", "x", x)
    return _with_limits(lambda x: x * _normal(x, approximate), up(x)).astype(x.dtype)  # F1 to F3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GeluResiduals:
    x: jax.Array
    approximate: bool = field(metadata={"static": True})


def gelu_forward(x: jax.Array, *, approximate: bool) -> tuple[jax.Array, GeluResiduals]:
    return gelu_reference(x, approximate=approximate), GeluResiduals(x, approximate)  # F1 to F3


def gelu_backward(res: GeluResiduals, g: jax.Array) -> tuple[jax.Array]:
    x, g = _again(res.x), up(g)
    p = _normal(x, res.approximate)  # F1, F2, recomputed
    dp = x * g  # B1
    if res.approximate:
        du = 2 * p * (1 - p) * dp  # B2
        return (p * g + sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2) * du,)  # B3
    return (p * g + jnp.exp(-x * x / 2) / sqrt(2 * pi) * dp,)  # B3


def mish_reference(x: jax.Array) -> jax.Array:
    """Gate x by the tanh of its softplus: y = x * tanh(log(1 + exp(x))).

    Use it in hidden layers where a smooth relu is wanted that dips a little deeper than silu.

    Scope      elementwise: any shape
    Forward    s = log(1 + exp(x))                                     (F1)
               p = tanh(s)                                             (F2)
               y = x * p                                               (F3)
    Backward   dp = x * g                                              (B1) from F3
               ds = (1 - p) * (1 + p) * dp                             (B2) from F2
               dx = p * g + (1 - exp(-s)) * ds                         (B3) from F1, F3

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument); s and p are recomputed.

    Numerics: computed in float32 at least, rounded once. tanh(s) is w / (w + 2) with e = exp(x) and
        w = e * (e + 2): an exponential and a quotient, where nothing cancels, in place of a
        logarithm and a tanh. At -inf and inf y is 0 and inf, the gradient 0 and g.

    Raises:
        TypeError: where x is not floating.

    Source: Misra (2020), Mish: a self regularized non-monotonic activation function, equation 1.
    """
    x = floating("mish", "x", x)

    def gated(x: jax.Array) -> jax.Array:
        _, w = _mish_gate(x)  # F1
        return x * (w / (w + 2))  # F2, F3

    return _with_limits(gated, up(x)).astype(x.dtype)


def mish_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return mish_reference(x), InputResiduals(x)  # F1 to F3


def mish_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    x, g = _again(res.x), up(g)
    x = jnp.minimum(x, MISH_LIMIT)  # the gradient is g from there on
    e, w = _mish_gate(x)  # F1, F2, recomputed
    # p is w / (w + 2), and (1 - exp(-s)) * (1 - p) * (1 + p) is 4 * (w - e) / (w + 2) ** 2.
    slope = (w * (w + 2) + 4 * (w - e) * x) / ((w + 2) * (w + 2))
    return (slope * g,)  # B1 to B3


def hard_silu_reference(x: jax.Array) -> jax.Array:
    """Gate x by a straight line clipped to 0 .. 1: y = x * hard_sigmoid(x); also hard swish.

    Use it in place of silu where that is too dear.

    Scope      elementwise: any shape
    Forward    p = where(x <= -3, 0, where(x >= 3, 1, (x + 3) / 6))    (F1)
               y = x * p                                               (F2)
    Backward   dp = x * g                                              (B1) from F2
               dx = p * g + where(abs(x) >= 3, 0, dp / 6)              (B2) from F1, F2

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument); p is recomputed.

    Numerics: in float32 at least, rounded once. At the kinks x = -3 and x = 3 the subgradient is 0
        and g, as p's is 0 there. At -inf and inf y is 0 and inf, the gradient 0 and g.

    Raises:
        TypeError: where x is not floating.

    Source: Howard et al. (2019), Searching for MobileNetV3, section 5.2.
    """
    x = floating("hard_silu", "x", x)
    return _with_limits(lambda x: x * hard_gate(x), up(x)).astype(x.dtype)  # F1, F2


def hard_silu_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return hard_silu_reference(x), InputResiduals(x)  # F1, F2


def hard_silu_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    x, g = _again(res.x), up(g)
    dp = x * g  # B1
    return (hard_gate(x) * g + jnp.where(jnp.abs(x) >= 3, 0, dp / 6),)  # B2


def relu_squared_reference(x: jax.Array) -> jax.Array:
    """Gate x by its own relu: y = max(x, 0) ** 2.

    Use it in transformer blocks in place of gelu, where it was found by search.

    Scope      elementwise: any shape
    Forward    h = where(x <= 0, 0, x)                                 (F1)
               y = h * h                                               (F2)
    Backward   dh = 2 * h * g                                          (B1) from F2
               dx = where(x <= 0, 0, dh)                               (B2) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument).

    Numerics: squared in float32 at least, rounded once. There is no kink: the gradient at 0 is 0.

    Raises:
        TypeError: where x is not floating.

    Source: So et al. (2021), Primer: searching for efficient transformers, section 4.
    """
    x = floating("relu_squared", "x", x)
    h = jnp.where(x <= 0, 0, up(x))  # F1
    return (h * h).astype(x.dtype)  # F2


def relu_squared_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return relu_squared_reference(x), InputResiduals(x)  # F1, F2


def relu_squared_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    x = up(res.x)
    return (jnp.where(x <= 0, 0, 2 * x * up(g)),)  # B1, B2


def _normal(x: jax.Array, approximate: bool) -> jax.Array:
    """The probability p that a standard normal variable lies below x."""
    if approximate:
        u = sqrt(2 / pi) * (x + 0.044715 * x**3)  # F1
        return jax.nn.sigmoid(2 * u)  # F2
    return jax.scipy.special.erfc(-x / sqrt(2)) / 2  # F2


def _mish_gate(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """e = exp(x) = exp(s) - 1, and w = e * (e + 2), of which tanh(s) is w / (w + 2)."""
    e = jnp.exp(jnp.minimum(x, MISH_LIMIT))  # F1
    return e, e * (e + 2)


def _clipped(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -LIMIT, LIMIT)


def _again(x: jax.Array) -> jax.Array:
    """x to compute with once more; XLA must not know it for what forward read.

    Else it computes the gate once and keeps it from forward to backward, in float32.
    """
    return _clipped(up(lax.optimization_barrier(x)))


def _with_limits(gated: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """gated(x), with its limits 0 and x far out, where inf * 0 would make it nan."""
    return jnp.where(x >= LIMIT, x, gated(_clipped(x)))


def hard_silu_cases() -> list[Case]:
    return few_cases(-3.0, 3.0)


def gelu_cases() -> list[Case]:
    return [*elementwise_cases(approximate=True), *elementwise_cases(approximate=False)]


silu = Rule(silu_reference, silu_forward, silu_backward, elementwise_cases, budget=0)
gelu = Rule(gelu_reference, gelu_forward, gelu_backward, gelu_cases, budget=0)
mish = Rule(mish_reference, mish_forward, mish_backward, few_cases, budget=0)
hard_silu = Rule(
    hard_silu_reference, hard_silu_forward, hard_silu_backward, hard_silu_cases, budget=0
)
relu_squared = Rule(
    relu_squared_reference, relu_squared_forward, relu_squared_backward, few_cases, budget=0
)
