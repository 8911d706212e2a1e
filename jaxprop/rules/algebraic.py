"""Smooth activations of bounded range or slope: soft_sign, squareplus, soft_cap."""

from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.activations import OutputResiduals, few_cases
from jaxprop.samples import normal

# Beyond these the limits are the values in every dtype, and the formulas would overflow.
SOFT_SIGN_LIMIT = 2.0**60
SQUAREPLUS_LIMIT = 1e18
TANH_LIMIT = 100.0


def soft_sign_reference(x: jax.Array) -> jax.Array:
    """Squash into (-1, 1): y = x / (1 + abs(x)).

    Use it in place of tanh where units should saturate slowly.

    Scope      elementwise: any shape
    Forward    y = x / (1 + abs(x))                                    (F1)
    Backward   dx = g * (1 - abs(y)) ** 2                              (B1) from F1

    Args:
        x: any shape, floating.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output): 1 - abs(y) is 1 / (1 + abs(x)).

    Numerics: computed in float32 at least, rounded once; the gradient has the rounding of the
        stored y in it, so it is 0 where y rounds to 1. There is no kink at 0. At -inf and inf y is
        -1 and 1, the gradient 0.

    Raises:
        TypeError: where x is not floating.

    Source: Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward
        neural networks, section 2.
    """
    x = floating("soft_sign", "x", x)
    wide = up(x)
    far = jnp.abs(wide) > SOFT_SIGN_LIMIT
    near = jnp.where(far, 0, wide)
    return jnp.where(far, jnp.sign(wide), near / (1 + jnp.abs(near))).astype(x.dtype)  # F1


def soft_sign_forward(x: jax.Array) -> tuple[jax.Array, OutputResiduals]:
    y = soft_sign_reference(x)  # F1
    return y, OutputResiduals(y)


def soft_sign_backward(res: OutputResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (up(g) * jnp.square(1 - jnp.abs(up(res.y))),)  # B1


def squareplus_reference(x: jax.Array, *, b: float = 4.0) -> jax.Array:
    """Smooth relu without an exponential: y = (x + sqrt(x * x + b)) / 2.

    Use it as softplus that is cheaper and grows no faster.

    Scope      elementwise: any shape
    Forward    r = sqrt(x * x + b)                                     (F1)
               y = (x + r) / 2                                         (F2)
    Backward   dr = g / 2                                              (B1) from F2
               dx = g * y * y / (y * y + b / 4)                        (B2) from F1, F2

    Args:
        x: any shape, floating.
        b: the width of the bend, squared; positive and finite. y is sqrt(b) / 2 at 0.

    Returns:
        y: x's shape and dtype.

    Residuals: y (the output). B2 is g / 2 + x / r * dr: y * (r - x) is b / 2, which gives x and r.

    Numerics: computed in float32 at least, rounded once; below 0 as b / 2 / (r - x), where the sum
        would lose all digits. At -inf and inf y is 0 and inf, the gradient 0 and g.

    Raises:
        TypeError: where x is not floating.
        ValueError: where b is not positive and finite.

    Source: Barron (2021), Squareplus: a softplus-like algebraic rectifier, equation 1.
    """
    x = floating("squareplus", "x", x)
    if not 0 < b < float("inf"):
        raise ValueError(
            f"squareplus: b must be positive and finite, got {b!r}. For b = 0 it is relu."
        )
    u = up(x) / sqrt(b)
    near = jnp.where(jnp.abs(u) < SQUAREPLUS_LIMIT, u, 0)
    r = jnp.sqrt(near * near + 1)  # F1
    larger = r + jnp.where(near > 0, near, -near)
    bent = jnp.where(near > 0, larger, 1 / larger)
    y = jnp.where(u >= SQUAREPLUS_LIMIT, 2 * u, jnp.where(u <= -SQUAREPLUS_LIMIT, 0, bent))
    return jnp.where(jnp.isnan(u), u, y * (sqrt(b) / 2)).astype(x.dtype)  # F2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SquareplusResiduals:
    y: jax.Array
    b: float = field(metadata={"static": True})


def squareplus_forward(x: jax.Array, *, b: float) -> tuple[jax.Array, SquareplusResiduals]:
    y = squareplus_reference(x, b=b)  # F1, F2
    return y, SquareplusResiduals(y, b)


def squareplus_backward(res: SquareplusResiduals, g: jax.Array) -> tuple[jax.Array]:
    q = sqrt(res.b) / (2 * up(res.y))
    return (up(g) / (1 + q * q),)  # B2, divided by y * y


def soft_cap_reference(x: jax.Array, cap: jax.Array) -> jax.Array:
    """Keep within -cap .. cap, smoothly: y = cap * tanh(x / cap).

    Use it on logits and attention scores that must not grow without bound.

    Scope      elementwise: any shape, cap a scalar
    Forward    u = x / cap                                             (F1)
               t = tanh(u)                                             (F2)
               y = cap * t                                             (F3)
    Backward   dt = cap * g                                            (B1) from F3
               du = (1 - t) * (1 + t) * dt                             (B2) from F2
               dx = du / cap                                           (B3) from F1
               dcap = sum_all(g * t - du * u / cap)                    (B4) from F1, F3

    Args:
        x: any shape, floating.
        cap: a positive scalar, floating, in the units of x.

    Returns:
        y: x's shape and dtype.

    Residuals: x and cap (arguments) and y (the output). dx reads t from y; dcap, where it is asked
        for, from x, as it is a small difference.

    Numerics: computed in float32 at least, rounded once; dcap is summed there too. dx has the
        rounding of the stored y in it, so it is 0 where y rounds to cap; dcap is a difference that
        loses digits where x is far below cap. At -inf and inf y is -cap and cap, dx 0.

    Raises:
        TypeError: where x or cap is not floating.
        ValueError: where cap is not a scalar.

    Source: Gemma Team (2024), Gemma 2, section 2, "logit soft-capping".
    """
    x, cap = floating("soft_cap", "x", x), floating("soft_cap", "cap", cap)
    if cap.ndim:
        raise ValueError(
            f"soft_cap: cap must be a scalar, got {cap.shape}. Call it once for each, or under "
            "jax.vmap."
        )
    u = _over(x, cap)  # F1
    return (cap.astype(u.dtype) * jnp.tanh(u)).astype(x.dtype)  # F2, F3


class SoftCapResiduals(NamedTuple):
    x: jax.Array
    cap: jax.Array
    y: jax.Array


def soft_cap_forward(x: jax.Array, cap: jax.Array) -> tuple[jax.Array, SoftCapResiduals]:
    y = soft_cap_reference(x, cap)  # F1 to F3
    return y, SoftCapResiduals(x, cap, y)


def soft_cap_backward(res: SoftCapResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, g = up(res.y), up(g)
    t = y / res.cap.astype(y.dtype)  # F2, told from F3
    dx = (1 - t) * (1 + t) * g  # B1, B2, B3
    u = _over(res.x, res.cap)  # F1, recomputed
    t = jnp.tanh(u)  # F2, recomputed
    return dx, jnp.sum(g * (t - (1 - t) * (1 + t) * u))  # B4


def _over(x: jax.Array, cap: jax.Array) -> jax.Array:
    """x / cap, as far as tanh can tell; inf * 0 would be nan."""
    x = up(x)
    cap = cap.astype(x.dtype)
    limit = TANH_LIMIT * lax.stop_gradient(cap)
    return jnp.clip(x, -limit, limit) / cap


def squareplus_cases() -> list[Case]:
    return [*few_cases(), *few_cases(b=0.25)[:1]]


def soft_cap_cases() -> list[Case]:
    x, cap = 2 * normal(0, 4, 3), jnp.float32(1.5)
    far = jnp.array([-jnp.inf, -1e4, 0.0, 1e4, jnp.inf], jnp.float32)
    return [
        Case("matrix", (x, cap)),
        Case("scalar", (x[0, 0], cap)),
        Case("bfloat16, float32 cap", (x.astype(jnp.bfloat16), cap)),
        Case("far out", (far, cap), edge=True),
        Case("empty", (x[:0], cap), edge=True),
    ]


soft_sign = Rule(soft_sign_reference, soft_sign_forward, soft_sign_backward, few_cases, budget=0)
squareplus = Rule(
    squareplus_reference, squareplus_forward, squareplus_backward, squareplus_cases, budget=0
)
soft_cap = Rule(soft_cap_reference, soft_cap_forward, soft_cap_backward, soft_cap_cases, budget=0)
