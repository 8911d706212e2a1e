"""Surrogates: functions whose backward is, on purpose, not their derivative.

Each reference says so to JAX as well: under `automatic()` its gradient is the one stated here. The
exception is clip_gradient, whose backward is the derivative of no function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import InputResiduals
from jaxprop.samples import normal


@jax.custom_jvp
def as_if(y: jax.Array, h: jax.Array) -> jax.Array:
    """y, which JAX differentiates as if it were h."""
    return y


@as_if.defjvp
def _as_if_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return as_if(*primals), tangents[1]


def straight_through_round_reference(x: jax.Array) -> jax.Array:
    """Round to whole numbers, with the gradient of the identity.

    Use it to train through quantisation: the derivative of rounding is 0, which teaches nothing.

    Scope      elementwise: any shape; a surrogate: B1 is not the derivative of F1
    Forward    y = round(x)                                            (F1)
    Backward   dx = g                                                  (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: none.

    Numerics: exact. Halves go to the even number, as in jnp.round.

    Raises:
        TypeError: where x is not floating.

    Source: Bengio, Leonard and Courville (2013), Estimating or propagating gradients through
        stochastic neurons, section 4.
    """
    x = floating("straight_through_round", "x", x)
    return as_if(jnp.round(x), x)  # F1


def straight_through_round_forward(x: jax.Array) -> tuple[jax.Array, tuple[()]]:
    return straight_through_round_reference(x), ()  # F1


def straight_through_round_backward(res: tuple[()], g: jax.Array) -> tuple[jax.Array]:
    return (g,)  # B1


def straight_through_sign_reference(x: jax.Array) -> jax.Array:
    """Make 1 of what is at least 0 and -1 of the rest; the gradient passes where abs(x) <= 1.

    Use it for binary weights and activations. Beyond 1 the gradient is 0, so that x stays where
    a step can still turn its sign.

    Scope      elementwise: any shape; a surrogate: B1 is not the derivative of F1
    Forward    y = where(x >= 0, 1, -1)                                (F1)
    Backward   dx = where(abs(x) <= 1, g, 0)                           (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument).

    Numerics: exact. The sign of 0 is 1, where jnp.sign has 0: a binary weight has two values. nan
        stays nan, with the gradient 0.

    Raises:
        TypeError: where x is not floating.

    Source: Hubara et al. (2016), Binarized neural networks, equations 1 and 4.
    """
    x = floating("straight_through_sign", "x", x)
    sign = jnp.where(x >= 0, 1, jnp.where(x < 0, -1, x))
    return as_if(sign.astype(x.dtype), jnp.where(jnp.abs(x) <= 1, x, 0))  # F1


def straight_through_sign_forward(x: jax.Array) -> tuple[jax.Array, InputResiduals]:
    return straight_through_sign_reference(x), InputResiduals(x)  # F1


def straight_through_sign_backward(res: InputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(jnp.abs(res.x) <= 1, g, 0),)  # B1


def reverse_gradient_reference(x: jax.Array, scale: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """Return x as it is, and turn its gradient round: dx = -scale * g.

    Use it before an adversary whose loss the layers below shall make larger, such as a
    classifier of domains.

    Scope      elementwise: any shape; a surrogate: B1 is not the derivative of F1
    Forward    y = x                                                   (F1)
    Backward   dx = -scale * g                                         (B1) from F1

    Args:
        x: any shape, floating.
        scale: a floating scalar; no cotangent.

    Returns:
        y: x's shape and dtype.

    Residuals: scale (an argument).

    Numerics: y is exact; scale * g in float32 at least.

    Raises:
        TypeError: where x or scale is not floating.
        ValueError: where scale is not a scalar.

    Source: Ganin et al. (2016), Domain-adversarial training of neural networks, equations 14, 15.
    """
    x, scale = _checked("reverse_gradient", x, "scale", scale)
    return as_if(x, (-scale * up(x)).astype(x.dtype))  # F1


class StrengthResiduals(NamedTuple):
    strength: jax.Array


def reverse_gradient_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, StrengthResiduals]:
    _checked("reverse_gradient", x, "scale", scale)
    return x, StrengthResiduals(scale)  # F1


def reverse_gradient_backward(res: StrengthResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    return -_strength(res.strength, g) * up(g), None  # B1


def scale_gradient_reference(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Return x as it is, and scale its gradient: dx = scale * g.

    Use it to let a part of a network learn more slowly than what follows it; a scale of 0 stops
    the gradient.

    Scope      elementwise: any shape; a surrogate: B1 is not the derivative of F1
    Forward    y = x                                                   (F1)
    Backward   dx = scale * g                                          (B1) from F1

    Args:
        x: any shape, floating.
        scale: a floating scalar; no cotangent.

    Returns:
        y: x's shape and dtype.

    Residuals: scale (an argument).

    Numerics: y is exact; scale * g in float32 at least.

    Raises:
        TypeError: where x or scale is not floating.
        ValueError: where scale is not a scalar.

    Source: Schrittwieser et al. (2020), Mastering Atari, Go, chess and shogi by planning with a
        learned model, which scales the gradient of its dynamics by 1/2.
    """
    x, scale = _checked("scale_gradient", x, "scale", scale)
    return as_if(x, (scale * up(x)).astype(x.dtype))  # F1


def scale_gradient_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, StrengthResiduals]:
    _checked("scale_gradient", x, "scale", scale)
    return x, StrengthResiduals(scale)  # F1


def scale_gradient_backward(res: StrengthResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    return _strength(res.strength, g) * up(g), None  # B1


def clip_gradient_reference(x: jax.Array, limit: jax.Array) -> jax.Array:
    """Return x as it is, and clip each element of its gradient to -limit .. limit.

    Use it inside a network, as in recurrences of old, where a gradient may explode on its way;
    to clip the gradient of all parameters by its norm use optax.

    Scope      elementwise: any shape; a surrogate: B1 is not the derivative of F1
    Forward    y = x                                                   (F1)
    Backward   dx = maximum(-limit, minimum(g, limit))                 (B1) from F1

    Args:
        x: any shape, floating.
        limit: a floating scalar of at least 0, in the units of g; no cotangent.

    Returns:
        y: x's shape and dtype.

    Residuals: limit (an argument).

    Numerics: exact, but for a limit that g's dtype rounds; nan stays nan. Not linear in g, so the
        derivative of no function: under `automatic()` nothing is clipped, the gradient is g.

    Raises:
        TypeError: where x or limit is not floating.
        ValueError: where limit is not a scalar.

    Source: Graves (2013), Generating sequences with recurrent neural networks, section 2.1.
    """
    return _checked("clip_gradient", x, "limit", limit)[0]  # F1


def clip_gradient_forward(x: jax.Array, limit: jax.Array) -> tuple[jax.Array, StrengthResiduals]:
    return clip_gradient_reference(x, limit), StrengthResiduals(limit)  # F1


def clip_gradient_backward(res: StrengthResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    limit = _strength(res.strength, g)
    return jnp.maximum(-limit, jnp.minimum(up(g), limit)), None  # B1


def _checked(
    owner: str, x: jax.Array, name: str, strength: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """x, and the strength in the dtype to compute in, a constant for differentiation."""
    x, strength = floating(owner, "x", x), floating(owner, name, strength)
    if strength.ndim:
        raise ValueError(
            f"{owner}: {name} must be a scalar, got {strength.shape}. Call it once for each, or "
            "under jax.vmap."
        )
    return x, _strength(strength, x)


def _strength(strength: jax.Array, like: jax.Array) -> jax.Array:
    return lax.stop_gradient(jnp.asarray(strength, up(like).dtype))


def straight_through_cases() -> list[Case]:
    """Kinks are edges: the lines hold there too."""
    x = 2 * normal(0, 4, 3)
    kinks = jnp.array([-1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5], jnp.float32)
    infinite = jnp.array([-jnp.inf, jnp.inf, -1e30, 1e30], jnp.float32)
    return [
        Case("matrix", (x,)),
        Case("scalar", (x[0, 0],)),
        Case("bfloat16", (x.astype(jnp.bfloat16),)),
        Case("kinks", (kinks,), edge=True),
        Case("infinite", (infinite,), edge=True),
        Case("empty", (x[:0],), edge=True),
    ]


def scaling_cases() -> list[Case]:
    x, scale = normal(0, 4, 3), jnp.float32(0.3)
    return [
        Case("matrix", (x, scale)),
        Case("scalar", (x[0, 0], scale)),
        Case("bfloat16", (x.astype(jnp.bfloat16), scale)),
        Case("stopped", (x, 0 * scale), edge=True),
        Case("infinite", (jnp.array([-jnp.inf, jnp.inf], jnp.float32), scale), edge=True),
        Case("empty", (x[:0], scale), edge=True),
    ]


def clipping_cases() -> list[Case]:
    x, far = normal(0, 4, 3), jnp.float32(1000.0)
    return [
        Case("no limit", (x, jnp.float32(jnp.inf))),
        Case("clipped", (x, jnp.float32(0.5))),
        Case("bfloat16", (x.astype(jnp.bfloat16), far)),
        Case("empty", (x[:0], far), edge=True),
    ]


straight_through_round = Rule(
    straight_through_round_reference,
    straight_through_round_forward,
    straight_through_round_backward,
    straight_through_cases,
    budget=0,
    surrogate=True,
)
straight_through_sign = Rule(
    straight_through_sign_reference,
    straight_through_sign_forward,
    straight_through_sign_backward,
    straight_through_cases,
    budget=0,
    surrogate=True,
)
reverse_gradient = Rule(
    reverse_gradient_reference,
    reverse_gradient_forward,
    reverse_gradient_backward,
    scaling_cases,
    budget=0,
    surrogate=True,
)
scale_gradient = Rule(
    scale_gradient_reference,
    scale_gradient_forward,
    scale_gradient_backward,
    scaling_cases,
    budget=0,
    surrogate=True,
)
clip_gradient = Rule(
    clip_gradient_reference,
    clip_gradient_forward,
    clip_gradient_backward,
    clipping_cases,
    budget=0,
    surrogate=True,
)
