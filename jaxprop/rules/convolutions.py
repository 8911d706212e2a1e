"""Convolutions of x (B, *spatial, C) with w (*window, C_in / groups, C_out), as XLA has them.

convolving.py says by which way each is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.precision import at_least_float32, floating
from jaxprop.rules.windows import (
    Padding,
    check_fit,
    check_padding,
    check_per_axis,
    check_spatial,
    reach,
)

# Where x has its batch, its channels and what is spatial; so of w, outputs first, and of y.
Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Convolution:
    """What a convolution does along each spatial axis, and in how many groups of channels.

    stride:   by how much the next window lies further on.
    padding:  how many zeros stand before and after x.
    dilation: how far apart the entries are that a window sees.
    spread:   how far apart the entries of x are put, zeros between them.
    groups:   channels are cut into so many; a group of outputs sees its group of inputs alone.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]
    groups: int


def by_xla(x: jax.Array, w: jax.Array, how: Convolution) -> jax.Array:
    """The convolution; w in x's dtype, accumulated and returned in the dtype to compute in."""
    axes = (0, x.ndim - 1, *range(1, x.ndim - 1))
    kernel_axes = (w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))
    return _convolution(x, w.astype(x.dtype), (axes, kernel_axes, axes), how)


def counts(spatial: Sequence[int], window: Sequence[int], how: Convolution) -> list[int]:
    """How many windows there are along each axis."""
    axes = zip(spatial, window, how.spread, how.padding, how.dilation, how.stride, strict=True)
    return [
        (reach(n, spread) + low + high - reach(k, dilation)) // stride + 1
        for n, k, spread, (low, high), dilation, stride in axes
    ]


def _convolution(
    x: jax.Array,
    w: jax.Array,
    axes: Axes,
    how: Convolution,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=how.stride,
        padding=how.padding,
        lhs_dilation=how.spread,
        rhs_dilation=how.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(*axes),
        feature_group_count=how.groups,
        preferred_element_type=at_least_float32(x.dtype),
    )


def kernel_by_xla(
    x: jax.Array,
    g: jax.Array,
    how: Convolution,
    window: Sequence[int],
    convolution: Callable[[jax.Array, jax.Array, Axes, Convolution], jax.Array] = _convolution,
) -> jax.Array:
    """The cotangent of w, whose window this is.

    The convolution of x with g as the kernel, summed over the batch as if it were channels. Stride
    and dilation change places. Channels of a group are x's batch, and groups stay groups: XLA's own
    transpose makes them groups of the batch, which took 100 times as long on a CPU.
    """
    padding = []
    lengths = zip(x.shape[1:-1], g.shape[1:-1], window, strict=True)
    for axis, (n, count, k) in enumerate(lengths):
        before = how.padding[axis][0]
        margin = (k - 1) * how.dilation[axis]
        whole = reach(count, how.stride[axis]) + margin
        padding.append((before, whole - reach(n, how.spread[axis]) - before))
    back = Convolution(how.dilation, tuple(padding), how.stride, how.spread, how.groups)
    last = x.ndim - 1
    spatial = range(1, last)
    kernel_axes = (last, 0, *spatial)  # the outputs, the batch, and what was spatial
    out_axes = (last - 1, last, *range(last - 1))
    if how.groups == 1:
        axes = (last, 0, *spatial)
        return convolution(x, g, (axes, kernel_axes, out_axes), back)
    batch, channels = x.shape[0], x.shape[-1]
    grouped = x.reshape(*x.shape[:-1], how.groups, channels // how.groups)
    grouped = jnp.moveaxis(grouped, 0, -2)  # *spatial, groups, B, C_in / groups
    rows = grouped.reshape(*x.shape[1:-1], how.groups * batch, channels // how.groups)
    axes = (last, last - 1, *range(last - 1))
    return convolution(rows, g, (axes, kernel_axes, out_axes), back)


def in_order(x: jax.Array, w: jax.Array, axes: Axes, how: Convolution) -> jax.Array:
    """The same, of operands whose axes are put in order before.

    Within a loop or a branch XLA does not do that on a CPU, and computes number by number.
    """
    (batch, channels, *spatial), (outputs, inputs, *window), out = axes
    x = jnp.transpose(x, (batch, *spatial, channels))
    y = by_xla(x, jnp.transpose(w, (*window, inputs, outputs)), how)
    return jnp.moveaxis(y, range(y.ndim), (out[0], *out[2:], out[1]))


def check_convolution(
    owner: str,
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    *,
    stride: tuple[int, ...] | None,
    padding: Padding,
    dilation: tuple[int, ...] | None,
    groups: int,
) -> Convolution:
    """The convolution of these options; TypeError or ValueError where they do not fit x and w."""
    check_arrays(owner, x, w, b, groups)
    spatial, window = x.shape[1:-1], w.shape[:-2]
    ones = (1,) * len(spatial)
    stride, dilation = stride or ones, dilation or ones
    check_per_axis(owner, "stride", stride, spatial)
    check_per_axis(owner, "dilation", dilation, spatial)
    extent = [reach(k, d) for k, d in zip(window, dilation, strict=True)]
    pairs = check_padding(owner, padding, spatial, extent, stride)
    check_fit(owner, spatial, extent, pairs)
    return Convolution(stride, pairs, dilation, ones, groups)


def check_arrays(
    owner: str, x: jax.Array, w: jax.Array, b: jax.Array | None, groups: int = 1
) -> None:
    """TypeError or ValueError where x, w, b and the groups of channels do not fit together."""
    for name, array in {"x": x, "w": w, "b": b}.items():
        if array is not None:
            floating(owner, name, array)
    check_spatial(owner, x)
    if not isinstance(groups, int) or groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"{owner}: groups must be a positive integer that divides C = {x.shape[-1]}, got "
            f"{groups!r}. Channels are the last axis of x."
        )
    fits = w.ndim == x.ndim and w.shape[-2] == x.shape[-1] // groups
    if not fits or w.shape[-1] % groups or not all(w.shape[:-2]):
        raise ValueError(
            f"{owner}: w must be (*window, {x.shape[-1] // groups}, C_out) with {x.ndim - 2} axes "
            f"of window and C_out a multiple of groups = {groups}, got {w.shape} for x {x.shape}. "
            "The window comes first and the outputs last."
        )
    if b is not None and b.shape != w.shape[-1:]:
        raise ValueError(
            f"{owner}: b must be (C_out,) = {w.shape[-1:]}, got {b.shape}. Give one bias per "
            "output, or None."
        )


def biased(y: jax.Array, b: jax.Array | None) -> jax.Array:
    return y if b is None else y + b.astype(y.dtype)
