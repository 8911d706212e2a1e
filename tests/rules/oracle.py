"""The truth that the rules are held against: their references in float64, under jax.vjp."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxprop
from jaxprop import Case, Rule
from jaxprop.samples import normal

SEEDS = (0, 1, 2)


def ids(item: Any) -> str:
    return item.name


def rule_cases(
    cases_of: Callable[[Rule], Sequence[Case]],
    default: Sequence[Rule],
    rules: Sequence[Rule] = jaxprop.CATALOGUE,
) -> list:
    """Parameters (rule, case). The first case of a rule of `default` is in the default run."""
    return [
        pytest.param(
            rule,
            case,
            id=f"{rule.name}-{case.name}",
            marks=() if place == 0 and rule in default else pytest.mark.slow,
        )
        for rule in rules
        for place, case in enumerate(cases_of(rule))
    ]


def by_options(rule: Rule) -> list[Case]:
    """The first ordinary case for each setting of the options and each kind of argument."""
    first: dict[tuple, Case] = {}
    for case in rule.cases():
        dtypes = [jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(case.args)]
        kinds = frozenset(getattr(dtype, "kind", str(dtype)) for dtype in dtypes)  # a key has none
        if not case.edge:
            first.setdefault((repr(dict(case.options)), kinds), case)
    return list(first.values())


def is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def double(tree: Any) -> Any:
    """The tree with its floating leaves in float64, where that is enabled."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if is_floating(x) else x, tree)


def differentiable(case: Case) -> list[int]:
    """The positions of the arguments with a gradient."""
    leaves = [jax.tree.leaves(arg) for arg in case.args]
    return [i for i, some in enumerate(leaves) if some and all(map(is_floating, some))]


def pick(case: Case, function: Any) -> Any:
    """function(*args) as one of the differentiable arguments alone, and those arguments."""
    positions = differentiable(case)

    def of_some(*some: Any) -> Any:
        args = list(case.args)
        for position, arg in zip(positions, some, strict=True):
            args[position] = arg
        return function(*args, **case.options)

    return of_some, [case.args[position] for position in positions]


def cotangent(y: Any, seed: int) -> Any:
    """A random cotangent of the types of y, which may be several outputs."""
    leaves, structure = jax.tree.flatten(y)
    draws = [normal(seed + 10 * i, *leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return structure.unflatten(draws)


def by_hand(rule: Rule, g: Any, *args: Any, **options: Any) -> tuple[Any, tuple]:
    """(outputs, cotangents) of forward and backward, compiled as one program."""

    @jax.jit
    def run(g: Any, args: tuple) -> tuple[Any, tuple]:
        y, saved = rule.forward(*args, **options)
        return y, rule.backward(saved, g)

    return run(g, args)


def truth(rule: Rule, case: Case, g: Any) -> tuple[Any, list]:
    """(value, the cotangents of the differentiable arguments) of the reference in float64."""
    with jax.enable_x64(True):
        exact = case._replace(args=double(case.args))
        function, some = pick(exact, rule.reference)
        y, pullback = jax.vjp(function, *some)
        return y, list(pullback(jax.tree.map(lambda g, y: g.astype(y.dtype), g, y)))


def filled(cotangents: Any, primals: Any) -> Any:
    """The cotangents, zeros where a rule gives None for no gradient."""
    return jax.tree.map(
        lambda d, x: jnp.zeros_like(x) if d is None else d,
        cotangents,
        primals,
        is_leaf=lambda d: d is None,
    )


def reduced(case: Case) -> int:
    """More terms than any reduction of the rule at this case has."""
    return max([1, *(jnp.size(leaf) for leaf in jax.tree.leaves(case.args))])
