"""Resizing the spatial axes: nearest and bilinear, half-pixel centres."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.precision import floating, up
from jaxprop.rule import Case, Rule
from jaxprop.rules.windows import check_per_axis, check_spatial
from jaxprop.samples import normal


def resize_nearest_reference(x: jax.Array, *, size: tuple[int, ...]) -> jax.Array:
    """Resize images to `size`, each pixel that of x whose centre is nearest.

    Use it to raise the resolution before a convolution, where a transposed one leaves patterns.

    Scope      one example, one spatial axis: x (1, N, C); from_ and to, the integers from 0 to
               N - 1 and size - 1
    Forward    at = (column(to) + 0.5) * rows(from_) / rows(to)        (F1)
               w = where(from_ <= at, 1, 0) * where(at < from_ + 1, 1, 0)  (F2)
               y = w @ x                                               (F3)
    Backward   dx = w.T @ g                                            (B1) from F3

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes.
        size: the lengths of y's spatial axes.

    Returns:
        y: (B, *size, C), x's dtype.

    Residuals: none.

    Numerics: pixel i of y has its centre at (i + 1/2) * N / size, in pixels of x, as in
        jax.image.resize and PyTorch's "nearest-exact". B1 sums in float32 at least: each entry of x
        gathers from the pixels that are copies of it, and nothing is scattered.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), a spatial axis is empty, or size does not fit.

    Source: Odena, Dumoulin and Olah (2016), Deconvolution and checkerboard artifacts.
    """
    _check("resize_nearest", x, size)
    return _resized(x, size, _nearest)  # F1 to F3


def resize_bilinear_reference(x: jax.Array, *, size: tuple[int, ...]) -> jax.Array:
    """Resize images to `size`, linear between the centres of pixels along each spatial axis.

    Use it to bring features of several resolutions to one.

    Scope      one example, one spatial axis: x (1, N, C); from_ and to, the integers from 0 to
               N - 1 and size - 1
    Forward    centre = (column(to) + 0.5) * rows(from_) / rows(to) - 0.5  (F1)
               at = minimum(maximum(centre, 0), rows(from_) - 1)       (F2)
               w = maximum(1 - abs(at - from_), 0)                     (F3)
               y = w @ x                                               (F4)
    Backward   dx = w.T @ g                                            (B1) from F4

    Args:
        x: (B, *spatial, C), floating, of 1 to 3 spatial axes; with one axis it is linear, with
            three trilinear.
        size: the lengths of y's spatial axes.

    Returns:
        y: (B, *size, C), x's dtype.

    Residuals: none.

    Numerics: half-pixel centres, and beyond the outermost the outermost, as in jax.image.resize
        without antialias and PyTorch without align_corners. There is no antialiasing: reduced by
        more than 2, pixels of x are left out. In float32 at least, rounded once. Two entries of x
        make one of y; in B1 each entry of x gathers from those of y that read it.

    Raises:
        TypeError: where x is not floating.
        ValueError: where x is not (B, *spatial, C), a spatial axis is empty, or size does not fit.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 9.1: a fixed linear map.
    """
    _check("resize_bilinear", x, size)
    return _resized(x, size, _bilinear)  # F1 to F4


class Taps(NamedTuple):
    """A linear map of n entries with few in a row: y[i] = sum_k weights[k, i] * x[at[k, i]]."""

    at: np.ndarray
    weights: np.ndarray


def _nearest(n: int, size: int) -> Taps:
    return Taps((2 * np.arange(size)[None] + 1) * n // (2 * size), np.ones((1, size)))


def _bilinear(n: int, size: int) -> Taps:
    centre = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    first = np.floor(centre).astype(int)
    share = centre - first
    return Taps(np.stack([first, np.minimum(first + 1, n - 1)]), np.stack([1 - share, share]))


def _transposed(taps: Taps, n: int) -> Taps:
    """The transpose of a map of n entries, in the same form; a tap that is not needed weighs 0."""
    _, reader = np.nonzero(taps.weights)
    source, weights = taps.at[taps.weights != 0], taps.weights[taps.weights != 0]
    order = np.argsort(source, kind="stable")
    counts = np.bincount(source, minlength=n)
    place = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    back = Taps(np.zeros((max(counts), n), int), np.zeros((max(counts), n)))
    back.at[place, source[order]] = reader[order]
    back.weights[place, source[order]] = weights[order]
    return back


def _mapped(x: jax.Array, axis: int, taps: Taps) -> jax.Array:
    shape = [1] * x.ndim
    shape[axis] = taps.at.shape[1]
    terms = []
    for at, weights in zip(*taps, strict=True):
        seen = _taken(x, at, axis)
        terms.append(
            seen if np.all(weights == 1) else seen * weights.reshape(shape).astype(x.dtype)
        )
    return reduce(operator.add, terms)


def _taken(x: jax.Array, at: np.ndarray, axis: int) -> jax.Array:
    """x at these indices along a spatial axis.

    Each example is a matrix whose rows are taken. What is taken along an inner axis XLA lays out
    with that axis first, and then copies.
    """
    before, n, after = x.shape[1:axis], x.shape[axis], x.shape[axis + 1 :]
    rows = (n * np.arange(prod(before))[:, None] + at).ravel()
    matrices = x.reshape(x.shape[0], prod(before) * n, prod(after))
    seen = jax.vmap(lambda matrix: jnp.take(matrix, rows, axis=0, mode="clip"))(matrices)
    return seen.reshape(x.shape[0], *before, len(at), *after)


def _resized(x: jax.Array, size: tuple[int, ...], kind: Callable[[int, int], Taps]) -> jax.Array:
    y = up(x)
    for axis, (n, length) in enumerate(zip(x.shape[1:-1], size, strict=True), start=1):
        y = _mapped(y, axis, kind(n, length))
    return y.astype(x.dtype)


def _back(g: jax.Array, spatial: tuple[int, ...], kind: Callable[[int, int], Taps]) -> jax.Array:
    g = up(g)
    for axis, (n, length) in enumerate(zip(spatial, g.shape[1:-1], strict=True), start=1):
        g = _mapped(g, axis, _transposed(kind(n, length), n))
    return g


def _check(owner: str, x: jax.Array, size: tuple[int, ...]) -> None:
    check_spatial(owner, floating(owner, "x", x))
    if not all(x.shape[1:-1]):
        raise ValueError(
            f"{owner}: the spatial axes of x must have entries, got {x.shape}. There is nothing to "
            "resize."
        )
    check_per_axis(owner, "size", size, x.shape[1:-1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResizeResiduals:
    spatial: tuple[int, ...] = field(metadata={"static": True})


def resize_nearest_forward(
    x: jax.Array, *, size: tuple[int, ...]
) -> tuple[jax.Array, ResizeResiduals]:
    return resize_nearest_reference(x, size=size), ResizeResiduals(x.shape[1:-1])  # F1 to F3


def resize_nearest_backward(res: ResizeResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (_back(g, res.spatial, _nearest),)  # B1


def resize_bilinear_forward(
    x: jax.Array, *, size: tuple[int, ...]
) -> tuple[jax.Array, ResizeResiduals]:
    return resize_bilinear_reference(x, size=size), ResizeResiduals(x.shape[1:-1])  # F1 to F4


def resize_bilinear_backward(res: ResizeResiduals, g: jax.Array) -> tuple[jax.Array]:
    return (_back(g, res.spatial, _bilinear),)  # B1


def resize_cases() -> list[Case]:
    images, signals = normal(0, 2, 3, 4, 3), normal(1, 1, 5, 2)
    volumes = normal(2, 1, 2, 3, 2, 1)
    given = {"x": signals, "size": (7,), "from_": jnp.arange(5), "to": jnp.arange(7)}
    both = {"size": (6, 3)}
    return [
        Case("images", (images,), both, given),
        Case("signals", (signals,), {"size": (3,)}, given),
        Case("volumes", (volumes,), {"size": (5, 3, 1)}, given),
        Case("bfloat16", (images.astype(jnp.bfloat16),), both, given),
        Case("one pixel", (signals[:, :1],), {"size": (4,)}, given, edge=True),
        Case("no examples", (images[:0],), both, edge=True),
    ]


resize_nearest = Rule(
    resize_nearest_reference,
    resize_nearest_forward,
    resize_nearest_backward,
    resize_cases,
    budget=0,
)
resize_bilinear = Rule(
    resize_bilinear_reference,
    resize_bilinear_forward,
    resize_bilinear_backward,
    resize_cases,
    budget=0,
)
