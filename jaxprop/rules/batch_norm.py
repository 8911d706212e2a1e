"""Normalisations of each channel over a batch: in training, and by statistics that are given."""

from dataclasses import dataclass, field
from math import prod
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
    moments,
    scaled,
    shifted,
    standardised,
    sum_rows,
    sum_x_hat,
)
from jaxprop.samples import normal, replaced


def batch_norm_reference(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Give each channel mean 0 and variance 1 over the batch, then scale and shift it.

    Use it in convolutional networks while training; a layer averages the statistics that it
    returns over steps, and evaluates with batch_norm_eval. Inside shard_map the batch is that of
    one device.

    Scope      rows: x (N, C), gamma and beta (C,), ones and zeros where they are None
    Forward    m = sum_rows(x) / rows(x)                               (F1)
               centred = x - m                                         (F2)
               v = sum_rows(centred * centred) / rows(x)               (F3)
               inv_std = rsqrt(v + eps)                                (F4)
               x_hat = inv_std * centred                               (F5)
               y = gamma * x_hat + beta                                (F6)
               mean = m                                                (F7)
               var = v                                                 (F8)
    Backward   dgamma = sum_rows(g_y * x_hat)                          (B1) from F6
               dbeta = sum_rows(g_y)                                   (B2) from F6
               dv = g_var - inv_std * inv_std * gamma * dgamma / 2     (B3) from F4, F5, F6, F8
               dm = g_mean - inv_std * gamma * dbeta                   (B4) from F2, F5, F6, F7
               dx = inv_std * gamma * g_y
                   + (dm + 2 * centred * dv) / rows(x)                 (B5) from F1, F2, F3, F5, F6

    Args:
        x: (..., C), floating; the batch is every axis but the last.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.
        mean: (C,), float32 at least.
        var: (C,), the biased variance, float32 at least.

    Residuals: x and gamma (arguments), and three numbers per channel: the two of its mean, and
        inv_std; x_hat is recomputed.

    Numerics: computed in float32 at least; y is rounded once. The mean is kept as two numbers, and
        the variance is of differences from the first, so that channels far from 0 keep their
        digits. A constant channel, and every channel of a batch of one, gives beta. The
        statistics of no rows are nan.

    Raises:
        TypeError: where x, gamma or beta is not floating.
        ValueError: where x is a scalar, gamma or beta is not (C,), or eps is not positive and
            finite.

    Source: Ioffe and Szegedy (2015), Batch normalization, Algorithm 1.
    """
    return _batch_norm(x, gamma, beta, eps)[0]


def _batch_norm(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, eps: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Moments]:
    check("batch_norm", x, eps, gamma=gamma, beta=beta)
    found, variance = moments(up(x), range(x.ndim - 1), eps)  # F1 to F4
    y = shifted(scaled(standardised(up(x), found), gamma), beta)  # F5, F6
    mean = (found.rough + found.rest).reshape(x.shape[-1])  # F7
    var = variance.reshape(x.shape[-1])  # F8
    return (y.astype(x.dtype), mean, var), found


class BatchNormResiduals(NamedTuple):
    x: jax.Array
    gamma: jax.Array | None
    found: Moments


def batch_norm_forward(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], BatchNormResiduals]:
    outputs, found = _batch_norm(x, gamma, beta, eps)
    return outputs, BatchNormResiduals(x, gamma, found)


def batch_norm_backward(
    res: BatchNormResiduals, g: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, gamma, rows = res.x, res.gamma, prod(res.x.shape[:-1])
    found = Moments(*(number.reshape(x.shape[-1]) for number in res.found))
    inv_std = found.inv_std
    g_y, g_mean, g_var = map(up, g)
    d = up(x) - found.rough  # F2 but for rest, recomputed
    dbeta = sum_rows(g_y)  # B2
    dgamma = sum_x_hat(sum_rows(g_y * d), dbeta, found, rows)  # B1
    dv = g_var - inv_std * inv_std * scaled(dgamma, gamma) / 2  # B3
    # What dm has of dbeta is taken from g_y: in a batch of one they cancel, before inv_std scales.
    dx_of_y = inv_std * scaled(g_y - dbeta / rows, gamma)  # B4
    dx = dx_of_y + (g_mean + 2 * (d - found.rest) * dv) / rows  # B5
    return dx, dgamma, dbeta


def batch_norm_eval_reference(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Normalise each channel by a mean and a variance that are given, then scale and shift it.

    Use it to evaluate what batch_norm trained, with the averages of its statistics.

    Scope      rows: x (N, C), the others (C,), gamma ones and beta zeros where they are None
    Forward    inv_std = rsqrt(var + eps)                              (F1)
               x_hat = inv_std * (x - mean)                            (F2)
               y = gamma * x_hat + beta                                (F3)
    Backward   dgamma = sum_rows(g * x_hat)                            (B1) from F3
               dbeta = sum_rows(g)                                     (B2) from F3
               dx_hat = gamma * g                                      (B3) from F3
               dx = inv_std * dx_hat                                   (B4) from F2
               dmean = -inv_std * gamma * dbeta                        (B5) from F2, F3
               dvar = -inv_std * inv_std * gamma * dgamma / 2          (B6) from F1, F2, F3

    Args:
        x: (..., C), floating.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        mean: (C,), floating, in the units of x.
        var: (C,), floating, at least 0, in the units of x * x.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.

    Residuals: x, gamma, mean and var (arguments); inv_std and x - mean are recomputed.

    Numerics: computed in float32 at least, rounded once; the parameters' cotangents are summed
        there too. A negative variance beyond eps gives nan.

    Raises:
        TypeError: where an argument is not floating.
        ValueError: where x is a scalar, one of the others is not (C,), or eps is not positive and
            finite.

    Source: Ioffe and Szegedy (2015), Batch normalization, Algorithm 2.
    """
    check("batch_norm_eval", x, eps, gamma=gamma, beta=beta, mean=mean, var=var)
    wide = up(x)
    x_hat = _inverse_std(wide, var, eps) * (wide - mean.astype(wide.dtype))  # F1, F2
    return shifted(scaled(x_hat, gamma), beta).astype(x.dtype)  # F3


def _inverse_std(x: jax.Array, var: jax.Array, eps: float) -> jax.Array:
    return lax.rsqrt(var.astype(x.dtype) + eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchNormEvalResiduals:
    x: jax.Array
    gamma: jax.Array | None
    mean: jax.Array
    var: jax.Array
    eps: float = field(metadata={"static": True})


def batch_norm_eval_forward(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    *,
    eps: float,
) -> tuple[jax.Array, BatchNormEvalResiduals]:
    y = batch_norm_eval_reference(x, gamma, beta, mean, var, eps=eps)  # F1 to F3
    return y, BatchNormEvalResiduals(x, gamma, mean, var, eps)


def batch_norm_eval_backward(
    res: BatchNormEvalResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    x, g = up(res.x), up(g)
    inv_std = _inverse_std(x, res.var, res.eps)  # F1, recomputed
    centred = x - res.mean.astype(x.dtype)  # of F2, recomputed
    dgamma = inv_std * sum_rows(g * centred)  # B1, inv_std outside: x_hat is not written out
    dbeta = sum_rows(g)  # B2
    dx = inv_std * scaled(g, res.gamma)  # B3, B4
    dmean = -inv_std * scaled(dbeta, res.gamma)  # B5
    dvar = -inv_std * inv_std * scaled(dgamma, res.gamma) / 2  # B6
    return dx, dgamma, dbeta, dmean, dvar


def batch_norm_cases() -> list[Case]:
    x = 2 * normal(10, 6, 3) + 1
    gamma, beta = normal(11, 2, 3)
    images = normal(12, 2, 3, 1, 3)
    given = {"gamma": jnp.ones(3), "beta": jnp.zeros(3)}
    options, constant = {"eps": 1e-5}, replaced(x, np.s_[:, 1], 3.0)
    return [
        Case("rows", (x, gamma, beta), options),
        Case("images", (images, gamma, beta), options, given={"x": x}),
        Case("no parameters", (x, None, None), options, given=given),
        Case("bfloat16 data", (x.astype(jnp.bfloat16), gamma, beta), options),
        Case("a larger eps", (x, gamma, beta), {"eps": 0.5}),
        Case("batch of one", (x[:1], gamma, beta), options, edge=True),
        Case("a constant channel", (constant, gamma, beta), options, edge=True),
        Case("zeros", (0 * x, gamma, beta), options, edge=True),
        Case("far from zero", (x + 1e4, gamma, beta), options, edge=True),
        Case("no rows", (x[:0], gamma, beta), options, edge=True),
        Case("no channels", (x[:, :0], gamma[:0], beta[:0]), options, edge=True),
    ]


def batch_norm_eval_cases() -> list[Case]:
    mean, var = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.25, 1.0, 3.0])

    def with_statistics(case: Case) -> Case:
        channels = case.args[0].shape[-1]
        return case._replace(args=(*case.args, mean[:channels], var[:channels]))

    x, gamma, beta = batch_norm_cases()[0].args
    no_variance = Case("no variance", (x, gamma, beta, mean, 0 * var), {"eps": 1e-5}, edge=True)
    return [*map(with_statistics, batch_norm_cases()), no_variance]


batch_norm = Rule(
    batch_norm_reference, batch_norm_forward, batch_norm_backward, batch_norm_cases, budget=12
)
batch_norm_eval = Rule(
    batch_norm_eval_reference,
    batch_norm_eval_forward,
    batch_norm_eval_backward,
    batch_norm_eval_cases,
    budget=0,
)
