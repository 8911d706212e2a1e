"""Values and gradients at a point, and the random cotangents they are taken with.

Here a cotangent g is the list of its floating leaves: outputs that are not floating have none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprop.checking.subject import PyTree, floats, is_float, on_device

Cotangent = list[jax.Array]


class Answer(NamedTuple):
    """The floating leaves of the output, and the cotangent of every floating leaf of args."""

    values: list[Any]
    cotangents: list[Any]


def answer(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent) -> Answer:
    y, vjp = jax.vjp(f, *args)
    return Answer(floats(y), select(args, vjp(filled(y, g))))


def pull(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent) -> list[jax.Array]:
    """The cotangent of every floating leaf of args, in order."""
    return answer(f, args, g).cotangents


def select(args: tuple[PyTree, ...], cotangents: PyTree) -> list[jax.Array]:
    """The cotangents that belong to floating leaves; JAX gives float0 for the others."""
    leaves, structure = jax.tree.flatten(args)
    found = _up_to(structure, cotangents)
    return [d for leaf, d in zip(leaves, found, strict=True) if is_float(leaf)]


def _up_to(structure: Any, tree: PyTree) -> list[Any]:
    """What stands in `tree` where the structure has leaves."""
    return structure.flatten_up_to(tree)


def filled(y: PyTree, g: Cotangent) -> PyTree:
    """g as JAX wants it: the output's tree, float0 for what has no gradient."""
    leaves = iter(g)
    return jax.tree.map(
        lambda x: next(leaves) if is_float(x) else np.zeros(x.shape, jax.dtypes.float0), y
    )


def cotangent(seed: int, y: PyTree) -> PyTree:
    """A random normal cotangent for an output like y, as `jax.vjp`'s pullback takes it.

    Args:
        seed: of NumPy's generator; a report gives the one it used.
        y: the output, or its shapes and dtypes.
    """
    return filled(y, normal(seed, floats(y)))


def normal(seed: int, leaves: list[Any]) -> Cotangent:
    random = np.random.default_rng(seed)
    return [on_device(random.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]


def one_hots(y: PyTree) -> list[Cotangent]:
    """Cotangents of one entry: the first, the middle and the last of every output leaf."""
    leaves = floats(y)
    return [
        [_one_hot(leaf, entry if i == position else None) for i, leaf in enumerate(leaves)]
        for position, chosen in enumerate(leaves)
        for entry in sorted({0, chosen.size // 2, chosen.size - 1} - {-1})
        if chosen.size
    ]


def _one_hot(leaf: Any, entry: int | None) -> jax.Array:
    flat = np.zeros(leaf.size)
    if entry is not None:
        flat[entry] = 1
    return on_device(flat.reshape(leaf.shape), leaf.dtype)
