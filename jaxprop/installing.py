"""What every rule needs and no rule repeats: cotangents checked, cast, summed over mesh axes.

`rule.py` calls these around a rule's own forward and backward, so that a rule file
holds mathematics only. They cover the places where JAX is strict about a
hand-written backward (a mesh axis not summed over) or silent (a cotangent of the
wrong dtype).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.array_types import (
    ArrayType,
    PyTree,
    TreeType,
    leaf_names,
    vary,
    varying_axes,
    zeros,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Saved:
    """What an installed forward hands to its backward.

    residuals: the rule's own residuals; nothing else here holds memory.
    primals, output: the types of the arguments and of the output, static.
    owner: the name of the rule, static.
    """

    residuals: PyTree
    primals: tuple[TreeType, ...] = field(metadata={"static": True})
    output: TreeType = field(metadata={"static": True})
    owner: str = field(metadata={"static": True})


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
        return zeros(output)
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
    ct = jnp.asarray(ct)
    if jnp.iscomplexobj(ct) and not jnp.issubdtype(primal.dtype, jnp.complexfloating):
        raise TypeError(
            f"{owner}.backward: {name} must be real, as its argument is, got {ct.dtype}. Take "
            "its real part, which is the cotangent of a real argument."
        )
    extra = tuple(sorted(varying_axes(ct) - primal.varying))
    summed = lax.psum(ct, extra) if extra else ct
    return vary(summed, primal.varying).astype(primal.dtype)


def _is_none(node: PyTree) -> bool:
    return node is None


def _match_tree(owner: str, name: str, what: str, kind: TreeType, tree: PyTree) -> list[PyTree]:
    """The leaves of `tree` in the order of `kind`; None where a None stands above or at a leaf."""
    full = kind.structure.unflatten(range(len(kind.leaves)))
    nodes, prefix = jax.tree.flatten(tree, is_leaf=_is_none)
    try:
        parts = [jax.tree.leaves(part) for part in _below(nodes, prefix, full)]
    except ValueError:
        raise TypeError(
            f"{owner}.backward: {name} must have the structure of {what}, {kind.structure}, "
            f"got {jax.tree.structure(tree)}. Give one leaf per leaf, or None for no gradient."
        ) from None
    return [node for node, part in zip(nodes, parts, strict=True) for _ in part]


def _below(nodes: list[PyTree], prefix: Any, full: PyTree) -> list[PyTree]:
    """What of `full` each node stands for; ValueError where an array stands for no one leaf."""
    parts = prefix.flatten_up_to(full)
    for node, part in zip(nodes, parts, strict=True):
        if node is not None and not jax.tree_util.all_leaves([part]):
            raise ValueError
    return parts


def _check_shape(owner: str, name: str, what: str, g: PyTree, expected: ArrayType) -> None:
    if jnp.shape(g) != expected.shape:
        raise ValueError(
            f"{owner}.backward: {name} must have the shape of {what}, {expected.shape}, "
            f"got {jnp.shape(g)}. Sum over broadcast axes, transpose, or drop the keepdims axis."
        )


def tie(output: PyTree, args: PyTree, surrogate: bool) -> PyTree:
    """The output, every leaf made to depend on every argument without changing in value.

    A `custom_vjp` with several outputs, one of which does not depend on the argument
    that `vmap` maps over, counts that output's cotangent once per mapped element under
    `grad(vmap(...))`. A dependence on every argument makes every output mapped. One output
    needs it only where the backward is no derivative: it may read an argument that the output
    does not depend on.
    """
    if len(jax.tree.leaves(output)) < 2 and not surrogate:
        return output
    never = [_never(arg) for arg in jax.tree.leaves(args)] or [jnp.bool_(False)]
    axes = frozenset().union(*map(varying_axes, never))
    # As one predicate: a network has as many parameters as it has statistics to tie to them.
    any_of_them = reduce(jnp.logical_or, [vary(one, axes) for one in never])
    return jax.tree.map(lambda y: _tied(y, any_of_them), output)


def replaced(residuals: PyTree, outputs: PyTree, tied: PyTree) -> PyTree:
    """The residuals, tied outputs in the place of those before: one buffer of each, not two."""
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(tied), strict=True)
    in_place_of = {id(before): after for before, after in pairs}
    return jax.tree.map(lambda leaf: in_place_of.get(id(leaf), leaf), residuals)


def _never(arg: jax.Array) -> jax.Array:
    """False, by way of `arg` (of any size, sharding and dtype); XLA folds it away."""
    if jnp.issubdtype(arg.dtype, jax.dtypes.prng_key):
        arg = jax.random.key_data(arg)
    return jnp.any(arg != arg) & False


def _tied(y: jax.Array, never: jax.Array) -> jax.Array:
    """y, by way of a predicate that must not make it vary over more mesh axes than it does."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return y  # it has no cotangent to count
    if extra := tuple(sorted(varying_axes(never) - varying_axes(y))):
        never = lax.psum(never.astype(jnp.int32), extra) > 0
    return jnp.where(never, jnp.zeros_like(y), y)
