"""A map that is linear in each of two vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, matmul, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.linear import rows
from jaxprop.samples import normal


def bilinear_reference(
    x1: jax.Array, x2: jax.Array, w: jax.Array, b: jax.Array | None = None
) -> jax.Array:
    """Bilinear form of two vectors for each output: y_k = x1 @ w_k @ x2 + b_k.

    Use it to let two inputs act on one another, as in scores of pairs.

    Scope      one example: x1 (n_1,), x2 (n_2,), w (n_out, n_1, n_2), b (n_out,)
    Forward    z = column(x1).T @ w                                    (F1)
               y = sum_rows((z * x2).T) + b                            (F2)
    Backward   dz = column(column(g)) * x2                             (B1) from F2
               dx1 = sum_rows(dz @ swap(w))                            (B2) from F1
               dx2 = sum_rows(column(column(g)) * z)                   (B3) from F2
               dw = column(x1) @ dz                                    (B4) from F1
               db = g                                                  (B5) from F2

    Args:
        x1: (..., n_1), floating.
        x2: (..., n_2), floating, with x1's other axes; taken in x1's dtype.
        w: (n_out, n_1, n_2), floating, as PyTorch has it; taken in x1's dtype.
        b: (n_out,), floating, or None for no bias.

    Returns:
        y: (..., n_out), x1's dtype.

    Residuals: x1, x2 and w (arguments); z, which is n_2 times as large as y, is recomputed.

    Numerics: the products accumulate in float32 for lower precisions, where z is kept too.

    Raises:
        TypeError: where an argument is not floating.
        ValueError: where shapes do not fit.

    Source: Tenenbaum and Freeman (2000), Separating style and content with bilinear models,
        equation 1.
    """
    _check(x1, x2, w, b)
    y = jnp.einsum("...kj,...j->...k", _half(x1, w), up(x2.astype(x1.dtype)))  # F1, F2
    return (y if b is None else y + b.astype(y.dtype)).astype(x1.dtype)  # F2


def _half(x1: jax.Array, w: jax.Array) -> jax.Array:
    """z, (..., n_out, n_2)."""
    n_out, n_1, n_2 = w.shape
    z = matmul(x1, w.transpose(1, 0, 2).reshape(n_1, n_out * n_2))
    return z.reshape(*x1.shape[:-1], n_out, n_2)  # F1


class BilinearResiduals(NamedTuple):
    x1: jax.Array
    x2: jax.Array
    w: jax.Array


def bilinear_forward(
    x1: jax.Array, x2: jax.Array, w: jax.Array, b: jax.Array | None
) -> tuple[jax.Array, BilinearResiduals]:
    return bilinear_reference(x1, x2, w, b), BilinearResiduals(x1, x2, w)  # F1, F2


def bilinear_backward(
    res: BilinearResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, x2, w = res
    n_out, n_1, n_2 = w.shape
    x1, x2, g = rows(x1), rows(x2.astype(x1.dtype)), rows(g)
    by_pair = w.transpose(1, 0, 2).reshape(n_1, n_out * n_2)
    dz = (up(g)[:, :, None] * up(x2)[:, None, :]).astype(x1.dtype)  # B1
    dz = dz.reshape(len(x1), n_out * n_2)
    dx1 = matmul(dz, by_pair.T)  # B2
    dx2 = jnp.einsum("bk,bkj->bj", up(g), _half(x1, w))  # B3
    dw = matmul(x1.T, dz).reshape(n_1, n_out, n_2).transpose(1, 0, 2)  # B4
    db = jnp.sum(up(g), axis=0)  # B5
    return dx1.reshape(res.x1.shape), dx2.reshape(res.x2.shape), dw, db


def _check(x1: jax.Array, x2: jax.Array, w: jax.Array, b: jax.Array | None) -> None:
    for name, array in {"x1": x1, "x2": x2, "w": w, "b": b}.items():
        if array is not None:
            floating("bilinear", name, array)
    if w.ndim != 3 or x1.shape[-1:] != w.shape[1:2] or x2.shape[-1:] != w.shape[2:]:
        raise ValueError(
            "bilinear: x1 must be (..., n_1), x2 (..., n_2) and w (n_out, n_1, n_2), got x1 "
            f"{x1.shape}, x2 {x2.shape} and w {w.shape}. The outputs are the first axis of w."
        )
    if x1.shape[:-1] != x2.shape[:-1]:
        raise ValueError(
            "bilinear: x1 and x2 must have the same axes before the last, got "
            f"{x1.shape} and {x2.shape}. Nothing is broadcast: add, drop or repeat an axis."
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(
            f"bilinear: b must be (n_out,) = {w.shape[:1]}, got {b.shape}. Give one bias per "
            "output, or None."
        )


def bilinear_cases() -> list[Case]:
    x1, x2, w, b = normal(0, 5, 3), normal(1, 5, 2), normal(2, 4, 3, 2), normal(3, 4)
    one = {"x1": x1[0], "x2": x2[0]}
    low = x1.astype(jnp.bfloat16), x2.astype(jnp.bfloat16)
    deep = x1[:4].reshape(2, 2, 3), x2[:4].reshape(2, 2, 2)
    return [
        Case("rows", (x1, x2, w, b), given=one),
        Case("no bias", (x1, x2, w), given=one | {"b": 0 * b}),
        Case("one example", (x1[0], x2[0], w, b), given=one),
        Case("more axes", (*deep, w, b), given=one),
        Case("bfloat16", (*low, w.astype(jnp.bfloat16), b.astype(jnp.bfloat16)), given=one),
        Case("no rows", (x1[:0], x2[:0], w, b), edge=True),
        Case("zeros", (0 * x1, 0 * x2, 0 * w, 0 * b), given=one, edge=True),
    ]


bilinear = Rule(bilinear_reference, bilinear_forward, bilinear_backward, bilinear_cases, budget=0)
