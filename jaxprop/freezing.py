"""Parameters that are not trained: no gradient is computed for them, and none goes below them."""

import inspect
from dataclasses import replace
from typing import Any, TypeVar

import jax
from jax import lax

from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer
from jaxprop.rule import Rule
from jaxprop.rules.penalties import Filter, matches, path_name, select

R = TypeVar("R", bound=Rule)


def freeze(rule: R, patterns: Filter) -> R:
    """Make a rule that takes some of its parameters as constants.

    Use it to fine-tune: freeze the cost J, and only what is left is trained. What the backward of
    the rule computes for the frozen parameters is not used, so under `jax.jit` it is not computed,
    nor are the residuals held that nothing else reads, nor does g go further down than the lowest
    parameter that is trained. Called without jit, the whole backward runs. For the first blocks of
    a stack, `repeat` has `frozen`, which needs no jit.

    Forward    y = rule(params, ...)
    Backward   dparams, ... = rule.backward(res, g), and None where params are frozen

    Args:
        rule: a Rule whose first argument is a tree of parameters: a cost, a network.
        patterns: which to freeze, as penalties choose `leaves`: a glob on whole paths, such as
            "hidden_*/w", a tuple of them, or a function from the path to a bool.

    Returns:
        A rule with the same arguments, of the same kind. A frozen network has no named layers: a
        cost that reads the layers' activities is to be frozen itself. `value_and_grad` of it gives
        zeros for what is frozen.

    Residuals: those of the rule.

    Raises:
        ValueError: when called, where a pattern matches no path.
        TypeError: where `rule` is not a Rule, or patterns are None; when called, where a parameter
            that is frozen is not floating.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"freeze: must be given a Rule, got {type(rule).__name__} ({rule!r}).")
    if patterns is None:
        raise TypeError(
            "freeze: patterns must be a glob, a tuple of globs or a function of the path, got "
            "None. Give '*' to freeze every parameter."
        )

    def reference(params: PyTree, *others: PyTree, **options: PyTree) -> PyTree:
        return rule.reference(_held(params, patterns), *others, **options)

    def forward(params: PyTree, *others: PyTree, **options: PyTree) -> tuple[PyTree, Saved]:
        return rule.forward(_held(params, patterns), *others, **options)

    def backward(res: Saved, g: PyTree) -> tuple[PyTree, ...]:
        dparams, *others = rule.backward(res, g)
        return _without(dparams, patterns), *others

    reference.__name__ = rule.name
    reference.__doc__ = rule.reference.__doc__
    vars(reference)["__signature__"] = inspect.signature(rule)
    parts: dict[str, Any] = {}
    if isinstance(rule, Layer):
        parts = {"layers": {}, "sequential": False}
    return replace(rule, reference=reference, forward=forward, backward=backward, **parts)


def frozen(params: PyTree, patterns: Filter) -> PyTree:
    """Which leaves the patterns match, as booleans in the tree of params.

    Raises ValueError where one of them matches no path.
    """
    _check(params, patterns)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: matches(path_name(path), patterns), params
    )


def _check(params: PyTree, patterns: Filter) -> None:
    for pattern in patterns if isinstance(patterns, tuple) else (patterns,):
        select("freeze", "patterns", params, pattern)


def _held(params: PyTree, patterns: Filter) -> PyTree:
    """params, of which the frozen ones are constants to automatic differentiation too."""
    return jax.tree.map(
        lambda leaf, is_frozen: lax.stop_gradient(leaf) if is_frozen else leaf,
        params,
        frozen(params, patterns),
    )


def _without(dparams: PyTree, patterns: Filter) -> PyTree:
    """dparams with None for what is frozen."""
    return jax.tree_util.tree_map_with_path(
        lambda path, d: None if matches(path_name(path), patterns) else d, dparams
    )
