"""What values an argument evidently takes, so that no check leaves them by accident.

A mask holds zeros and ones, probabilities sum to one, knots ascend, a covariance is
symmetric. A rule may rely on such a thing, and changed values must keep it.
"""

from collections.abc import Callable

import numpy as np

Keeper = Callable[[np.ndarray], np.ndarray]
SAME = 1e-6


def is_fixed(x: np.ndarray) -> bool:
    """Whether x is a mask: changing its values makes it something else."""
    return bool(x.size > 1 and np.all((x == 0) | (x == 1)) and x.any() and not x.all())


def has_structure(x: np.ndarray) -> bool:
    """Whether values at an edge (zeros, ties, shifted) would not be arguments of this kind."""
    return is_fixed(x) or is_simplex(x) or _is_symmetric(x)


def is_simplex(x: np.ndarray) -> bool:
    """Whether x is probabilities that sum to 1 along an axis."""
    return _simplex_axis(x) is not None


def is_unit(x: np.ndarray) -> bool:
    """Whether x lies within [0, 1], as probabilities and rates do."""
    return bool(x.size and np.all((x >= 0) & (x <= 1)) and np.any((x > 0) & (x < 1)))


def has_both_signs(x: np.ndarray) -> bool:
    return bool(np.any(x > 0) and np.any(x < 0))


def keeper(x: np.ndarray) -> Keeper:
    """What makes changed values of x (of other shapes, too) an argument of the same kind."""
    if is_fixed(x):
        return np.round
    axis = _simplex_axis(x)
    if axis is not None:
        return lambda y: _normalised(y, axis)
    if _is_symmetric(x):
        return _symmetric
    if ascends(x):
        return lambda y: np.sort(y, axis=-1)
    return lambda y: y


def _simplex_axis(x: np.ndarray) -> int | None:
    if x.ndim == 0 or x.size < 2 or np.any(x < 0) or not np.isfinite(x).all():
        return None
    axes = [-1, *range(x.ndim - 1)]
    return next(
        (a for a in axes if x.shape[a] > 1 and np.allclose(x.sum(axis=a), 1, atol=1e-3)), None
    )


def _normalised(y: np.ndarray, axis: int) -> np.ndarray:
    total = np.sum(np.abs(y), axis=axis, keepdims=True)
    return np.abs(y) / np.where(total == 0, 1, total)


def _is_symmetric(x: np.ndarray) -> bool:
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1
    return square and np.allclose(x, np.swapaxes(x, -1, -2), atol=SAME) and np.ptp(x) != 0


def _symmetric(y: np.ndarray) -> np.ndarray:
    square = y.ndim >= 2 and y.shape[-1] == y.shape[-2]
    return (y + np.swapaxes(y, -1, -2)) / 2 if square else y


def ascends(x: np.ndarray) -> bool:
    """Whether x is a vector of ascending values, as knots are."""
    return x.ndim == 1 and x.size > 3 and bool(np.all(np.diff(x) > 0))
