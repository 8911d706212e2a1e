"""Pooling: the largest or the mean of what a sliding window sees, in each channel."""

import operator
from dataclasses import dataclass, field
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.windows import (
    Padding,
    Windows,
    check_windows,
    first_places,
    laid_back,
    views,
)
from jaxprop.samples import normal, replaced


def max_pool_reference(
    x: jax.Array, *, window: tuple[int, ...], stride: tuple[int, ...], padding: Padding
) -> jax.Array:
    """Take the largest entry of each window, in each channel.

    Use it in convolutional networks to halve the resolution and keep the strongest response.

    Scope      one example, one spatial axis, no padding: x (1, N, C), window and stride of one
               number
    Forward    seen = patches(x, window, stride)                       (F1)
               y = sum_first(first_max(seen) * seen)                   (F2)
    Backward   dseen = first_max(seen) * g                             (B1) from F2
               dx = scatter_add(dseen, stride, 1, x)                   (B2) from F1, F2

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.
        window: how many entries a window has, per spatial axis.
        stride: by how much the next window lies further on, per spatial axis.
        padding: "SAME", "VALID", or a pair (low, high) per spatial axis, each less than the
            window.

    Returns:
        y: (B, *counts, C), x's dtype.

    Residuals: the place of the largest entry in its window, an int8 per element of y where windows
        have at most 128 entries (int16 or int32 beyond); x is not held.

    Numerics: of entries that tie the first gets g, in row-major order, as in PyTorch. Padding is
        never the largest: a window of -inf passes g to its first entry of x. nan is larger than
        anything, and the first gets g. Sums of g, where windows overlap, are in float32 at least.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), or the options do not fit it.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 9.3.
    """
    at = check_windows("max_pool", x, window, stride, padding)
    lowest = x.dtype.type(-np.inf)
    pads = ((0, 0), *at.padding, (0, 0))
    return lax.reduce_window(x, lowest, lax.max, (1, *window, 1), (1, *stride, 1), pads)  # F1, F2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaxPoolResiduals:
    place: jax.Array
    at: Windows = field(metadata={"static": True})


def max_pool_forward(
    x: jax.Array, *, window: tuple[int, ...], stride: tuple[int, ...], padding: Padding
) -> tuple[jax.Array, MaxPoolResiduals]:
    at = check_windows("max_pool", x, window, stride, padding)
    y, place = _first_largest(x, at)  # F1, F2
    return y, MaxPoolResiduals(place, at)


def _first_largest(x: jax.Array, at: Windows) -> tuple[jax.Array, jax.Array]:
    """The largest entry of each window, and its place; place by place, so nothing is gathered."""
    y, *others = views(x, at, -jnp.inf)
    place = jnp.broadcast_to(first_places(at), y.shape)
    for number, seen in enumerate(others, start=1):
        wins = (seen > y) | (jnp.isnan(seen) & ~jnp.isnan(y))
        y = jnp.where(wins, seen, y)
        place = jnp.where(wins, place.dtype.type(number), place)
    return y, place


def max_pool_backward(res: MaxPoolResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (laid_back(up(g), res.at, res.place),)  # B1, B2


def avg_pool_reference(
    x: jax.Array,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Padding,
    count_padding: bool = True,
) -> jax.Array:
    """Take the mean of each window, in each channel.

    Use it in convolutional networks to lower the resolution without aliasing as much as a stride.

    Scope      one example, one spatial axis, no padding: x (1, N, C), window and stride of one
               number
    Forward    seen = patches(x, window, stride)                       (F1)
               y = sum_first(seen) / rows(seen)                        (F2)
    Backward   dseen = (0 * seen + g) / rows(seen)                     (B1) from F2
               dx = scatter_add(dseen, stride, 1, x)                   (B2) from F1, F2

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.
        window: how many entries a window has, per spatial axis.
        stride: by how much the next window lies further on, per spatial axis.
        padding: "SAME", "VALID", or a pair (low, high) per spatial axis, each less than the
            window.
        count_padding: whether padding counts, as zeros; else the mean is over entries of x alone.

    Returns:
        y: (B, *counts, C), x's dtype.

    Residuals: none.

    Numerics: summed in float32 at least, rounded once. Where windows overlap, padded x is held
        while it runs (32 MiB of temporaries in place of 6, where x has 25), which lax.reduce_window
        does not, in 4 to 6 times as long.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), or the options do not fit it.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition, section
        II.B, without the coefficient and the bias.
    """
    at = check_windows("avg_pool", x, window, stride, padding)
    pads = ((0, 0), *at.padding, (0, 0))
    wide = up(x)
    total = lax.reduce_window(
        wide, wide.dtype.type(0), lax.add, (1, *window, 1), (1, *stride, 1), pads
    )  # F1, F2
    return (total / _counted(at, count_padding, wide.dtype)).astype(x.dtype)  # F2


def _counted(at: Windows, count_padding: bool, dtype: jnp.dtype) -> np.ndarray:
    """What the sum of each window is divided by."""
    if count_padding or not at.padded:
        return np.asarray(at.places, dtype)
    number = np.ones((), dtype)
    for axis, n in enumerate(at.counts):
        start = at.stride[axis] * np.arange(n) - at.padding[axis][0]
        stop = np.minimum(start + at.window[axis], at.spatial[axis])
        number = number[..., None] * (stop - np.maximum(start, 0)).astype(dtype)
    return number[..., None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AvgPoolResiduals:
    at: Windows = field(metadata={"static": True})
    count_padding: bool = field(metadata={"static": True})


def avg_pool_forward(
    x: jax.Array,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Padding,
    count_padding: bool,
) -> tuple[jax.Array, AvgPoolResiduals]:
    at = check_windows("avg_pool", x, window, stride, padding)
    total = reduce(operator.add, map(up, views(x, at, 0)))  # F1, F2
    y = total / _counted(at, count_padding, total.dtype)  # F2
    return y.astype(x.dtype), AvgPoolResiduals(at, count_padding)


def avg_pool_backward(res: AvgPoolResiduals, g: jax.Array) -> tuple[jax.Array]:
    dseen = up(g) / _counted(res.at, res.count_padding, up(g).dtype)  # B1
    return (laid_back(dseen, res.at),)  # B2


def max_pool_cases() -> list[Case]:
    signal = normal(3, 1, 7, 2)
    given = {"x": signal, "window": (3,), "stride": (2,), "padding": "VALID"}
    images = normal(0, 2, 5, 4, 3)
    volumes = normal(1, 1, 4, 2, 5, 1)
    overlapping = {"window": (3, 2), "stride": (2, 1), "padding": "SAME"}
    pairs = {"window": (2, 2), "stride": (2, 2), "padding": "VALID"}
    apart = {"window": (2,), "stride": (3,), "padding": ((0, 1),)}
    blocks = {"window": (2, 2, 3), "stride": (2, 1, 2), "padding": ((0, 0), (1, 0), (1, 1))}
    return [
        Case("overlapping windows", (images,), overlapping, given),
        Case("windows side by side", (images[:1],), pairs, given),
        Case("windows apart", (signal,), apart, given),
        Case("volumes", (volumes,), blocks, given),
        Case("bfloat16", (images.astype(jnp.bfloat16),), overlapping, given),
        Case("ties", (jnp.round(images),), overlapping, given, edge=True),
        Case("infinite", (replaced(images, np.s_[:, 0], -jnp.inf),), pairs, edge=True),
        Case("no examples", (images[:0],), overlapping, edge=True),
    ]


def avg_pool_cases() -> list[Case]:
    of_max = max_pool_cases()
    alone = {"count_padding": False}
    every = [case for case in of_max if case.name not in ("ties", "infinite")]
    of_x = [
        case._replace(name=f"{case.name}, of x alone", options={**case.options, **alone})
        for case in (of_max[0], of_max[3])
    ]
    return [*every, *of_x]


max_pool = Rule(max_pool_reference, max_pool_forward, max_pool_backward, max_pool_cases, budget=1)
avg_pool = Rule(avg_pool_reference, avg_pool_forward, avg_pool_backward, avg_pool_cases, budget=0)
