"""Causal depthwise convolution: each channel sees its own past, a few steps of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.windows import Windows, views
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
        and sums of shifted arrays, which XLA fuses, in place of a convolution in C groups. For
        bfloat16 that holds half as much again as products in bfloat16, for a sixth of the error.

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
    steps = len(w)
    weights = w.astype(up(x).dtype)
    y = _weighted(_seen(x, steps, before=True), weights)  # F1, F2
    return (y if b is None else y + b.astype(y.dtype)).astype(x.dtype)  # F2


def _seen(x: jax.Array, steps: int, before: bool) -> list[jax.Array]:
    """x of each of so many steps, in the dtype to compute in: up to t, or from t on."""
    padding = (steps - 1, 0) if before else (0, steps - 1)
    return [up(seen) for seen in views(x, Windows(x.shape[1:-1], (steps,), (1,), (padding,)), 0)]


def _weighted(seen: list[jax.Array], weights: jax.Array) -> jax.Array:
    first, *others = (x * w for x, w in zip(seen, weights, strict=True))
    return sum(others, start=first)


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
    steps, wide = len(w), up(g)
    db = jnp.sum(wide, axis=(0, 1))  # B1
    products = (seen * wide for seen in _seen(x, steps, before=True))
    dw = jnp.stack([jnp.sum(product, axis=(0, 1)) for product in products])  # B2
    dx = _weighted(_seen(g, steps, before=False), w[::-1].astype(wide.dtype))  # B3, B4
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
