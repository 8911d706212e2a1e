"""Gradients by central differences in float64, for functions that have no reference."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.subject import PyTree, floats, is_float

STEP = 1e-3


def pairing(f: Callable[..., PyTree], g: list) -> Callable[..., float]:
    """The scalar <g, f(args)>, whose gradient is f's cotangent for g."""
    weights = [np.asarray(leaf) for leaf in g]

    def phi(*args: PyTree) -> float:
        pairs = zip(weights, floats(f(*args)), strict=True)
        return float(sum(np.sum(w * np.asarray(y)) for w, y in pairs))

    return phi


def gradients(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: list) -> list[Any]:
    """d<g, f>/d(leaf) for every floating leaf, element by element."""
    leaves, structure = jax.tree.flatten(args)
    found = []
    for position, leaf in enumerate(leaves):
        if is_float(leaf):
            found.append(_of_leaf(jax.jit(f), structure, leaves, position, g))
    return found


def _of_leaf(f: Callable, structure: Any, leaves: list, position: int, g: list) -> jax.Array:
    x = np.asarray(leaves[position], np.float64)
    phi = pairing(f, g)

    def at(flat: np.ndarray) -> float:
        moved = [*leaves[:position], jnp.asarray(flat.reshape(x.shape)), *leaves[position + 1 :]]
        return phi(*structure.unflatten(moved))

    gradient = [_partial(at, x.ravel(), i) for i in range(x.size)]
    return jnp.asarray(gradient, jnp.float64).reshape(x.shape)


def _partial(at: Callable[[np.ndarray], float], x: np.ndarray, i: int) -> float:
    """Richardson's extrapolation of two central differences: the error is of order h^4."""
    h = STEP * max(1.0, abs(float(x[i])))
    return (4 * _central(at, x, i, h / 2) - _central(at, x, i, h)) / 3


def _central(at: Callable[[np.ndarray], float], x: np.ndarray, i: int, h: float) -> float:
    up, down = x.copy(), x.copy()
    up[i] += h
    down[i] -= h
    return (at(up) - at(down)) / (up[i] - down[i])


def taylor_slope(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], g: list, d: list[Any], seed: int
) -> float:
    """How fast the Taylor remainder shrinks with the step: 2 where d is the gradient, 1 if not.

    Needs no choice of step: |phi(x + h v) - phi(x) - h <d, v>| is of order h^2 for the
    gradient and of order h for anything else. nan where the function is linear in v, and
    the remainder is rounding alone.
    """
    random = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(args)
    v = [np.asarray(random.normal(size=leaf.shape)) for leaf in floats(args)]
    slope = sum(float(np.sum(np.asarray(a) * b)) for a, b in zip(d, v, strict=True))
    phi = pairing(f, g)

    def remainder(h: float) -> float:
        steps = iter(v)
        moved = [leaf + h * next(steps) if is_float(leaf) else leaf for leaf in leaves]
        return abs(phi(*structure.unflatten(moved)) - start - h * slope)

    start = phi(*args)
    steps = [1e-2, 5e-3, 2.5e-3, 1.25e-3]
    found = [remainder(h) for h in steps]
    noise = 1e-13 * max(1.0, abs(start), abs(slope))
    if found[-1] <= noise:
        return float("nan")
    return float(np.median([np.log2(a / b) for a, b in pairwise(found)]))
