"""Every rule of the catalogue at one set of arguments, and how to differentiate it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxprop

# An argument that may be None, several outputs; integers and many options, a tree. What the
# installer owes every rule is tested on these alone, the first two by default; the checker sees
# to it that all of the catalogue have it (tests/checking/test_catalogue.py).
DEFAULT = (jaxprop.linear, jaxprop.batch_norm)
VARIED = (*DEFAULT, jaxprop.softmax_cross_entropy, jaxprop.elastic_net)
# What strains the design most.
STRAINING = (
    *VARIED,
    jaxprop.relu,
    jaxprop.add_rms_norm,
    jaxprop.attention,
    jaxprop.linear_cross_entropy,
    jaxprop.activity_l2,
)


def varied(default: Sequence[jaxprop.Rule] = DEFAULT) -> list:
    """A parameter for each of them; some are in the default run."""
    return [
        pytest.param(rule, id=rule.name, marks=slow_unless_default(rule, default))
        for rule in VARIED
    ]


def slow_unless_default(
    rule: jaxprop.Rule, default: Sequence[jaxprop.Rule] = DEFAULT
) -> tuple[pytest.MarkDecorator, ...]:
    return () if rule in default else (pytest.mark.slow,)


def subject(rule: jaxprop.Rule) -> tuple[jaxprop.Rule, tuple]:
    """The rule, the options of its first case fixed, and that case's arguments in float64."""
    case = next(case for case in rule.cases() if not case.edge)
    return rule.bind(**case.options), in_float64(case.args)


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float64) if is_inexact(x) else x, tree)


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)


def arguments(args: tuple) -> tuple[int, ...]:
    """The positions of the arguments that can be differentiated."""
    trees = [jax.tree.leaves(arg) for arg in args]
    return tuple(i for i, leaves in enumerate(trees) if leaves and all(map(is_inexact, leaves)))


def weighted_sum(tree: Any) -> jax.Array:
    """A scalar in which every number of the tree counts differently."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return sum(jnp.sum(leaf * pattern(leaf)) for leaf in leaves)


def pattern(x: jax.Array) -> jax.Array:
    """Numbers in the shape and dtype of x, no two alike."""
    return jnp.cos(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)


def gradient(f: Callable, args: tuple) -> Callable:
    """args -> (the weighted sum of f, its gradient in every argument that has one)."""
    return jax.value_and_grad(lambda *a: weighted_sum(f(*a)), arguments(args))


def both_ways(run: Callable[[], Any]) -> tuple[Any, Any]:
    """What `run` gives by the rules' own backwards, and by automatic differentiation."""
    custom = run()
    with jaxprop.automatic():
        return custom, run()


def eight_rows(args: tuple) -> tuple[tuple, tuple]:
    """The arguments with a batch of eight, and whether each leaf has the batch axis.

    Leaves whose first axis is as long as the first leaf's are taken to have it.
    """
    batch = jax.tree.leaves(args)[0].shape[:1]
    has_batch = jax.tree.map(lambda x: bool(batch) and x.shape[:1] == batch, args)
    rows = jnp.arange(8) % (batch or (1,))[0]
    return jax.tree.map(lambda x, has: x[rows] if has else x, args, has_batch), has_batch
