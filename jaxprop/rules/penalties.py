"""Penalties: what a cost adds for large parameters or activations.

A penalty's strength is not here: `cost` scales it. The leaves it covers are chosen by their
path, such as "hidden_1/w", through a filter: None for every leaf; a glob, or a tuple of
globs, one of which must match the whole path ("*/w" leaves biases out; * matches "/" too); or
a hashable function from the path to a bool.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.precision import at_least_float32, floating, up
from jaxprop.rule import Case, Rule
from jaxprop.samples import normal

Filter = str | tuple[str, ...] | Callable[[str], bool] | None


def l2_reference(params: PyTree, *, leaves: Filter = None) -> jax.Array:
    """Half the sum of squares of the parameters.

    Use it as weight decay that is part of the cost.

    Scope      one leaf w of any shape; the sum over leaves is omega
    Forward    omega = sum_all(w * w) / 2                              (F1)
    Backward   dw = g * w                                              (B1) from F1

    Args:
        params: a pytree of floating arrays.
        leaves: a filter on the leaves' paths (the module says more); None for all.

    Returns:
        omega: a scalar, float32 at least; 0 where params has no leaf.

    Residuals: the selected leaves (arguments).

    Numerics: squares and sums in float32 at least. Leaves not selected have no gradient.

    Raises:
        TypeError: where a selected leaf is not floating.
        ValueError: where the filter selects nothing.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 7.1.1.
    """
    return _l2(select("l2", "leaves", params, leaves))


class PenaltyResiduals(NamedTuple):
    selected: PyTree  # None in the place of the others


def l2_forward(params: PyTree, *, leaves: Filter) -> tuple[jax.Array, PenaltyResiduals]:
    selected = select("l2", "leaves", params, leaves)
    return _l2(selected), PenaltyResiduals(selected)


def l2_backward(res: PenaltyResiduals, g: jax.Array) -> tuple[PyTree]:
    return (jax.tree.map(lambda w: times(g, w), res.selected),)  # B1


def l1_reference(params: PyTree, *, leaves: Filter = None) -> jax.Array:
    """Sum of the absolute values of the parameters.

    Use it where parameters should become exactly zero.

    Scope      one leaf w of any shape; the sum over leaves is omega
    Forward    omega = sum_all(abs(w))                                 (F1)
    Backward   dw = g * sign(w)                                        (B1) from F1

    Args:
        params: a pytree of floating arrays.
        leaves: a filter on the leaves' paths (the module says more); None for all.

    Returns:
        omega: a scalar, float32 at least; 0 where params has no leaf.

    Residuals: the selected leaves (arguments).

    Numerics: sums in float32 at least. At the kink w = 0 the subgradient is 0. Leaves not
        selected have no gradient.

    Raises:
        TypeError: where a selected leaf is not floating.
        ValueError: where the filter selects nothing.

    Source: Goodfellow, Bengio and Courville, Deep Learning, section 7.1.2.
    """
    return _l1(select("l1", "leaves", params, leaves))


def l1_forward(params: PyTree, *, leaves: Filter) -> tuple[jax.Array, PenaltyResiduals]:
    selected = select("l1", "leaves", params, leaves)
    return _l1(selected), PenaltyResiduals(selected)


def l1_backward(res: PenaltyResiduals, g: jax.Array) -> tuple[PyTree]:
    return (jax.tree.map(lambda w: times(g, jnp.sign(w)), res.selected),)  # B1


def elastic_net_reference(
    params: PyTree, l1_ratio: jax.typing.ArrayLike = 0.5, *, leaves: Filter = None
) -> jax.Array:
    """Mixture of l1 and l2: l1_ratio * l1 + (1 - l1_ratio) * l2.

    Use it where l1 alone would pick one of several correlated features.

    Scope      one leaf w of any shape; the sum over leaves is omega
    Forward    n1 = sum_all(abs(w))                                    (F1)
               n2 = sum_all(w * w) / 2                                 (F2)
               omega = l1_ratio * n1 + (1 - l1_ratio) * n2             (F3)
    Backward   dl1_ratio = g * (n1 - n2)                               (B1) from F3
               dn1 = g * l1_ratio                                      (B2) from F3
               dn2 = g * (1 - l1_ratio)                                (B3) from F3
               dw = dn1 * sign(w) + dn2 * w                            (B4) from F1, F2

    Args:
        params: a pytree of floating arrays.
        l1_ratio: a scalar from 0 (all l2) to 1 (all l1).
        leaves: a filter on the leaves' paths (the module says more); None for all.

    Returns:
        omega: a scalar, float32 at least; 0 where params has no leaf.

    Residuals: the selected leaves and l1_ratio (arguments), and the scalar n1 - n2.

    Numerics: sums in float32 at least. At the kink w = 0 the subgradient of the l1 part is 0.
        Leaves not selected have no gradient.

    Raises:
        TypeError: where a selected leaf or l1_ratio is not floating.
        ValueError: where the filter selects nothing, or l1_ratio is not a scalar.

    Source: Zou and Hastie (2005), Regularization and variable selection via the elastic net,
        equation 3, with the half of l2.
    """
    _check_ratio(l1_ratio)
    selected = select("elastic_net", "leaves", params, leaves)
    return _mixture(_l1(selected), _l2(selected), l1_ratio)


class ElasticNetResiduals(NamedTuple):
    selected: PyTree
    l1_ratio: jax.typing.ArrayLike
    difference: jax.Array


def elastic_net_forward(
    params: PyTree, l1_ratio: jax.typing.ArrayLike, *, leaves: Filter
) -> tuple[jax.Array, ElasticNetResiduals]:
    _check_ratio(l1_ratio)
    selected = select("elastic_net", "leaves", params, leaves)
    n1, n2 = _l1(selected), _l2(selected)  # F1, F2
    omega = _mixture(n1, n2, l1_ratio)  # F3
    return omega, ElasticNetResiduals(selected, l1_ratio, n1 - n2)


def elastic_net_backward(res: ElasticNetResiduals, g: jax.Array) -> tuple[PyTree, jax.Array]:
    dl1_ratio = g * res.difference  # B1
    ratio = jnp.asarray(res.l1_ratio).astype(g.dtype)
    dn1 = g * ratio  # B2
    dn2 = g * (1 - ratio)  # B3
    dparams = jax.tree.map(lambda w: times(dn1, jnp.sign(w)) + times(dn2, w), res.selected)  # B4
    return dparams, dl1_ratio


def _l2(selected: PyTree) -> jax.Array:
    return total(selected, lambda w: jnp.sum(jnp.square(up(w))) / 2)


def _l1(selected: PyTree) -> jax.Array:
    return total(selected, lambda w: jnp.sum(magnitude(up(w))))


def _mixture(n1: jax.Array, n2: jax.Array, l1_ratio: jax.typing.ArrayLike) -> jax.Array:
    ratio = jnp.asarray(l1_ratio).astype(n1.dtype)
    return ratio * n1 + (1 - ratio) * n2


def magnitude(w: jax.Array) -> jax.Array:
    """abs(w), of which automatic differentiation takes the derivative 0 at 0, not 1."""
    return w * jnp.sign(w)


def times(g: jax.Array, w: jax.Array) -> jax.Array:
    """g * w in the dtype of g, which is float32 at least; the installer rounds to w's."""
    return g * w.astype(g.dtype)


def total(selected: PyTree, of_leaf: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The sum of of_leaf over the leaves; 0 where there is none."""
    parts = [of_leaf(leaf) for leaf in jax.tree.leaves(selected)]
    dtype = at_least_float32(*(part.dtype for part in parts))
    return reduce(jnp.add, [part.astype(dtype) for part in parts], jnp.zeros((), dtype))


def select(owner: str, option: str, tree: PyTree, chosen: Filter) -> PyTree:
    """The tree with None in the place of the leaves that the filter leaves out."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = [(path_name(path), w) for path, w in paths]
    kept = [
        floating(owner, name or "the array", w) if matches(name, chosen) else None
        for name, w in named
    ]
    if chosen is not None and all(w is None for w in kept):
        raise ValueError(
            f"{owner}: {option} must select at least one leaf, got {chosen!r}, which selects none "
            f"of {[name for name, _ in named]}. Give a glob that matches a whole path."
        )
    return jax.tree.unflatten(structure, kept)


def path_name(path: tuple) -> str:
    """The path of a leaf as filters see it: "hidden_1/w"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(path: str, chosen: Filter) -> bool:
    """Whether the filter chooses the leaf of that path."""
    if chosen is None:
        return True
    if callable(chosen):
        return bool(chosen(path))
    globs = (chosen,) if isinstance(chosen, str) else chosen
    return any(fnmatchcase(path, glob) for glob in globs)


def _check_ratio(l1_ratio: jax.typing.ArrayLike) -> None:
    ratio = floating("elastic_net", "l1_ratio", l1_ratio)
    if ratio.shape != ():
        raise ValueError(
            f"elastic_net: l1_ratio must be a scalar, got {ratio.shape}. Give one number for all "
            "leaves; add two penalties for two ratios."
        )


def _parameters() -> PyTree:
    hidden = {"w": normal(0, 3, 4), "b": normal(1, 4)}
    return {"hidden_1": hidden, "output": {"w": normal(2, 4, 2), "b": normal(3, 2)}}


def _one_leaf() -> dict[str, PyTree]:
    """Arrays at the scope of the derivations."""
    w = normal(4, 3, 4)
    return {"w": w, "params": {"w": w}, "leaves": None}


def _only_weights(path: str) -> bool:
    return path.endswith("/w")


def penalty_cases() -> list[Case]:
    params, leaf = _parameters(), _one_leaf()
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    mixed = params | {"output": low["output"]}
    zeros = jax.tree.map(jnp.zeros_like, params)
    return [
        Case("every leaf", (params,), given=leaf),
        Case("weights only", (params,), {"leaves": "*/w"}, given=leaf),
        Case("two globs", (params,), {"leaves": ("hidden_*", "output/b")}, given=leaf),
        Case("a function", (params,), {"leaves": _only_weights}, given=leaf),
        Case("one array", (params["hidden_1"]["w"],), given=leaf),
        Case("bfloat16", (low,), given=leaf),
        Case("mixed dtypes", (mixed,), given=leaf),
        Case("zeros", (zeros,), edge=True),
        Case("no leaf", ({},), edge=True),
        Case("empty leaf", ({"w": jnp.zeros((0, 3), jnp.float32)},), edge=True),
    ]


def elastic_net_cases() -> list[Case]:
    params, leaf = _parameters(), _one_leaf()
    ratios = {"ratio 0.3": jnp.float32(0.3), "all l2": 0.0, "all l1": 1.0}
    return [
        *penalty_cases(),
        *(Case(name, (params, ratio), given=leaf) for name, ratio in ratios.items()),
        Case("ratio and filter", (params, jnp.float32(0.3)), {"leaves": "*/w"}, given=leaf),
    ]


l2 = Rule(l2_reference, l2_forward, l2_backward, penalty_cases, budget=0)
l1 = Rule(l1_reference, l1_forward, l1_backward, penalty_cases, budget=0)
elastic_net = Rule(
    elastic_net_reference, elastic_net_forward, elastic_net_backward, elastic_net_cases, budget=4
)
