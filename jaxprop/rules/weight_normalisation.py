"""Vectors of length 1, and weights whose scale is set apart from their direction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.standardised import (
    Moments,
    check_eps,
    mean,
    moments,
    scaled,
    standardised,
    sum_rows,
)
from jaxprop.samples import normal, replaced


def l2_normalize_reference(x: jax.Array, *, axis: int = -1, eps: float) -> jax.Array:
    """Scale each vector along an axis to length 1: y = x / |x|, and 0 where x is 0.

    Use it for embeddings that are compared by their angle: the product of two is its cosine.

    Scope      rows: x (B, C), axis=-1
    Forward    norm = sqrt(sum(x * x))                                 (F1)
               y = where(norm > eps, x / norm, 0)                      (F2)
    Backward   dnorm = where(norm > eps, -sum(g * x) / (norm * norm), 0)  (B1) from F2
               dx = where(norm > eps, (g - y * sum(g * y)) / norm, 0)  (B2) from F1, F2

    Args:
        x: any shape of at least one axis, floating.
        axis: the axis along which y has length 1.
        eps: a vector that is no longer than this counts as 0; at least 0, in the units of x.

    Returns:
        y: x's shape and dtype.

    Residuals: x (the argument), and the norm, one number per vector; y is recomputed.

    Numerics: computed in float32 at least, rounded once. At 0, and up to the length eps, value
        and gradient are 0: the direction is not known there, and 1 / norm would make noise of it.
        A vector whose squares overflow (1e19 in float32) gives 0 as well.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x has no such axis, or eps is negative or not finite.

    Source: d|x|/dx = x / |x|; Schroff, Kalenichenko and Philbin (2015), FaceNet, section 3.
    """
    _check_l2_normalize(x, axis, eps)
    return (up(x) / _length(up(x), (axis,), eps)).astype(x.dtype)  # F1, F2


def _length(x: jax.Array, axes: Sequence[int], eps: float = 0.0) -> jax.Array:
    """The norm over these axes, kept; infinity up to eps, so that what is divided by it is 0."""
    square = jnp.sum(jnp.square(x), tuple(axes), keepdims=True)
    counts = square > eps * eps
    return jnp.where(counts, jnp.sqrt(jnp.where(counts, square, 1)), jnp.inf)


def _check_l2_normalize(x: jax.Array, axis: int, eps: float) -> None:
    floating("l2_normalize", "x", x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"l2_normalize: axis must be one of x's {x.ndim} axes, got axis {axis} for x "
            f"{x.shape}. Give an axis between -x.ndim and x.ndim - 1."
        )
    if not 0 <= eps < float("inf"):
        raise ValueError(
            f"l2_normalize: eps must be at least 0 and finite, got {eps!r}. It is the length up to "
            "which a vector counts as 0."
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class L2NormalizeResiduals:
    x: jax.Array
    norm: jax.Array
    axis: int = field(metadata={"static": True})


def l2_normalize_forward(
    x: jax.Array, *, axis: int, eps: float
) -> tuple[jax.Array, L2NormalizeResiduals]:
    _check_l2_normalize(x, axis, eps)
    norm = _length(up(x), (axis,), eps)  # F1
    return (up(x) / norm).astype(x.dtype), L2NormalizeResiduals(x, norm, axis)  # F2


def l2_normalize_backward(res: L2NormalizeResiduals, g: jax.Array) -> tuple[jax.Array]:
    # Behind the barrier XLA cannot keep y, in float32, from forward to backward.
    res = lax.optimization_barrier(res)
    y, g = up(res.x) / res.norm, up(g)  # F2, recomputed
    return ((g - y * jnp.sum(g * y, res.axis, keepdims=True)) / res.norm,)  # B2


def weight_standardize_reference(w: jax.Array, *, eps: float) -> jax.Array:
    """Give the weights of each output mean 0 and variance 1.

    Use it on the weights of a convolution before group_norm, where batches are small.

    Scope      columns: w (n_in, n_out)
    Forward    centred = w - sum_rows(w) / rows(w)                     (F1)
               inv_std = rsqrt(sum_rows(centred * centred) / rows(w) + eps)  (F2)
               y = inv_std * centred                                   (F3)
    Backward   dinv_std = sum_rows(g * centred)                        (B1) from F3
               dw = inv_std * (g - sum_rows(g) / rows(w)
                        - y * sum_rows(g * y) / rows(w))               (B2) from F1, F2, F3

    Args:
        w: (..., n_out), floating, of at least two axes.
        eps: added to the variance; positive, in the units of w * w.

    Returns:
        y: w's shape and dtype.

    Residuals: w (the argument), and three numbers per output: the two of its mean, and inv_std;
        y is recomputed.

    Numerics: as layer_norm: in float32 at least, rounded once; biased variance; the mean as two
        numbers. Weights that are all the same give 0.

    Raises:
        TypeError: where w is not floating.
        ValueError: where w has fewer than two axes, or eps is not positive and finite.

    Source: Qiao et al. (2019), Micro-batch training with batch-channel normalization and weight
        standardization, equation 10.
    """
    found = _weight_moments(w, eps)  # F1, F2
    return standardised(up(w), found).astype(w.dtype)  # F3


def _weight_moments(w: jax.Array, eps: float) -> Moments:
    _check_weight("weight_standardize", "w", w)
    check_eps("weight_standardize", eps)
    return moments(up(w), _inputs(w), eps)[0]


def _inputs(w: jax.Array) -> tuple[int, ...]:
    return tuple(range(w.ndim - 1))


def _check_weight(owner: str, name: str, w: jax.Array) -> None:
    if floating(owner, name, w).ndim < 2:
        raise ValueError(
            f"{owner}: {name} must be (..., n_out) of at least two axes, got {w.shape}. The last "
            "is that of the outputs."
        )


class WeightStandardizeResiduals(NamedTuple):
    w: jax.Array
    found: Moments


def weight_standardize_forward(
    w: jax.Array, *, eps: float
) -> tuple[jax.Array, WeightStandardizeResiduals]:
    found = _weight_moments(w, eps)  # F1, F2
    return standardised(up(w), found).astype(w.dtype), WeightStandardizeResiduals(w, found)  # F3


def weight_standardize_backward(res: WeightStandardizeResiduals, g: jax.Array) -> tuple[jax.Array]:
    w, found = res
    y = standardised(up(w), found)  # F1, F3, recomputed
    g, inputs = up(g), _inputs(w)
    return (found.inv_std * (g - mean(g, inputs) - y * mean(g * y, inputs)),)  # B2


def weight_norm_reference(v: jax.Array, gain: jax.Array) -> jax.Array:
    """Give the weights of each output the direction of v and a length of its own, gain.

    Use it to train lengths apart from directions, in place of normalising activations.

    Scope      columns: v (n_in, n_out), gain (n_out,)
    Forward    norm = sqrt(sum_rows(v * v))                            (F1)
               v_hat = where(norm > 0, v / norm, 0)                    (F2)
               w = gain * v_hat                                        (F3)
    Backward   dgain = sum_rows(g * v_hat)                             (B1) from F3
               dv_hat = gain * g                                       (B2) from F3
               dv = where(norm > 0, (dv_hat - v_hat * gain * dgain) / norm, 0)  (B3) from F1, F2, F3

    Args:
        v: (..., n_out), floating, of at least two axes.
        gain: (n_out,), floating.

    Returns:
        w: v's shape and dtype.

    Residuals: v and gain (arguments), and the norm, one number per output; v_hat is recomputed.

    Numerics: computed in float32 at least, rounded once; dgain is summed there too. An output
        whose v is 0 has weights 0, and gradients 0.

    Raises:
        TypeError: where v or gain is not floating.
        ValueError: where v has fewer than two axes, or gain is not (n_out,).

    Source: Salimans and Kingma (2016), Weight normalization, equations 2 and 3.
    """
    _check_weight_norm(v, gain)
    v_hat = up(v) / _length(up(v), _inputs(v))  # F1, F2
    return scaled(v_hat, gain).astype(v.dtype)  # F3


def _check_weight_norm(v: jax.Array, gain: jax.Array) -> None:
    _check_weight("weight_norm", "v", v)
    if floating("weight_norm", "gain", gain).shape != v.shape[-1:]:
        raise ValueError(
            f"weight_norm: gain must be (n_out,) = {v.shape[-1:]}, the last axis of v, got "
            f"{gain.shape}. Give one length per output."
        )


class WeightNormResiduals(NamedTuple):
    v: jax.Array
    gain: jax.Array
    norm: jax.Array


def weight_norm_forward(v: jax.Array, gain: jax.Array) -> tuple[jax.Array, WeightNormResiduals]:
    _check_weight_norm(v, gain)
    norm = _length(up(v), _inputs(v))  # F1
    return scaled(up(v) / norm, gain).astype(v.dtype), WeightNormResiduals(v, gain, norm)  # F2, F3


def weight_norm_backward(res: WeightNormResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    v, gain, norm = res
    v_hat, g = up(v) / norm, up(g)  # F2, recomputed
    dgain = sum_rows(g * v_hat)  # B1
    dv_hat = scaled(g, gain)  # B2
    return (dv_hat - v_hat * scaled(dgain, gain)) / norm, dgain  # B3


def l2_normalize_cases() -> list[Case]:
    x = normal(10, 4, 5)
    odd = normal(11, 2, 3, 7)
    options, rows = {"eps": 1e-6}, {"x": x, "axis": -1}
    return [
        Case("rows", (x,), options),
        Case("batch of one", (x[:1],), options),
        Case("vector", (x[0],), options),
        Case("axis 1 of 3", (odd,), options | {"axis": 1}, given=rows),
        Case("bfloat16", (x.astype(jnp.bfloat16),), options),
        Case("a vector of 0", (replaced(x, 1, 0.0),), options, edge=True),
        Case("no eps", (replaced(x, 1, 0.0),), {"eps": 0.0}, edge=True),
        Case("short", (1e-7 * replaced(x, 1, 1e-3),), options, edge=True),
        Case("no rows", (x[:0],), options, edge=True),
        Case("no channels", (x[:1, :0],), options, edge=True),
    ]


def weight_standardize_cases() -> list[Case]:
    w = normal(10, 6, 3) + 1
    window = normal(11, 2, 2, 3, 4)
    options = {"eps": 1e-5}
    return [
        Case("matrix", (w,), options),
        Case("window", (window,), options, given={"w": w}),
        Case("one output", (w[:, :1],), options),
        Case("bfloat16", (w.astype(jnp.bfloat16),), options),
        Case("a larger eps", (w,), {"eps": 0.5}),
        Case("one input", (w[:1],), options, edge=True),
        Case("a constant output", (replaced(w, np.s_[:, 1], 3.0),), options, edge=True),
        Case("zeros", (0 * w,), options, edge=True),
        Case("far from zero", (w + 1e4,), options, edge=True),
        Case("no outputs", (w[:, :0],), options, edge=True),
    ]


def weight_norm_cases() -> list[Case]:
    v = normal(10, 6, 3)
    window = normal(11, 2, 2, 3, 3)
    gain = jnp.array([0.5, -2.0, 1.5], jnp.float32)
    return [
        Case("matrix", (v, gain)),
        Case("window", (window, gain), given={"v": v}),
        Case("one output", (v[:, :1], gain[:1])),
        Case("bfloat16 v", (v.astype(jnp.bfloat16), gain)),
        Case("bfloat16", (v.astype(jnp.bfloat16), gain.astype(jnp.bfloat16))),
        Case("no gain", (v, 0 * gain), edge=True),
        Case("an output of 0", (replaced(v, np.s_[:, 1], 0.0), gain), edge=True),
        Case("small", (1e-10 * v, gain), edge=True),
        Case("no outputs", (v[:, :0], gain[:0]), edge=True),
    ]


l2_normalize = Rule(
    l2_normalize_reference,
    l2_normalize_forward,
    l2_normalize_backward,
    l2_normalize_cases,
    budget=4,
)
weight_standardize = Rule(
    weight_standardize_reference,
    weight_standardize_forward,
    weight_standardize_backward,
    weight_standardize_cases,
    budget=12,
)
weight_norm = Rule(
    weight_norm_reference,
    weight_norm_forward,
    weight_norm_backward,
    weight_norm_cases,
    budget=4,
)
