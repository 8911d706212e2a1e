"""The types of arrays and trees: what is known of them when tracing, mesh axes included."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxprop.precision import at_least_float32

PyTree = Any


class ArrayType(NamedTuple):
    """What backward must know of an array that it does not hold."""

    shape: tuple[int, ...]
    dtype: Any
    varying: frozenset[str]  # axes of an enclosing shard_map on which it differs
    sharding: NamedSharding  # over the Explicit axes of its mesh

    @property
    def differentiable(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)


class TreeType(NamedTuple):
    """A pytree of arrays without the arrays; hashable, so that it can be static."""

    structure: Any
    leaves: tuple[ArrayType, ...]


def varying_axes(x: jax.typing.ArrayLike) -> frozenset[str]:
    """The mesh axes of an enclosing `shard_map` on which x differs (none elsewhere).

    The one place that reads JAX's name for this. It has no default: a JAX that calls
    it something else must fail here, not sum over the wrong axes.
    """
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def as_arrays(owner: str, name: str, tree: PyTree) -> PyTree:
    """One argument or output, its leaves (numbers, NumPy arrays) jax arrays.

    Raises TypeError where a leaf cannot be one, naming the leaf.
    """
    return jax.tree_util.tree_map_with_path(partial(_as_array, owner, name), tree)


def _as_array(owner: str, name: str, path: tuple, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf  # jnp.asarray of one that is being differentiated copies it
    try:
        if not isinstance(leaf, (str, bytes)):  # "f4" is a dtype to NumPy, and no number
            return jnp.asarray(leaf)
        raise TypeError
    except TypeError:
        raise TypeError(
            f"{owner}: {name}{jax.tree_util.keystr(path)} must be an array or a number, "
            f"got {type(leaf).__name__} ({leaf!r}). Convert it with jnp.asarray, or pass it "
            "as an option if it is not data."
        ) from None


def of_numpy(tree: PyTree) -> PyTree:
    """The tree, its NumPy arrays jax arrays; jnp.asarray would compile a copy for every shape."""

    def of_leaf(leaf: Any) -> Any:
        return jax.device_put(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf

    return jax.tree.map(of_leaf, tree)


def tree_type(tree: PyTree) -> TreeType:
    """The types of the arrays of one argument or output."""
    leaves, structure = jax.tree.flatten(tree)
    return TreeType(structure, tuple(map(_array_type, leaves)))


def _array_type(x: jax.Array) -> ArrayType:
    aval = jax.typeof(x)
    return ArrayType(aval.shape, aval.dtype, varying_axes(x), aval.sharding)


def leaf_names(name: str, tree: TreeType) -> list[str]:
    """`name` with the path of each leaf, for errors: params['hidden_1']['w']."""
    placeholders = tree.structure.unflatten(range(len(tree.leaves)))
    paths = jax.tree_util.tree_leaves_with_path(placeholders)
    return [name + jax.tree_util.keystr(path) for path, _ in paths]


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """x, marked as varying over those of `axes` on which it does not vary yet."""
    missing = tuple(sorted(axes - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def zeros(kind: ArrayType) -> jax.Array:
    """Zeros of this type."""
    return vary(jnp.zeros(kind.shape, kind.dtype), kind.varying)


def accumulator(x: jax.Array, terms: Sequence[jax.Array]) -> jax.Array:
    """Zeros in x's shape, float32 at least, for a loop to add to what it makes of the terms.

    They vary over mesh axes as the terms do: `lax.scan` asks that of what it carries.
    """
    start = jnp.zeros_like(x, at_least_float32(x.dtype))
    return vary(start, frozenset().union(*map(varying_axes, terms)))
