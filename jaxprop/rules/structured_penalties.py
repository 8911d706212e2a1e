"""Penalties that see the shape of a weight: on groups of its entries, on its columns together.

The leaves are chosen by a filter, as in jaxprop.rules.penalties; `cost` scales by the strength.
"""

from dataclasses import dataclass, field
from math import prod

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.precision import up
from jaxprop.rule import Case, Rule
from jaxprop.rules.penalties import Filter, PenaltyResiduals, magnitude, select, times, total
from jaxprop.samples import normal

GROUPS = ("column", "row", "leaf")


def group_lasso_reference(
    params: PyTree, *, leaves: Filter = None, groups: str = "column"
) -> jax.Array:
    """Sum of the lengths of groups of parameters.

    Use it where whole groups should become exactly zero: columns to drop units, rows to drop
    inputs, leaves to drop layers.

    Scope      one leaf w (n_in, n_out), groups="column"; the sum over leaves is omega
    Forward    norm = sqrt(sum_rows(w * w))                            (F1)
               omega = sum_all(norm)                                   (F2)
    Backward   dw = where(norm > 0, g * w / norm, 0)                   (B1) from F1, F2

    Args:
        params: a pytree of floating arrays.
        leaves: a filter on the leaves' paths (jaxprop.rules.penalties says more); None for all.
        groups: "column", the entries that share the last index; "row", those that share the first;
            "leaf", all of a leaf. A scalar is a group.

    Returns:
        omega: a scalar, float32 at least; 0 where params has no leaf. A group's size does not
            weigh it: give leaves of other sizes a penalty with another strength.

    Residuals: the selected leaves (arguments); the lengths are recomputed.

    Numerics: squares and sums in float32 at least. A group of zeros has the subgradient 0, as one
        whose squares vanish in float32. Leaves not selected have no gradient.

    Raises:
        TypeError: where a selected leaf is not floating.
        ValueError: where the filter selects nothing, or groups is none of the three.

    Source: Yuan and Lin (2006), Model selection and estimation in regression with grouped
        variables, equation 3, without the weights.
    """
    return _group_lasso(_selected(params, leaves, groups), groups)  # F1, F2


def _selected(params: PyTree, leaves: Filter, groups: str) -> PyTree:
    if groups not in GROUPS:
        raise ValueError(f"group_lasso: groups must be one of {GROUPS}, got {groups!r}.")
    return select("group_lasso", "leaves", params, leaves)


def _group_lasso(selected: PyTree, groups: str) -> jax.Array:
    return total(selected, lambda w: jnp.sum(_lengths(up(w), groups)))  # F2


def _lengths(w: jax.Array, groups: str) -> jax.Array:
    """The length of each group, in axes that broadcast against w; 0 has the derivative 0."""
    axes = {"column": range(w.ndim - 1), "row": range(1, w.ndim), "leaf": range(w.ndim)}[groups]
    if all(w.shape[axis] == 1 for axis in axes):
        return magnitude(w)  # F1, of groups of one entry
    square = jnp.sum(w * w, axis=tuple(axes), keepdims=True)
    counts = square > 0
    return jnp.where(counts, jnp.sqrt(jnp.where(counts, square, 1)), square)  # F1; nan stays nan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupLassoResiduals:
    selected: PyTree
    groups: str = field(metadata={"static": True})


def group_lasso_forward(
    params: PyTree, *, leaves: Filter, groups: str
) -> tuple[jax.Array, GroupLassoResiduals]:
    selected = _selected(params, leaves, groups)
    return _group_lasso(selected, groups), GroupLassoResiduals(selected, groups)  # F1, F2


def group_lasso_backward(res: GroupLassoResiduals, g: jax.Array) -> tuple[PyTree]:
    def of_leaf(w: jax.Array) -> jax.Array:
        norm = _lengths(up(w), res.groups)  # F1, recomputed
        if norm.shape == w.shape:  # each entry is a group, and the direction is its sign
            return times(g, jnp.sign(w))  # B1
        return times(g, up(w) / jnp.where(norm == 0, jnp.inf, norm))  # B1

    return (jax.tree.map(of_leaf, res.selected),)


def orthogonality_reference(params: PyTree, *, leaves: Filter = None) -> jax.Array:
    """Squared distance of the columns' products from those of orthonormal columns.

    Use it to keep the singular values of weights near 1: omega is the sum of (s * s - 1) ** 2 over
    them, and 1 for each column too many.

    Scope      one leaf w (n_in, n_out); the sum over leaves is omega
    Forward    gram = w.T @ w                                          (F1)
               omega = sum_all(gram * gram) - 2 * sum_all(w * w)
                   + size(sum_rows(w))                                 (F2)
    Backward   dgram = 2 * g * gram                                    (B1) from F2
               dw = 2 * (w @ dgram) - 4 * g * w                        (B2) from F1, F2

    Args:
        params: a pytree of floating arrays; a selected leaf is (..., n_out) of two axes at least,
            all but the last in one.
        leaves: a filter on the leaves' paths (jaxprop.rules.penalties says more); None for all.

    Returns:
        omega: the sum of |w.T @ w - I|_F ** 2, without a half or a mean; a scalar, float32 at
            least; 0 where params has no leaf.

    Residuals: the selected leaves (arguments).

    Numerics: in float32 at least, from the difference to I, so that nothing cancels. Where n_in is
        less than n_out, from w @ w.T - I, which is smaller, and n_out - n_in. Leaves not selected
        have no gradient.

    Raises:
        TypeError: where a selected leaf is not floating.
        ValueError: where the filter selects nothing, or a leaf of fewer than two axes.

    Source: Brock et al. (2017), Neural photo editing with introspective adversarial networks,
        equation 3, squared as in Bansal et al. (2018), equation 4.
    """
    return _orthogonality(_matrices(params, leaves))  # F1, F2


def _matrices(params: PyTree, leaves: Filter) -> PyTree:
    selected = select("orthogonality", "leaves", params, leaves)
    for path, w in jax.tree_util.tree_leaves_with_path(selected):
        if w.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            raise ValueError(
                f"orthogonality: {name} must be (..., n_out) of at least two axes, got {w.shape}. "
                "Leave it out with a filter, such as leaves='*/w'."
            )
    return selected


def _orthogonality(selected: PyTree) -> jax.Array:
    return total(selected, _squared_distance)


def _squared_distance(w: jax.Array) -> jax.Array:
    matrix = _matrix(w)
    n_in, n_out = matrix.shape
    return jnp.sum(jnp.square(_excess(matrix))) + max(n_out - n_in, 0)  # F1, F2


def _matrix(w: jax.Array) -> jax.Array:
    return up(w).reshape(prod(w.shape[:-1]), w.shape[-1])


def _excess(w: jax.Array) -> jax.Array:
    """w.T @ w - I, or w @ w.T - I where that is smaller."""
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    return gram - jnp.eye(len(gram), dtype=gram.dtype)


def orthogonality_forward(params: PyTree, *, leaves: Filter) -> tuple[jax.Array, PenaltyResiduals]:
    selected = _matrices(params, leaves)
    return _orthogonality(selected), PenaltyResiduals(selected)  # F1, F2


def orthogonality_backward(res: PenaltyResiduals, g: jax.Array) -> tuple[PyTree]:
    def of_leaf(w: jax.Array) -> jax.Array:
        matrix = _matrix(w)
        n_in, n_out = matrix.shape
        excess = _excess(matrix)  # F1, recomputed
        product = excess @ matrix if n_in < n_out else matrix @ excess
        return times(g, 4 * product).reshape(w.shape)  # B1, B2

    return (jax.tree.map(of_leaf, res.selected),)


def _parameters() -> dict[str, PyTree]:
    hidden = {"w": normal(0, 3, 4), "b": normal(1, 4)}
    return {"hidden_1": hidden, "output": {"w": normal(2, 4, 2), "b": normal(3, 2)}}


def group_lasso_cases() -> list[Case]:
    params, w = _parameters(), normal(4, 3, 4)
    leaf = {"w": w, "params": {"w": w}, "leaves": None, "groups": "column"}
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    gone = params | {"output": jax.tree.map(jnp.zeros_like, params["output"])}
    return [
        Case("every leaf", (params,), given=leaf),
        Case("rows of weights", (params,), {"leaves": "*/w", "groups": "row"}, given=leaf),
        Case("leaves", (params,), {"groups": "leaf"}, given=leaf),
        Case("bfloat16", (low,), given=leaf),
        Case("groups of zeros", (gone,), edge=True),
        Case("no leaf", ({},), edge=True),
    ]


def orthogonality_cases() -> list[Case]:
    params, w = _parameters(), normal(4, 4, 3)
    leaf = {"w": w, "params": {"w": w}, "leaves": None}
    weights = {"leaves": "*/w"}
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    identity = {"layer": {"w": jnp.eye(4, 3, dtype=jnp.float32)}}
    return [
        Case("weights, wide and tall", (params,), weights, given=leaf),
        Case("more axes", ({"conv": {"w": normal(5, 2, 2, 3)}},), weights, given=leaf),
        Case("bfloat16", (low,), weights, given=leaf),
        Case("orthonormal", (identity,), weights, edge=True),
    ]


group_lasso = Rule(
    group_lasso_reference, group_lasso_forward, group_lasso_backward, group_lasso_cases, budget=0
)
orthogonality = Rule(
    orthogonality_reference,
    orthogonality_forward,
    orthogonality_backward,
    orthogonality_cases,
    budget=0,
)
