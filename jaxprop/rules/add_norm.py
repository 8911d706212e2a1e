"""A residual added and the sum normalised, in one: where a transformer block begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.layer_norm import inverse_rms
from jaxprop.rules.standardised import (
    Moments,
    check,
    mean_scaled,
    moments,
    scaled,
    shifted,
    standardised,
    sum_held_rows,
)
from jaxprop.samples import normal

ROW = (-1,)


def add_rms_norm_reference(
    x: jax.Array, residual: jax.Array, gamma: jax.Array | None, *, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Add x to the residual stream, and divide each row of the sum by its root mean square.

    Use it between the blocks of a transformer: y goes into the next block, stream past it.

    Scope      rows: x and residual (B, C), gamma (C,), ones where it is None
    Forward    h = residual + x                                        (F1)
               inv_rms = rsqrt(mean(h * h) + eps)                      (F2)
               h_hat = inv_rms * h                                     (F3)
               y = gamma * h_hat                                       (F4)
               stream = h                                              (F5)
    Backward   dgamma = sum_rows(g_y * h_hat)                          (B1) from F4
               dh_hat = gamma * g_y                                    (B2) from F4
               dh = g_stream + inv_rms * (dh_hat
                        - h_hat * mean(h_hat * dh_hat))                (B3) from F2, F3, F5
               dx = dh                                                 (B4) from F1
               dresidual = dh                                          (B5) from F1

    Args:
        x: (..., C), floating; what a block has returned.
        residual: x's shape, floating; what went past the block.
        gamma: (C,), floating, or None for ones.
        eps: added to the mean of squares; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.
        stream: residual + x, in the dtype of residual, which may be wider than that of x.

    Residuals: stream (an output), gamma (an argument), and inv_rms, one number per row; h_hat is
        recomputed. x and residual are not kept.

    Numerics: the sum in float32 at least, rounded to stream; y is that of stream as it is rounded,
        else as rms_norm.

    Raises:
        TypeError: where x, residual or gamma is not floating.
        ValueError: where x is a scalar, residual has not its shape, gamma is not (C,), or eps is
            not positive and finite.

    Source: Zhang and Sennrich (2019), Root mean square layer normalization, equation 4.
    """
    return _add_rms_norm(x, residual, gamma, eps)[0]


def _add_rms_norm(
    x: jax.Array, residual: jax.Array, gamma: jax.Array | None, eps: float
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    check("add_rms_norm", x, eps, gamma=gamma)
    stream = _sum("add_rms_norm", x, residual)  # F1, F5
    h = up(stream)
    inv_rms = inverse_rms(h, eps)  # F2
    y = scaled(inv_rms * h, gamma)  # F3, F4
    return (y.astype(x.dtype), stream), inv_rms


def _sum(owner: str, x: jax.Array, residual: jax.Array) -> jax.Array:
    """residual + x in the dtype of residual."""
    if floating(owner, "residual", residual).shape != x.shape:
        raise ValueError(
            f"{owner}: x and residual must have the same shape, got {x.shape} and "
            f"{residual.shape}. Nothing is broadcast: add, drop or repeat an axis."
        )
    dtype = at_least_float32(x.dtype, residual.dtype)
    return (residual.astype(dtype) + x.astype(dtype)).astype(residual.dtype)


class AddRmsNormResiduals(NamedTuple):
    stream: jax.Array
    gamma: jax.Array | None
    inv_rms: jax.Array


def add_rms_norm_forward(
    x: jax.Array, residual: jax.Array, gamma: jax.Array | None, *, eps: float
) -> tuple[tuple[jax.Array, jax.Array], AddRmsNormResiduals]:
    (y, stream), inv_rms = _add_rms_norm(x, residual, gamma, eps)
    return (y, stream), AddRmsNormResiduals(stream, gamma, inv_rms)


def add_rms_norm_backward(
    res: AddRmsNormResiduals, g: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Behind the barrier XLA cannot keep h_hat, in float32, from forward to backward.
    stream, gamma, inv_rms = lax.optimization_barrier(res)
    h_hat = inv_rms * up(stream)  # F3, recomputed
    g_y, g_stream = (cotangent.astype(h_hat.dtype) for cotangent in g)
    g_h_hat = g_y * h_hat
    dgamma = sum_held_rows(g_h_hat)  # B1
    dh_hat = scaled(g_y, gamma)  # B2
    dh = g_stream + inv_rms * (dh_hat - h_hat * mean_scaled(g_h_hat, gamma))  # B3
    return dh, dh, dgamma  # B4, B5


def add_layer_norm_reference(
    x: jax.Array,
    residual: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    *,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """Add x to the residual stream, and give each row of the sum mean 0 and variance 1.

    Use it between the blocks of a transformer: y goes into the next block, stream past it.

    Scope      rows: x and residual (B, C), gamma and beta (C,), ones and zeros where they are None
    Forward    h = residual + x                                        (F1)
               centred = h - mean(h)                                   (F2)
               inv_std = rsqrt(mean(centred * centred) + eps)          (F3)
               h_hat = inv_std * centred                               (F4)
               y = gamma * h_hat + beta                                (F5)
               stream = h                                              (F6)
    Backward   dgamma = sum_rows(g_y * h_hat)                          (B1) from F5
               dbeta = sum_rows(g_y)                                   (B2) from F5
               dh_hat = gamma * g_y                                    (B3) from F5
               dh = g_stream + inv_std * (dh_hat - mean(dh_hat)
                        - h_hat * mean(h_hat * dh_hat))                (B4) from F2, F3, F4, F6
               dx = dh                                                 (B5) from F1
               dresidual = dh                                          (B6) from F1

    Args:
        x: (..., C), floating; what a block has returned.
        residual: x's shape, floating; what went past the block.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.
        stream: residual + x, in the dtype of residual, which may be wider than that of x.

    Residuals: stream (an output), gamma (an argument), and three numbers per row: the two of its
        mean, and inv_std; h_hat is recomputed. x and residual are not kept.

    Numerics: the sum in float32 at least, rounded to stream; y is that of stream as it is rounded,
        else as layer_norm.

    Raises:
        TypeError: where x, residual, gamma or beta is not floating.
        ValueError: where x is a scalar, residual has not its shape, gamma or beta is not (C,), or
            eps is not positive and finite.

    Source: Ba, Kiros and Hinton (2016), Layer normalization, equations 3 and 4.
    """
    return _add_layer_norm(x, residual, gamma, beta, eps)[0]


def _add_layer_norm(
    x: jax.Array,
    residual: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    eps: float,
) -> tuple[tuple[jax.Array, jax.Array], Moments]:
    check("add_layer_norm", x, eps, gamma=gamma, beta=beta)
    stream = _sum("add_layer_norm", x, residual)  # F1, F6
    found, _ = moments(up(stream), ROW, eps)  # F2, F3
    y = shifted(scaled(standardised(up(stream), found), gamma), beta)  # F4, F5
    return (y.astype(x.dtype), stream), found


class AddLayerNormResiduals(NamedTuple):
    stream: jax.Array
    gamma: jax.Array | None
    found: Moments


def add_layer_norm_forward(
    x: jax.Array,
    residual: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    *,
    eps: float,
) -> tuple[tuple[jax.Array, jax.Array], AddLayerNormResiduals]:
    (y, stream), found = _add_layer_norm(x, residual, gamma, beta, eps)
    return (y, stream), AddLayerNormResiduals(stream, gamma, found)


def add_layer_norm_backward(
    res: AddLayerNormResiduals, g: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    # Behind the barrier XLA cannot keep h_hat, in float32, from forward to backward.
    stream, gamma, found = lax.optimization_barrier(res)
    h_hat = standardised(up(stream), found)  # F2, F4, recomputed
    g_y, g_stream = (cotangent.astype(h_hat.dtype) for cotangent in g)
    g_h_hat = g_y * h_hat
    dgamma = sum_held_rows(g_h_hat)  # B1
    dbeta = sum_held_rows(g_y)  # B2
    dh_hat = scaled(g_y, gamma)  # B3
    means = mean_scaled(g_y, gamma), mean_scaled(g_h_hat, gamma)
    dh = g_stream + found.inv_std * (dh_hat - means[0] - h_hat * means[1])  # B4
    return dh, dh, dgamma, dbeta  # B5, B6


def _cases(parameters: int) -> list[Case]:
    """Arguments for a rule of x, residual and so many of gamma and beta."""
    x, residual = 2 * normal(10, 2, 4, 5) + 1
    gamma, beta = normal(11, 2, 5)
    given = dict(zip(("gamma", "beta")[:parameters], (jnp.ones(5), jnp.zeros(5)), strict=False))
    options, affine = {"eps": 1e-5}, (gamma + 1, beta)[:parameters]
    low = [array.astype(jnp.bfloat16) for array in (x, residual, *affine)]
    axes = (2, 1, 2, 5)
    return [
        Case("rows", (x, residual, *affine), options),
        Case("batch of one", (x[:1], residual[:1], *affine), options),
        Case("more axes", (x.reshape(axes), residual.reshape(axes), *affine), options),
        Case("no parameters", (x, residual, *[None] * parameters), options, given=given),
        Case("bfloat16 x", (low[0], residual, *affine), options),
        Case("bfloat16", tuple(low), options),
        Case("a larger eps", (x, residual, *affine), {"eps": 0.5}),
        Case("nothing added", (0 * x, residual, *affine), options, edge=True),
        Case("they cancel", (-residual, residual, *affine), options, edge=True),
        Case("no rows", (x[:0], residual[:0], *affine), options, edge=True),
    ]


def add_rms_norm_cases() -> list[Case]:
    return _cases(1)


def add_layer_norm_cases() -> list[Case]:
    return _cases(2)


# Of an element of the output: half a stream's, and what is saved per row.
add_rms_norm = Rule(
    add_rms_norm_reference,
    add_rms_norm_forward,
    add_rms_norm_backward,
    add_rms_norm_cases,
    budget=4,
)
add_layer_norm = Rule(
    add_layer_norm_reference,
    add_layer_norm_forward,
    add_layer_norm_backward,
    add_layer_norm_cases,
    budget=4,
)
