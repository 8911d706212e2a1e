"""Causal depthwise convolution: each channel sees its own past, a few steps of it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal


def causal_depthwise_conv_reference(
    x: jax.Array, w: jax.Array, b: jax.Array | None = None
) -> jax.Array:
    """Weigh the last K steps of each channel: y[t] = w[0] x[t - K + 1] + ... + w[K - 1] x[t] + b.

    Use it before a linear recurrence or attention, to mix neighbours cheaply.

    Scope      one example: x (1, T, C), w (K, C), b (C,)
    Forward    seen = patches(x, rows(w), 1, 1, rows(w) - 1)           (F1)
               y = sum_first(seen * column(w)) + b                     (F2)
    Backward   db = sum_rows(g)                                        (B1) from F2
               dw = sum_each(seen * g)                                 (B2) from F2
               dseen = g * column(w)                                   (B3) from F2
               dx = scatter_add(dseen, 1, 1, x, rows(w) - 1)           (B4) from F1, F2

    Args:
        x: (B, T, C), floating.
        w: (K, C), floating; the last row weighs the step itself.
        b: (C,), floating, or None for no bias.

    Returns:
        y: (B, T, C), x's dtype. Before the first step x counts as 0.

    Residuals: x and w (arguments, so nothing is held beyond them).

    Numerics: computed in float32 at least, rounded once; dw and db are summed there too. K products
        and sums of shifted arrays, which XLA fuses, in place of a convolution in C groups. The rows
        of dw come one after the other: a reduction holds the shifted x that it reads.

    Raises:
        TypeError: where x, w or b is not floating.
        ValueError: where x is not (B, T, C), w is not (K, C), or b is not (C,).

    Source: Gu and Dao (2023), Mamba, section 3.4.
    """
    _check(x, w, b)
    return _convolved(x, w, b)


def _check(x: jax.Array, w: jax.Array, b: jax.Array | None) -> None:
    for name, array in {"x": x, "w": w, "b": b}.items():
        if array is not None:
            floating("causal_depthwise_conv", name, array)
    if x.ndim != 3 or w.ndim != 2 or w.shape[1] != x.shape[2] or not w.shape[0]:
        raise ValueError(
            "causal_depthwise_conv: x must be (B, T, C) and w (K, C) with K at least 1, got x "
            f"{x.shape} and w {w.shape}. Give one weight per step and channel."
        )
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(
            f"causal_depthwise_conv: b must be (C,) = {w.shape[1:]}, got {b.shape}. Give one bias "
            "per channel, or None."
        )


def _convolved(x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
    y = _weighted(x, w, 1)  # F1, F2
    return (y if b is None else y + b.astype(y.dtype)).astype(x.dtype)  # F2


def _weighted(x: jax.Array, w: jax.Array, direction: int) -> jax.Array:
    """The sum of x at each of the last steps, or of the next where direction is -1, times w."""
    wide, back = up(x), range(len(w))[::-1]
    weights = w.astype(wide.dtype)
    terms = [_later(wide, direction * k) * row for k, row in zip(back, weights, strict=True)]
    return sum(terms[1:], start=terms[0])


def _later(x: jax.Array, steps: int) -> jax.Array:
    """x so many steps later, zeros before it; earlier, zeros after it, where negative.

    One pad for each, as XLA fuses it; slices of one that is padded once it would hold.
    """
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (steps, -steps, 0), (0, 0, 0)])


@partial(jax.jit, static_argnames="steps")  # so that a call outside of jit compiles its loop once
def _rows_of_dw(x: jax.Array, g: jax.Array, steps: int) -> jax.Array:
    """Row by row, so that one shifted x is held, not all of them."""
    padded = jnp.pad(x, ((0, 0), (steps - 1, 0), (0, 0)))

    def row(k: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(padded, k, x.shape[1], axis=1)
        return jnp.sum(up(seen) * g, axis=(0, 1))

    return lax.map(row, jnp.arange(steps))


class CausalDepthwiseConvResiduals(NamedTuple):
    x: jax.Array
    w: jax.Array


def causal_depthwise_conv_forward(
    x: jax.Array, w: jax.Array, b: jax.Array | None
) -> tuple[jax.Array, CausalDepthwiseConvResiduals]:
    _check(x, w, b)
    return _convolved(x, w, b), CausalDepthwiseConvResiduals(x, w)


def causal_depthwise_conv_backward(
    res: CausalDepthwiseConvResiduals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, w = res
    wide = up(g)
    db = jnp.sum(wide, axis=(0, 1))  # B1
    dw = _rows_of_dw(x, wide, len(w))  # B2
    dx = _weighted(g, w, -1)  # B3, B4
    return dx, dw, db


def causal_depthwise_conv_cases() -> list[Case]:
    x, w, b = normal(0, 2, 6, 3), normal(1, 3, 3), normal(2, 3)
    given = {"x": x[:1], "b": b}
    return [
        Case("three steps", (x, w, b), given=given),
        Case("no bias", (x, w), given={"x": x[:1], "b": 0 * b}),
        Case("one step", (x[:1], w[:1], b), given=given),
        Case("more weights than steps", (x[:1, :2], w, b)),
        Case("bfloat16 data", (x.astype(jnp.bfloat16), w, b), given=given),
        Case("zeros", (0 * x, w, b), given=given, edge=True),
        Case("no steps", (x[:, :0], w, b), edge=True),
    ]


causal_depthwise_conv = Rule(
    causal_depthwise_conv_reference,
    causal_depthwise_conv_forward,
    causal_depthwise_conv_backward,
    causal_depthwise_conv_cases,
    budget=0,
)
