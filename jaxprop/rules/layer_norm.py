"""Normalisations of each row by itself: layer_norm and rms_norm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.standardised import (
    Moments,
    check,
    mean,
    mean_scaled,
    moments,
    scaled,
    shifted,
    standardised,
    sum_held_rows,
)
from jaxprop.samples import normal, replaced

ROW = (-1,)


def rms_norm_reference(x: jax.Array, gamma: jax.Array | None, *, eps: float) -> jax.Array:
    """Divide each row by its root mean square, and scale each channel: y = gamma * x / rms(x).

    Use it in transformer blocks, in place of layer_norm: it leaves the mean of a row where it is,
    and needs no beta.

    Scope      rows: x (B, C), gamma (C,), ones where it is None
    Forward    inv_rms = rsqrt(mean(x * x) + eps)                      (F1)
               x_hat = inv_rms * x                                     (F2)
               y = gamma * x_hat                                       (F3)
    Backward   dgamma = sum_rows(g * x_hat)                            (B1) from F3
               dx_hat = gamma * g                                      (B2) from F3
               dx = inv_rms * (dx_hat - x_hat * mean(x_hat * dx_hat))  (B3) from F1, F2

    Args:
        x: (..., C), floating.
        gamma: (C,), floating, or None for ones.
        eps: added to the mean of squares; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.

    Residuals: x and gamma (arguments), and inv_rms, one number per row; x_hat is recomputed.

    Numerics: computed in float32 at least, rounded once; dgamma is summed there too. A row of
        zeros gives zeros, and dx = dx_hat / sqrt(eps). A row whose squares overflow (1e19 in
        float32) gives zeros, value and gradient.

    Raises:
        TypeError: where x or gamma is not floating.
        ValueError: where x is a scalar, gamma is not (C,), or eps is not positive and finite.

    Source: Zhang and Sennrich (2019), Root mean square layer normalization, equation 4.
    """
    check("rms_norm", x, eps, gamma=gamma)
    wide = up(x)
    x_hat = inverse_rms(wide, eps) * wide  # F1, F2
    return scaled(x_hat, gamma).astype(x.dtype)  # F3


def inverse_rms(x: jax.Array, eps: float) -> jax.Array:
    return lax.rsqrt(mean(jnp.square(x), ROW) + eps)


class RmsNormResiduals(NamedTuple):
    x: jax.Array
    gamma: jax.Array | None
    inv_rms: jax.Array


def rms_norm_forward(
    x: jax.Array, gamma: jax.Array | None, *, eps: float
) -> tuple[jax.Array, RmsNormResiduals]:
    check("rms_norm", x, eps, gamma=gamma)
    inv_rms = inverse_rms(up(x), eps)  # F1
    y = scaled(inv_rms * up(x), gamma)  # F2, F3
    return y.astype(x.dtype), RmsNormResiduals(x, gamma, inv_rms)


def rms_norm_backward(res: RmsNormResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Behind the barrier XLA cannot keep x_hat, in float32, from forward to backward.
    x, gamma, inv_rms = lax.optimization_barrier(res)
    x_hat, g = inv_rms * up(x), up(g)  # F2, recomputed
    g_x_hat = g * x_hat
    dgamma = sum_held_rows(g_x_hat)  # B1
    dx_hat = scaled(g, gamma)  # B2
    dx = inv_rms * (dx_hat - x_hat * mean_scaled(g_x_hat, gamma))  # B3
    return dx, dgamma


def layer_norm_reference(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> jax.Array:
    """Give each row mean 0 and variance 1, then scale and shift each channel.

    Use it in transformer blocks and recurrent networks: it does not depend on the batch.

    Scope      rows: x (B, C), gamma and beta (C,), ones and zeros where they are None
    Forward    centred = x - mean(x)                                   (F1)
               inv_std = rsqrt(mean(centred * centred) + eps)          (F2)
               x_hat = inv_std * centred                               (F3)
               y = gamma * x_hat + beta                                (F4)
    Backward   dgamma = sum_rows(g * x_hat)                            (B1) from F4
               dbeta = sum_rows(g)                                     (B2) from F4
               dx_hat = gamma * g                                      (B3) from F4
               dx = inv_std * (dx_hat - mean(dx_hat)
                        - x_hat * mean(x_hat * dx_hat))                (B4) from F1, F2, F3

    Args:
        x: (..., C), floating.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.

    Residuals: x and gamma (arguments), and three numbers per row: the two of its mean, and
        inv_std; x_hat is recomputed.

    Numerics: computed in float32 at least, rounded once; dgamma and dbeta are summed there too.
        The variance is biased. The mean is kept as two numbers, and the variance is of
        differences from the first, so that rows far from 0 keep their digits. A constant row gives
        beta, and so does one whose squares overflow (1e19 in float32).

    Raises:
        TypeError: where x, gamma or beta is not floating.
        ValueError: where x is a scalar, gamma or beta is not (C,), or eps is not positive and
            finite.

    Source: Ba, Kiros and Hinton (2016), Layer normalization, equations 3 and 4.
    """
    check("layer_norm", x, eps, gamma=gamma, beta=beta)
    found, _ = moments(up(x), ROW, eps)  # F1, F2
    x_hat = standardised(up(x), found)  # F3
    return shifted(scaled(x_hat, gamma), beta).astype(x.dtype)  # F4


class LayerNormResiduals(NamedTuple):
    x: jax.Array
    gamma: jax.Array | None
    found: Moments


def layer_norm_forward(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> tuple[jax.Array, LayerNormResiduals]:
    check("layer_norm", x, eps, gamma=gamma, beta=beta)
    found, _ = moments(up(x), ROW, eps)  # F1, F2
    y = shifted(scaled(standardised(up(x), found), gamma), beta)  # F3, F4
    return y.astype(x.dtype), LayerNormResiduals(x, gamma, found)


def layer_norm_backward(
    res: LayerNormResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Behind the barrier XLA cannot keep x_hat, in float32, from forward to backward.
    x, gamma, found = lax.optimization_barrier(res)
    x_hat, g = standardised(up(x), found), up(g)  # F1, F3, recomputed
    g_x_hat = g * x_hat
    dgamma = sum_held_rows(g_x_hat)  # B1
    dbeta = sum_held_rows(g)  # B2
    dx_hat = scaled(g, gamma)  # B3
    means = mean_scaled(g, gamma), mean_scaled(g_x_hat, gamma)
    dx = found.inv_std * (dx_hat - means[0] - x_hat * means[1])  # B4
    return dx, dgamma, dbeta


def row_cases(parameters: int) -> list[Case]:
    """Arguments for a rule of x and so many of gamma and beta."""
    x = 2 * normal(10, 4, 5) + 1
    odd = normal(11, 2, 1, 7)

    def with_parameters(x: np.ndarray) -> tuple[np.ndarray, ...]:
        gamma, beta = normal(12, 2, x.shape[-1])
        return (x, gamma + 1, beta)[: parameters + 1]

    absent = dict(zip(("gamma", "beta")[:parameters], (jnp.ones(5), jnp.zeros(5)), strict=False))
    options = {"eps": 1e-5}
    constant = replaced(x, 1, 3.0)
    return [
        Case("rows", with_parameters(x), options),
        Case("batch of one", with_parameters(x[:1]), options),
        Case("more axes", with_parameters(odd), options),
        Case("vector", with_parameters(x[0]), options),
        Case("no parameters", (x, *[None] * parameters), options, given=absent),
        Case("bfloat16 data", with_parameters(x.astype(jnp.bfloat16)), options),
        Case("a larger eps", with_parameters(x), {"eps": 0.5}),
        Case("one channel", with_parameters(x[:, :1]), {"eps": 0.5}, edge=True),
        Case("a constant row", with_parameters(constant), options, edge=True),
        Case("zeros", with_parameters(0 * x), options, edge=True),
        Case("small", with_parameters(1e-4 * x), options, edge=True),
        Case("far from zero", with_parameters(x + 1e4), options, edge=True),
        Case("no rows", with_parameters(x[:0]), options, edge=True),
        Case("no channels", with_parameters(x[:1, :0]), options, edge=True),
    ]


def rms_norm_cases() -> list[Case]:
    return row_cases(1)


def layer_norm_cases() -> list[Case]:
    return row_cases(2)


rms_norm = Rule(rms_norm_reference, rms_norm_forward, rms_norm_backward, rms_norm_cases, budget=4)
layer_norm = Rule(
    layer_norm_reference, layer_norm_forward, layer_norm_backward, layer_norm_cases, budget=12
)
