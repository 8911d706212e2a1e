"""What the normalisations share: numbers centred and scaled together, and the way back.

Each rule has its derivation, at its own scope. Here it runs over any axes, which are kept with
length 1, in the dtype to compute in:

    centred = x - mean(x)
    inv_std = rsqrt(mean(centred * centred) + eps)
    x_hat = inv_std * centred
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating


class Moments(NamedTuple):
    """Of numbers that are standardised together.

    Their mean is rough + rest. Far from 0 a sum of many numbers loses digits that their
    differences from it still have: rest is the mean of those differences.
    """

    rough: jax.Array
    rest: jax.Array
    inv_std: jax.Array


def mean(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    return jnp.mean(x, tuple(axes), keepdims=True)


def moments(x: jax.Array, axes: Sequence[int], eps: float) -> tuple[Moments, jax.Array]:
    """The moments over these axes, and the variance, which is biased."""
    rough = mean(x, axes)
    d = x - rough
    rest = mean(d, axes)
    variance = _variance(mean(d * d, axes), rest)
    return Moments(rough, rest, lax.rsqrt(variance + eps)), variance


def _variance(squares: jax.Array, rest: jax.Array) -> jax.Array:
    """mean((d - rest)**2) where rest is mean(d), and squares mean(d * d): one pass less over d.

    No digits are lost: rest is no more than what the rough mean was rounded by. Of equal numbers
    both are roundings, and the difference may be below 0; beyond the largest number both are inf.
    """
    variance = jnp.where(jnp.isinf(squares), squares, squares - rest * rest)
    return jnp.where(variance < 0, 0, variance)


def standardised(x: jax.Array, found: Moments) -> jax.Array:
    """x_hat."""
    return found.inv_std * ((x - found.rough) - found.rest)


def sum_x_hat(sum_g_d: jax.Array, sum_g: jax.Array, found: Moments, terms: int) -> jax.Array:
    """The sum of g * x_hat over so many terms, from those of g * d and of g, d = x - found.rough.

    XLA sums a product of two factors as it forms it; x_hat, of more, it would write out. x_hat is 0
    where the squares of d overflow, whatever sum_g_d is there.
    """
    if not terms:
        return sum_g_d  # 0, where the moments are nan
    total = found.inv_std * (sum_g_d - found.rest * sum_g)
    return jnp.where(found.inv_std == 0, 0, total)


def scaled(x_hat: jax.Array, gamma: jax.Array | None) -> jax.Array:
    return x_hat if gamma is None else gamma.astype(x_hat.dtype) * x_hat


def mean_scaled(x: jax.Array, gamma: jax.Array | None) -> jax.Array:
    """mean(gamma * x) over the channels, kept.

    As a product by the vector gamma: for a sum XLA's CPU compiler would write out copies of x and
    of gamma at each row.
    """
    if gamma is None:
        return mean(x, (-1,))
    total = jnp.matmul(x, gamma.astype(x.dtype), precision=lax.Precision.HIGHEST)
    return jnp.expand_dims(total, -1) / x.shape[-1]


def shifted(x: jax.Array, beta: jax.Array | None) -> jax.Array:
    return x if beta is None else x + beta.astype(x.dtype)


def sum_rows(x: jax.Array) -> jax.Array:
    return jnp.sum(x, tuple(range(x.ndim - 1)))


def sum_held_rows(x: jax.Array) -> jax.Array:
    """sum_rows of what is in memory anyway: a product by ones.

    XLA's CPU compiler adds few, very wide rows up column by column otherwise.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.matmul(jnp.ones(len(rows), x.dtype), rows, precision=lax.Precision.HIGHEST)


def check(owner: str, x: jax.Array, eps: float, **parameters: jax.Array | None) -> None:
    """TypeError or ValueError where x has no channels, a parameter does not fit them, or eps."""
    if floating(owner, "x", x).ndim < 1:
        raise ValueError(
            f"{owner}: x must be (..., C), got a scalar. Give it an axis of channels, the last."
        )
    for name, parameter in parameters.items():
        if parameter is not None and floating(owner, name, parameter).shape != x.shape[-1:]:
            raise ValueError(
                f"{owner}: {name} must be (C,) = {x.shape[-1:]}, the last axis of x, got "
                f"{parameter.shape}. Give one number per channel."
            )
    check_eps(owner, eps)


def check_eps(owner: str, eps: float) -> None:
    if not 0 < eps < float("inf"):
        raise ValueError(
            f"{owner}: eps must be positive and finite, got {eps!r}. It keeps numbers that are all "
            "the same from being divided by 0."
        )
