"""Linear maps of the last axis: an affine map, and the one onto a vocabulary."""

from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, matmul, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def linear_reference(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """Affine map of the last axis: y = x @ w + b.

    Use it for every fully connected layer; weights are stored (n_in, n_out), so
    examples are rows.

    Scope      rows: x (B, n_in), w (n_in, n_out), b (n_out,)
    Forward    y = x @ w + b                                           (F1)
    Backward   dx = g @ w.T                                            (B1) from F1
               dw = x.T @ g                                            (B2) from F1
               db = sum_rows(g)                                       (B3) from F1

    Args:
        x: (..., n_in), floating.
        w: (n_in, n_out), floating; taken in x's dtype.
        b: (n_out,), floating, or None for no bias.

    Returns:
        y: (..., n_out), x's dtype.

    Residuals: x and w (arguments, so nothing is held beyond them).

    Numerics: the products accumulate in float32 for lower precisions; dw and db are
        reduced there too and rounded once, to the dtypes of w and b.

    Raises:
        TypeError: where x, w or b is not floating.
        ValueError: where the last axis of x is not n_in, or b is not (n_out,).

    Source: Goodfellow, Bengio and Courville, Deep Learning, Algorithm 6.4; seed
        claims N1 to N3.
    """
    _check(x, w, b)
    y = matmul(x, w)  # F1
    return (y if b is None else y + b.astype(y.dtype)).astype(x.dtype)  # F1


class LinearResiduals(NamedTuple):
    x: jax.Array
    w: jax.Array


def linear_forward(
    x: jax.Array, w: jax.Array, b: jax.Array | None
) -> tuple[jax.Array, LinearResiduals]:
    return linear_reference(x, w, b), LinearResiduals(x, w)  # F1


def linear_backward(res: LinearResiduals, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, w = res
    dx = matmul(g, w.T)  # B1
    dw = matmul(rows(x).T, rows(g))  # B2
    db = jnp.sum(rows(up(g)), axis=0)  # B3
    return dx, dw, db


def rows(x: jax.Array) -> jax.Array:
    """x as a matrix of rows: its leading axes are all batch."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _check(x: jax.Array, w: jax.Array, b: jax.Array | None) -> None:
    for name, array in {"x": x, "w": w, "b": b}.items():
        if array is not None:
            floating("linear", name, array)
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"linear: x must be (..., n_in) and w (n_in, n_out), got x {x.shape} and w {w.shape}. "
            "Weights are stored (n_in, n_out): transpose a (n_out, n_in) matrix."
        )
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(
            f"linear: b must be (n_out,) = {w.shape[1:]}, got {b.shape}. Give one bias per column "
            "of w, or None."
        )


def linear_cases() -> list[Case]:
    x, w, b = normal(0, 5, 3), normal(1, 3, 4), normal(2, 4)
    return [
        Case("batch of rows", (x, w, b)),
        Case("no bias", (x, w), given={"b": jnp.zeros(4, jnp.float32)}),
        Case("batch of one", (x[:1], w, b)),
        Case("one unit", (x, w[:, :1], b[:1])),
        Case("extra leading axes", (normal(3, 2, 7, 3), w, b), given={"x": x}),
        Case("vector", (x[0], w, b), given={"x": x}),
        Case("bfloat16 data", (x.astype(jnp.bfloat16), w, b)),
        Case("zeros", (0 * x, 0 * w, 0 * b), edge=True),
        Case("empty batch", (x[:0], w, b), edge=True),
        Case("no inputs", (x[:, :0], w[:0], b), edge=True),
    ]


linear = Rule(linear_reference, linear_forward, linear_backward, linear_cases, budget=0)


def tied_unembedding_reference(h: jax.Array, table: jax.Array) -> jax.Array:
    """Logits by the table that embeds the tokens: logits = h @ table.T.

    Use it at the end of a language model whose embedding and last layer share their weights. Where
    a loss follows at once, linear_cross_entropy on table.T holds no logits.

    Scope      rows: h (B, D), table (V, D)
    Forward    logits = h @ table.T                                    (F1)
    Backward   dh = g @ table                                          (B1) from F1
               dtable = g.T @ h                                        (B2) from F1

    Args:
        h: (..., D), floating.
        table: (V, D), floating, a row for each token; taken in h's dtype.

    Returns:
        logits: (..., V), h's dtype.

    Residuals: h and table (arguments).

    Numerics: the products accumulate in float32 for lower precisions and are rounded once, to the
        dtypes of logits, h and table.

    Raises:
        TypeError: where h or table is not floating.
        ValueError: where the last axes of h and table are not the same.

    Source: Press and Wolf (2017), Using the output embedding to improve language models, section 3.
    """
    floating("tied_unembedding", "h", h)
    floating("tied_unembedding", "table", table)
    if h.ndim < 1 or table.ndim != 2 or h.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"tied_unembedding: h must be (..., D) and table (V, D), got h {h.shape} and table "
            f"{table.shape}. Transpose a (D, V) matrix, or use linear."
        )
    return matmul(h, table.T).astype(h.dtype)  # F1


class TiedUnembeddingResiduals(NamedTuple):
    h: jax.Array
    table: jax.Array


def tied_unembedding_forward(
    h: jax.Array, table: jax.Array
) -> tuple[jax.Array, TiedUnembeddingResiduals]:
    return tied_unembedding_reference(h, table), TiedUnembeddingResiduals(h, table)  # F1


def tied_unembedding_backward(
    res: TiedUnembeddingResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    h, table = res
    return matmul(g, table), matmul(rows(g).T, rows(h))  # B1, B2


def tied_unembedding_cases() -> list[Case]:
    h, table = normal(0, 5, 3), normal(1, 7, 3)
    return [
        Case("rows", (h, table)),
        Case("more axes", (normal(2, 2, 1, 3), table), given={"h": h}),
        Case("bfloat16 data", (h.astype(jnp.bfloat16), table)),
        Case("no rows", (h[:0], table), edge=True),
    ]


tied_unembedding = Rule(
    tied_unembedding_reference,
    tied_unembedding_forward,
    tied_unembedding_backward,
    tied_unembedding_cases,
    budget=0,
)
