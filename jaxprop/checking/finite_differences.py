"""Gradients by central differences in float64, for functions that have no reference."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprop.checking.compiling import quickly
from jaxprop.checking.subject import PyTree, floats, is_float, on_device

# Steps, relative to the leaf's largest value; the one whose two estimates agree best is taken.
STEPS = (1e-2, 1e-3, 1e-4, 1e-6)
# More elements than this are not differentiated one by one.
MOST = 1024

Function = Callable[[list[np.ndarray]], list[np.ndarray]]


class Estimate(NamedTuple):
    """A gradient, elementwise, and how far off it may be; nan where it was not estimated."""

    value: np.ndarray
    error: np.ndarray


class Differences:
    """The Jacobian of f at args, by columns, kept while cotangents change."""

    def __init__(self, f: Callable[..., PyTree], args: tuple[PyTree, ...], seed: int) -> None:
        leaves, structure = jax.tree.flatten(args)
        compiled = quickly(f)

        def at(here: list[np.ndarray]) -> list[np.ndarray]:
            parts = iter(here)
            with jax.enable_x64(True):
                moved = [on_device(next(parts), x.dtype) if is_float(x) else x for x in leaves]
                values = compiled(*jax.tree.unflatten(structure, moved))
            return [np.asarray(y, np.float64) for y in floats(values)]

        self.at = at
        self.leaves = [np.asarray(x, np.float64) for x in leaves if is_float(x)]
        self.columns: dict[tuple[int, int], tuple[list, list]] = {}
        self.seed = seed

    def values(self) -> list[np.ndarray]:
        return self.at(self.leaves)

    def gradients(self, g: Sequence[Any]) -> list[Estimate]:
        """d<g, f>/d(leaf) for every floating leaf; some elements only of a large one."""
        weights = [np.asarray(leaf, np.float64) for leaf in g]
        return [self._leaf(i, weights) for i in range(len(self.leaves))]

    def _leaf(self, position: int, weights: list[np.ndarray]) -> Estimate:
        x = self.leaves[position]
        value, error = np.full(x.size, np.nan), np.full(x.size, np.nan)
        for i in self._chosen(x):
            value[i], error[i] = self.element(position, i, weights)
        return Estimate(value.reshape(x.shape), error.reshape(x.shape))

    def _chosen(self, x: np.ndarray) -> Sequence[int]:
        if x.size <= MOST:
            return range(x.size)
        random = np.random.default_rng(self.seed)
        return sorted({0, x.size - 1, *random.choice(x.size, MOST // 4, replace=False).tolist()})

    def element(self, position: int, i: int, weights: list[np.ndarray]) -> tuple[float, float]:
        """One partial derivative of <g, f>, and the error that its estimates show."""
        if (position, i) not in self.columns:
            self.columns[position, i] = _column(self.at, self.leaves, position, i)
        column, spread = self.columns[position, i]
        pairs = list(zip(weights, column, spread, strict=True))
        return (
            float(sum(np.sum(w * d) for w, d, _ in pairs)),
            float(sum(np.sum(np.abs(w) * e) for w, _, e in pairs)),
        )

    def slope(self, position: int, g: Sequence[Any], d: Any) -> float:
        """How fast the Taylor remainder in one leaf shrinks: 2 where d is its gradient, 1 if not.

        Needs no choice of step: |phi(x + h v) - phi(x) - h <d, v>|, phi = <g, f>, is of order
        h^2 for the gradient and of order h for anything else. nan where it is rounding alone.
        """
        x = self.leaves[position]
        random = np.random.default_rng(self.seed)
        v = (float(np.max(np.abs(x), initial=0.0)) or 1.0) * random.normal(size=x.shape)
        along = float(np.sum(np.asarray(d, np.float64) * v))
        weights = [np.asarray(leaf, np.float64) for leaf in g]

        def phi(h: float) -> float:
            moved = [*self.leaves[:position], x + h * v, *self.leaves[position + 1 :]]
            return float(sum(np.sum(w * y) for w, y in zip(weights, self.at(moved), strict=True)))

        start, steps = phi(0.0), np.array([1e-3, 5e-4, 2.5e-4, 1.25e-4])
        found = np.array([abs(phi(h) - start - h * along) for h in steps])
        if not np.isfinite(found).all() or found[-1] <= 1e-12 * max(1.0, abs(start), abs(along)):
            return float("nan")
        return float(np.median(np.diff(np.log2(found)) / np.diff(np.log2(steps))))


def _column(at: Function, leaves: list[np.ndarray], position: int, i: int) -> tuple[list, list]:
    """Every output's derivative in one entry, and its error, at the step that serves best."""
    best: tuple[list, list] | None = None
    for step in STEPS:
        found = _extrapolated(at, leaves, position, i, step)
        if best is None or _total(found[1]) < _total(best[1]):
            best = found
        if _total(best[1]) <= 1e-9 * _total([np.abs(d) for d in best[0]]):
            break
    assert best is not None
    return best


def _total(errors: list[np.ndarray]) -> float:
    total = float(sum(np.sum(e) for e in errors))
    return total if np.isfinite(total) else np.inf


def _extrapolated(
    at: Function, leaves: list[np.ndarray], position: int, i: int, step: float
) -> tuple[list, list]:
    """Richardson's extrapolation of two central differences: the error is of order h^4."""
    x = leaves[position]
    h = step * (float(np.max(np.abs(x), initial=0.0)) or 1.0)

    def central(h: float) -> list[np.ndarray]:
        up, down = x.copy(), x.copy()
        up.flat[i] += h
        down.flat[i] -= h
        above = at([*leaves[:position], up, *leaves[position + 1 :]])
        below = at([*leaves[:position], down, *leaves[position + 1 :]])
        width = up.flat[i] - down.flat[i]
        return [(a - b) / width for a, b in zip(above, below, strict=True)]

    wide, narrow = central(h), central(h / 2)
    value = [(4 * b - a) / 3 for a, b in zip(wide, narrow, strict=True)]
    return value, [np.abs(v - b) for v, b in zip(value, narrow, strict=True)]
