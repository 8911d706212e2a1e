"""Normalisations of each example by itself: in groups of channels, or each channel alone."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.standardised import (
    Moments,
    check,
    mean,
    moments,
    scaled,
    shifted,
    standardised,
    sum_rows,
    sum_x_hat,
)
from jaxprop.samples import normal, replaced


def group_norm_reference(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, groups: int, eps: float
) -> jax.Array:
    """Give each group of channels of an example mean 0 and variance 1, then scale and shift.

    Use it in convolutional networks whose batches are too small for batch_norm.

    Scope      one group of one example: x (1, S, C), gamma and beta (C,), ones and zeros where
               they are None; groups=1
    Forward    centred = x - mean_all(x)                               (F1)
               inv_std = rsqrt(mean_all(centred * centred) + eps)      (F2)
               x_hat = inv_std * centred                               (F3)
               y = gamma * x_hat + beta                                (F4)
    Backward   dgamma = sum_rows(g * x_hat)                            (B1) from F4
               dbeta = sum_rows(g)                                     (B2) from F4
               dx_hat = gamma * g                                      (B3) from F4
               dx = inv_std * (dx_hat - mean_all(dx_hat)
                        - x_hat * mean_all(x_hat * dx_hat))            (B4) from F1, F2, F3

    Args:
        x: (B, ..., C), floating, channels last.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        groups: how many groups of neighbouring channels there are; divides C.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.

    Residuals: x and gamma (arguments), and three numbers per group of an example: the two of its
        mean, and inv_std; x_hat is recomputed.

    Numerics: as layer_norm: in float32 at least, rounded once; biased variance; the mean as two
        numbers. A constant group gives beta.

    Raises:
        TypeError: where x, gamma or beta is not floating.
        ValueError: where x is not (B, ..., C), gamma or beta is not (C,), groups does not divide
            C, or eps is not positive and finite.

    Source: Wu and He (2018), Group normalization, equations 1, 2 and 7.
    """
    return _group_norm(x, gamma, beta, groups, eps)[0]


def _group_norm(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, groups: int, eps: float
) -> tuple[jax.Array, Moments]:
    check("group_norm", x, eps, gamma=gamma, beta=beta)
    _check_groups(x, groups)
    grouped = _grouped(up(x), groups)
    found, _ = moments(grouped, _of_group(grouped), eps)  # F1, F2
    x_hat = standardised(grouped, found).reshape(x.shape)  # F3
    return shifted(scaled(x_hat, gamma), beta).astype(x.dtype), found  # F4


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """(B, ..., groups, C / groups)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _of_group(grouped: jax.Array) -> tuple[int, ...]:
    """The axes of one group of one example."""
    return (*range(1, grouped.ndim - 2), grouped.ndim - 1)


def _check_groups(x: jax.Array, groups: int) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"group_norm: x must be (B, ..., C), got {x.shape}. Give it a batch axis, the first."
        )
    if not isinstance(groups, int) or groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: groups must be a positive integer that divides C = {x.shape[-1]}, got "
            f"{groups!r}. Channels are the last axis of x."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupNormResiduals:
    x: jax.Array
    gamma: jax.Array | None
    found: Moments
    groups: int = field(metadata={"static": True})


def group_norm_forward(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, groups: int, eps: float
) -> tuple[jax.Array, GroupNormResiduals]:
    y, found = _group_norm(x, gamma, beta, groups, eps)
    return y, GroupNormResiduals(x, gamma, found, groups)


def group_norm_backward(
    res: GroupNormResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, found = _grouped(up(res.x), res.groups), res.found
    x_hat = standardised(x, found)  # F3, recomputed
    g, sum_g, sum_g_d = _sums(g, (x - found.rough).reshape(g.shape))
    of_d, of_g = (_grouped(total, res.groups) for total in (sum_g_d, sum_g))
    sum_g_x_hat = sum_x_hat(of_d, of_g, found, prod(g.shape[1:-1])).reshape(sum_g.shape)
    dgamma = sum_rows(sum_g_x_hat)  # B1
    dbeta = sum_rows(sum_g)  # B2
    dx_hat = _grouped(scaled(up(g), res.gamma), res.groups)  # B3
    mean_dx_hat = _group_mean(sum_g, res)
    mean_x_hat_dx_hat = _group_mean(sum_g_x_hat, res)
    dx = found.inv_std * (dx_hat - mean_dx_hat - x_hat * mean_x_hat_dx_hat)  # B4
    return dx.reshape(g.shape), dgamma, dbeta


def _sums(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """g, and for each channel of an example, kept, the sums of g and of g * d.

    d is x less its rough mean. All other sums of backward are made of these. The barriers have XLA
    do so too, else it sums anew over the examples; and they give each sum a float32 copy of g that
    it need not hold.
    """
    g, sum_g = lax.optimization_barrier((g, _example_sum(up(g))))
    g, sum_g_d = lax.optimization_barrier((g, _example_sum(up(g) * d)))
    return g, sum_g, sum_g_d


def _example_sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, _between(x), keepdims=True)


def _group_mean(sums: jax.Array, res: GroupNormResiduals) -> jax.Array:
    """The mean over each group of gamma times what has these sums, as _grouped."""
    per_channel = scaled(sums, res.gamma) / prod(res.x.shape[1:-1])
    return mean(_grouped(per_channel, res.groups), (-1,))


def instance_norm_reference(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> jax.Array:
    """Give each channel of an example mean 0 and variance 1, then scale and shift it.

    Use it where an image's contrast should not matter, as in style transfer.

    Scope      one channel of one example: x (1, S, 1), gamma and beta (1,), one and zero where
               they are None
    Forward    centred = x - mean_all(x)                               (F1)
               inv_std = rsqrt(mean_all(centred * centred) + eps)      (F2)
               x_hat = inv_std * centred                               (F3)
               y = gamma * x_hat + beta                                (F4)
    Backward   dgamma = sum_rows(g * x_hat)                            (B1) from F4
               dbeta = sum_rows(g)                                     (B2) from F4
               dx_hat = gamma * g                                      (B3) from F4
               dx = inv_std * (dx_hat - mean_all(dx_hat)
                        - x_hat * mean_all(x_hat * dx_hat))            (B4) from F1, F2, F3

    Args:
        x: (B, ..., C), floating, channels last, with at least one axis between.
        gamma: (C,), floating, or None for ones.
        beta: (C,), floating, or None for zeros.
        eps: added to the variance; positive, in the units of x * x.

    Returns:
        y: x's shape and dtype.

    Residuals: x and gamma (arguments), and three numbers per channel of an example: the two of
        its mean, and inv_std; x_hat is recomputed.

    Numerics: as layer_norm: in float32 at least, rounded once; biased variance; the mean as two
        numbers. A constant channel, such as that of one pixel, gives beta.

    Raises:
        TypeError: where x, gamma or beta is not floating.
        ValueError: where x is not (B, ..., C) with an axis between, gamma or beta is not (C,), or
            eps is not positive and finite.

    Source: Ulyanov, Vedaldi and Lempitsky (2016), Instance normalization, equation 7.
    """
    return _instance_norm(x, gamma, beta, eps)[0]


def _instance_norm(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, eps: float
) -> tuple[jax.Array, Moments]:
    check("instance_norm", x, eps, gamma=gamma, beta=beta)
    if x.ndim < 3:
        raise ValueError(
            f"instance_norm: x must be (B, ..., C) with an axis between, got {x.shape}. With none, "
            "each channel is one number, and y would be beta."
        )
    found, _ = moments(up(x), _between(x), eps)  # F1, F2
    y = shifted(scaled(standardised(up(x), found), gamma), beta)  # F3, F4
    return y.astype(x.dtype), found


def _between(x: jax.Array) -> tuple[int, ...]:
    """The axes of one channel of one example."""
    return tuple(range(1, x.ndim - 1))


class InstanceNormResiduals(NamedTuple):
    x: jax.Array
    gamma: jax.Array | None
    found: Moments


def instance_norm_forward(
    x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, *, eps: float
) -> tuple[jax.Array, InstanceNormResiduals]:
    y, found = _instance_norm(x, gamma, beta, eps)
    return y, InstanceNormResiduals(x, gamma, found)


def instance_norm_backward(
    res: InstanceNormResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, gamma, found = res
    x_hat = standardised(up(x), found)  # F1, F3, recomputed
    g, sum_g, sum_g_d = _sums(g, up(x) - found.rough)
    sum_g_x_hat = sum_x_hat(sum_g_d, sum_g, found, prod(g.shape[1:-1]))
    dgamma = sum_rows(sum_g_x_hat)  # B1
    dbeta = sum_rows(sum_g)  # B2
    dx_hat = scaled(up(g), gamma)  # B3
    mean_dx_hat, mean_x_hat_dx_hat = (
        scaled(sums, gamma) / prod(x.shape[1:-1]) for sums in (sum_g, sum_g_x_hat)
    )
    dx = found.inv_std * (dx_hat - mean_dx_hat - x_hat * mean_x_hat_dx_hat)  # B4
    return dx, dgamma, dbeta


def _cases(given: dict, **options: Hashable) -> list[Case]:
    """Arguments for x of 9 channels."""
    x = 2 * normal(10, 2, 3, 2, 9) + 1
    gamma, beta = normal(11, 2, 9)
    constant = replaced(x, 0, 3.0)
    return [
        Case("images", (x, gamma, beta), options, given=given),
        Case("batch of one", (x[:1], gamma, beta), options, given=given),
        Case("signals", (x[:, :, 0], gamma, beta), options, given=given),
        Case("no parameters", (x, None, None), options, given=given),
        Case("bfloat16 data", (x.astype(jnp.bfloat16), gamma, beta), options, given=given),
        Case("one pixel", (x[:, :1, :1], gamma, beta), options, edge=True),
        Case("a constant example", (constant, gamma, beta), options, edge=True),
        Case("zeros", (0 * x, gamma, beta), options, given=given, edge=True),
        Case("far from zero", (x + 1e4, gamma, beta), options, edge=True),
        Case("no examples", (x[:0], gamma, beta), options, edge=True),
    ]


def _at_scope(channels: int) -> dict[str, jax.Array]:
    x = normal(12, 1, 5, channels)
    gamma, beta = normal(13, 2, channels)
    return {"x": x, "gamma": gamma, "beta": beta}


def group_norm_cases() -> list[Case]:
    given = _at_scope(3) | {"groups": 1}
    x, gamma, beta = _cases(given)[0].args
    vectors = Case("vectors", (x[:, 0, 0], gamma, beta), {"groups": 3, "eps": 0.5}, given=given)
    return [*_cases(given, groups=3, eps=1e-5), vectors]


def instance_norm_cases() -> list[Case]:
    return _cases(_at_scope(1), eps=1e-5)


group_norm = Rule(
    group_norm_reference, group_norm_forward, group_norm_backward, group_norm_cases, budget=12
)
instance_norm = Rule(
    instance_norm_reference,
    instance_norm_forward,
    instance_norm_backward,
    instance_norm_cases,
    budget=12,
)
