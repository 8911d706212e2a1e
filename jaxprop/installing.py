"""What every rule needs and no rule repeats: types, cotangents, dtypes, mesh axes.

`rule.py` calls these around a rule's own forward and backward, so that a rule file
holds mathematics only. They cover the places where JAX is strict about a
hand-written backward (a mesh axis not summed over) or silent (a cotangent of the
wrong dtype).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

PyTree = Any


class ArrayType(NamedTuple):
    """What backward must know of an array that it does not hold."""

    shape: tuple[int, ...]
    dtype: Any
    varying: frozenset[str]  # axes of an enclosing shard_map on which it differs
    spec: PartitionSpec  # its sharding over Explicit mesh axes

    @property
    def differentiable(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)


class TreeType(NamedTuple):
    """A pytree of arrays without the arrays; hashable, so that it can be static."""

    structure: Any
    leaves: tuple[ArrayType, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Saved:
    """What an installed forward hands to its backward.

    residuals: the rule's own residuals; nothing else here holds memory.
    primals, output: the types of the arguments and of the output, static.
    """

    residuals: PyTree
    primals: tuple[TreeType, ...] = field(metadata={"static": True})
    output: TreeType = field(metadata={"static": True})


def varying_axes(x: jax.typing.ArrayLike) -> frozenset[str]:
    """The mesh axes of an enclosing `shard_map` on which x differs (none elsewhere).

    The one place that reads JAX's name for this. It has no default: a JAX that calls
    it something else must fail here, not sum over the wrong axes.
    """
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def array_type(x: jax.typing.ArrayLike) -> ArrayType:
    aval = jax.typeof(x)
    return ArrayType(aval.shape, aval.dtype, varying_axes(x), aval.sharding.spec)


def tree_type(owner: str, name: str, tree: PyTree) -> TreeType:
    """The types of one argument or output; TypeError where a leaf is not an array."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    types = []
    for path, leaf in leaves:
        try:
            types.append(array_type(leaf))
        except TypeError:
            raise TypeError(
                f"{owner}: {name}{jax.tree_util.keystr(path)} must be an array or a number, "
                f"got {type(leaf).__name__} ({leaf!r}). Convert it with jnp.asarray, or pass it "
                "as an option if it is not data."
            ) from None
    return TreeType(structure, tuple(types))


def leaf_names(name: str, tree: TreeType) -> list[str]:
    """`name` with the path of each leaf, for errors: params['hidden_1']['w']."""
    placeholders = tree.structure.unflatten(range(len(tree.leaves)))
    paths = jax.tree_util.tree_leaves_with_path(placeholders)
    return [name + jax.tree_util.keystr(path) for path, _ in paths]


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """x, marked as varying over those of `axes` on which it does not vary yet."""
    missing = tuple(sorted(axes - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def incoming_cotangent(owner: str, output: TreeType, g: PyTree) -> PyTree:
    """g with the tree, shapes and dtypes of the output.

    None stands for zeros, in the place of one output or of several. An output that
    has no gradient (integers) gets None.
    """
    names = leaf_names("g", output)
    leaves = _match_tree(owner, "g", "the output", output, g)
    return output.structure.unflatten(
        [
            _incoming_leaf(owner, name, leaf, kind)
            for name, leaf, kind in zip(names, leaves, output.leaves, strict=True)
        ]
    )


def _incoming_leaf(owner: str, name: str, g: PyTree, output: ArrayType) -> jax.Array | None:
    if not output.differentiable:
        return None
    if g is None:
        return vary(jnp.zeros(output.shape, output.dtype), output.varying)
    _check_shape(owner, name, "the output", g, output)
    return vary(jnp.asarray(g, output.dtype), output.varying)


def outgoing_cotangents(
    owner: str, names: Sequence[str], primals: Sequence[TreeType], cotangents: PyTree
) -> tuple[PyTree, ...]:
    """A backward's cotangents, one per argument, made the type that JAX must see.

    Checked (tree, shape), then summed over the mesh axes on which they vary and
    their primal does not, marked varying where only the primal varies, and last cast
    to the primal's dtype: so sums run in the dtype the backward computed in.
    """
    if not isinstance(cotangents, tuple) or len(cotangents) != len(primals):
        got = f"{len(cotangents)}" if isinstance(cotangents, tuple) else repr(type(cotangents))
        raise TypeError(
            f"{owner}.backward must return a tuple of {len(primals)} cotangents, one for each of "
            f"({', '.join(names)}), got {got}. Return None for an argument without a gradient."
        )
    return tuple(
        _outgoing_tree(owner, name, primal, cotangent)
        for name, primal, cotangent in zip(names, primals, cotangents, strict=True)
    )


def _outgoing_tree(owner: str, name: str, primal: TreeType, cotangent: PyTree) -> PyTree:
    if cotangent is None or not primal.leaves:
        return None
    names = leaf_names(f"d{name}", primal)
    leaves = _match_tree(owner, f"d{name}", f"the argument {name}", primal, cotangent)
    return primal.structure.unflatten(
        [
            _outgoing_leaf(owner, leaf_name, leaf, kind)
            for leaf_name, leaf, kind in zip(names, leaves, primal.leaves, strict=True)
        ]
    )


def _outgoing_leaf(owner: str, name: str, ct: PyTree, primal: ArrayType) -> jax.Array | None:
    if ct is None or not primal.differentiable:
        return None
    _check_shape(owner, name, "its argument", ct, primal)
    extra = tuple(sorted(varying_axes(ct) - primal.varying))
    summed = lax.psum(ct, extra) if extra else jnp.asarray(ct)
    return vary(summed, primal.varying).astype(primal.dtype)


def _match_tree(owner: str, name: str, what: str, kind: TreeType, tree: PyTree) -> list[PyTree]:
    """The leaves of `tree` in the order of `kind`; None where a None stands above or at a leaf."""

    def is_none(node: PyTree) -> bool:
        return node is None

    marker = object()
    marked = jax.tree.map(lambda leaf: marker if leaf is None else leaf, tree, is_leaf=is_none)
    try:
        full = jax.tree.broadcast(marked, kind.structure.unflatten(range(len(kind.leaves))))
        leaves = jax.tree.leaves(full)
    except ValueError:
        leaves = []
    same = kind.structure in (jax.tree.structure(tree), jax.tree.structure(marked))
    if not same and not any(leaf is marker for leaf in leaves):
        raise TypeError(
            f"{owner}.backward: {name} must have the structure of {what}, {kind.structure}, "
            f"got {jax.tree.structure(tree)}. Give one leaf per leaf, or None for no gradient."
        )
    return [None if leaf is marker else leaf for leaf in leaves]


def _check_shape(owner: str, name: str, what: str, g: PyTree, expected: ArrayType) -> None:
    if jnp.shape(g) != expected.shape:
        raise ValueError(
            f"{owner}.backward: {name} must have the shape of {what}, {expected.shape}, "
            f"got {jnp.shape(g)}. Sum over broadcast axes, transpose, or drop the keepdims axis."
        )


def tie(output: PyTree, args: PyTree) -> PyTree:
    """The output, every leaf made to depend on every argument, by a zero.

    A `custom_vjp` with several outputs, one of which does not depend on the argument
    that `vmap` maps over, counts that output's cotangent once per mapped element under
    `grad(vmap(...))`. A dependence on every argument makes every output mapped.
    """
    leaves = jax.tree.leaves(output)
    if len(leaves) < 2:
        return output
    zeros = [_zero_from(arg) for arg in jax.tree.leaves(args)]
    return jax.tree.map(lambda y: _add_zeros(y, zeros), output)


def _zero_from(arg: jax.typing.ArrayLike) -> jax.Array:
    """A float32 zero that depends on `arg` (of any size, sharding and dtype)."""
    if jnp.issubdtype(jax.typeof(arg).dtype, jax.dtypes.prng_key):
        arg = jax.random.key_data(arg)
    return jnp.sum(jnp.where(False, jnp.asarray(arg).astype(jnp.float32), 0.0))


def _add_zeros(y: jax.Array, zeros: list[jax.Array]) -> jax.Array:
    """y plus zeros, which must not make it vary over more mesh axes than it does."""
    for zero in zeros:
        extra = tuple(sorted(varying_axes(zero) - varying_axes(y)))
        y = y + (lax.psum(zero, extra) if extra else zero).astype(y.dtype)
    return y


@contextmanager
def explicit_axes_remedy(owner: str) -> Iterator[None]:
    """Turns JAX's refusal to trace on Explicit mesh axes into one that says what to do."""
    try:
        yield
    except Exception as error:  # JAX does not export the type ShardingTypeError
        if type(error).__name__ != "ShardingTypeError":
            raise
        raise ValueError(
            f"{owner}: this operation is ambiguous for arrays sharded like these over Explicit "
            "mesh axes. Make the mesh with axis_types=(jax.sharding.AxisType.Auto, ...), or call "
            f"it through jax.sharding.auto_axes. JAX says: {error}"
        ) from error


def on_auto_axes(
    backward: Callable[[PyTree, PyTree], PyTree], names: Sequence[str], primals: Sequence[TreeType]
) -> Callable[[PyTree, PyTree], PyTree]:
    """`backward`, run with Explicit mesh axes turned to Auto.

    On an Explicit mesh `x.T @ g` over a sharded batch raises, as its output's sharding
    is ambiguous. It is not ambiguous to us: a cotangent is sharded as its primal.
    Inside, axes are Auto already, so a chain's inner backwards are left as they are.
    """
    axes = jax.sharding.get_abstract_mesh().explicit_axes
    if not axes:
        return backward

    def dense(residuals: PyTree, g: PyTree) -> list[list[jax.Array]]:
        cotangents = backward(residuals, g)
        return [
            _dense_leaves(name, primal, cotangent)
            for name, primal, cotangent in zip(names, primals, cotangents, strict=True)
        ]

    def wrapped(residuals: PyTree, g: PyTree) -> tuple[PyTree, ...]:
        specs = [[t.spec for t in primal.leaves if t.differentiable] for primal in primals]
        leaves = jax.sharding.auto_axes(dense, axes=axes, out_sharding=specs)(residuals, g)
        return tuple(_undense(primal, some) for primal, some in zip(primals, leaves, strict=True))

    return wrapped


def _dense_leaves(name: str, primal: TreeType, cotangent: PyTree) -> list[jax.Array]:
    """The differentiable leaves of a cotangent, zeros where it has None."""
    leaves = _match_tree("on_auto_axes", name, f"the argument {name}", primal, cotangent)
    return [
        jnp.zeros(kind.shape, kind.dtype) if leaf is None else leaf
        for leaf, kind in zip(leaves, primal.leaves, strict=True)
        if kind.differentiable
    ]


def _undense(primal: TreeType, leaves: list[jax.Array]) -> PyTree:
    remaining = iter(leaves)
    return primal.structure.unflatten(
        [next(remaining) if kind.differentiable else None for kind in primal.leaves]
    )
