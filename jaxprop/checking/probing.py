"""Values and gradients at a point, and the random cotangents they are taken with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.subject import PyTree, floats, is_float


def pull(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: PyTree) -> list[jax.Array]:
    """The cotangent of every floating leaf of args, in order."""
    _, vjp = jax.vjp(f, *args)
    return select(args, vjp(g))


def select(args: tuple[PyTree, ...], cotangents: PyTree) -> list[jax.Array]:
    """The cotangents that belong to floating leaves; JAX gives float0 for the others."""
    leaves, structure = jax.tree.flatten(args)
    return [
        d for leaf, d in zip(leaves, structure.flatten_up_to(cotangents), strict=True) if is_float(leaf)
    ]


def output_type(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> PyTree:
    return jax.eval_shape(f, *args)


def cotangent(seed: int, output: PyTree) -> PyTree:
    """A random normal g like the output; float0 for what has no gradient."""
    random = np.random.default_rng(seed)
    return like(output, lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype))


def like(output: PyTree, make: Callable[[Any], jax.Array]) -> PyTree:
    """A cotangent of the output's tree, `make(leaf)` at its floating leaves."""
    return jax.tree.map(
        lambda leaf: make(leaf) if is_float(leaf) else np.zeros(leaf.shape, jax.dtypes.float0),
        output,
    )


def scaled(g: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda leaf: leaf if _is_float0(leaf) else leaf * factor, g)


def added(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x if _is_float0(x) else x + y, a, b)


def _is_float0(leaf: Any) -> bool:
    return leaf.dtype == jax.dtypes.float0


def one_hots(output: PyTree) -> list[PyTree]:
    """Cotangents of one entry: the first, the middle and the last of every output leaf."""
    made = []
    for position, leaf in enumerate(floats(output)):
        for entry in sorted({0, leaf.size // 2, leaf.size - 1} - {-1}):
            made.append(_one_hot(output, position, entry))
    return made


def _one_hot(output: PyTree, position: int, entry: int) -> PyTree:
    count = iter(range(len(jax.tree.leaves(output))))

    def make(leaf: Any) -> jax.Array:
        zeros = jnp.zeros(leaf.size, leaf.dtype)
        filled = zeros.at[entry].set(1) if next(count) == position else zeros
        return filled.reshape(leaf.shape)

    return like(output, make)
