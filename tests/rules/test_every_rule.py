"""What holds for every rule, on a few of them and without the checker, which sees to all."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxprop
from jaxprop import Case, Rule
from tests.rules.oracle import (
    SEEDS,
    by_options,
    cotangent,
    differentiable,
    double,
    filled,
    ids,
    pick,
    reduced,
    rule_cases,
    truth,
)
from tests.subjects import DEFAULT, STRAINING, VARIED, varied
from tests.tolerances import assert_near

CASES = rule_cases(lambda rule: rule.cases(), DEFAULT, VARIED)
OPTIONS = rule_cases(by_options, DEFAULT, VARIED)
# Of second order the checker only doubts what raises, and bytes it counts at a first case.
STRAINING_CASES = rule_cases(lambda rule: rule.cases(), DEFAULT, STRAINING)
STRAINING_OPTIONS = rule_cases(by_options, DEFAULT, STRAINING)


@pytest.mark.parametrize(("rule", "case"), CASES)
def test_value_and_cotangents_match_the_reference_in_float64(rule: Rule, case: Case) -> None:
    y, saved = rule.forward(*case.args, **case.options)
    for seed in SEEDS:
        g = cotangent(y, seed)
        y_true, dargs_true = truth(rule, case, g)
        cotangents = rule.backward(saved, g)
        assert_near(y, y_true, reduced=reduced(case), what="y")
        for position, true in zip(differentiable(case), dargs_true, strict=True):
            primal = case.args[position]
            got = filled(cotangents[position], primal)
            types = jax.tree.map(lambda d, x: d.dtype == jnp.asarray(x).dtype, got, primal)
            assert all(jax.tree.leaves(types))
            assert_near(got, true, reduced=reduced(case), what=rule.argument_names[position])


@pytest.mark.parametrize(("rule", "case"), OPTIONS)
def test_the_jitted_call_is_the_hand_run_forward_and_backward(rule: Rule, case: Case) -> None:
    function, some = pick(case, rule)
    y, saved = rule.forward(*case.args, **case.options)
    g = cotangent(y, 0)
    by_hand = [rule.backward(saved, g)[position] for position in differentiable(case)]

    @jax.jit
    def through_jax(*some):
        value, pullback = jax.vjp(function, *some)
        return value, list(pullback(g))

    value, cotangents = through_jax(*some)
    assert_near(value, y, reduced=reduced(case))
    assert_near(cotangents, filled(by_hand, some), reduced=reduced(case))


@pytest.mark.parametrize(("rule", "case"), STRAINING_OPTIONS)
@pytest.mark.usefixtures("x64")
def test_second_derivatives_match_the_reference(rule: Rule, case: Case) -> None:
    """Reverse over reverse, and forward over reverse, of a weighted sum of sin(output)."""
    exact = case._replace(args=double(case.args))

    def weighted(leaves: list) -> jax.Array:
        return sum(jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) for y in leaves)

    def second(function: Callable) -> tuple:
        output, some = pick(exact, function)
        positions = tuple(range(len(some)))

        def cost(*some):
            return weighted([jnp.sin(y) for y in jax.tree.leaves(output(*some))])

        def slope(*some):  # linear: the sine of a gradient of 45 would lose two digits of its own
            return weighted(jax.tree.leaves(jax.grad(cost, positions)(*some)))

        def twice(*some):
            directions = jax.tree.map(lambda x: jnp.cos(x + 2), some)
            forward_over_reverse = jax.jvp(jax.grad(cost, positions), some, directions)[1]
            return jax.grad(slope, positions)(*some), forward_over_reverse

        return jax.jit(twice)(*some)

    assert_near(second(rule), second(rule.reference), reduced=reduced(case))


@pytest.mark.parametrize(("rule", "case"), OPTIONS)
def test_backward_is_linear_in_g(rule: Rule, case: Case) -> None:
    """Exactly so for a power of two, whatever else g is: no clipping, rounding or squaring."""
    y, saved = rule.forward(*case.args, **case.options)
    g = cotangent(y, 0)
    once, negated = rule.backward(saved, g), rule.backward(saved, jax.tree.map(lambda g: -4 * g, g))
    scaled = jax.tree.map(lambda d: -4 * d, once)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b, equal_nan=True)), scaled, negated)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(("rule", "case"), STRAINING_CASES)
def test_residuals_hold_no_more_than_the_budget(rule: Rule, case: Case) -> None:
    y = rule.reference(*case.args, **case.options)
    size = sum(leaf.size for leaf in jax.tree.leaves(y))
    if rule.budget is not None:
        assert residual_bytes(rule, case) <= rule.budget * max(size, 1)


def residual_bytes(rule: Rule, case: Case) -> int:
    """Bytes of the distinct arrays saved, arguments and output left out."""
    args = jax.tree.map(jnp.asarray, rule.resolve(*case.args, **case.options)[0])
    y, saved = rule.forward(*args, **case.options)
    free = {id(leaf) for leaf in jax.tree.leaves((args, y))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(saved)}
    return sum(jnp.asarray(leaf).nbytes for key, leaf in kept.items() if key not in free)


def test_softmax_cross_entropy_saves_two_numbers_per_example() -> None:
    case = jaxprop.softmax_cross_entropy.cases()[0]
    assert residual_bytes(jaxprop.softmax_cross_entropy, case) == 8 * case.args[0].shape[0]


@pytest.mark.parametrize("rule", varied())
def test_forward_and_backward_trace_on_an_explicit_mesh(rule: Rule) -> None:
    """Every leaf that two devices can divide is sharded over its first axis."""
    mesh = jax.make_mesh((2,), ("data",))
    with jax.set_mesh(mesh):
        for case in by_options(rule):
            function, some = pick(case, rule)
            some = jax.tree.map(partial(on_mesh, mesh), some)
            _, cotangents = jax.eval_shape(partial(both, function), *some)
            assert jax.tree.map(jnp.shape, list(cotangents)) == jax.tree.map(jnp.shape, some)


@pytest.mark.parametrize("rule", [jaxprop.linear, jaxprop.softmax_cross_entropy], ids=ids)
def test_gradients_on_an_explicit_mesh_match_those_without(rule: Rule) -> None:
    mesh = jax.make_mesh((2,), ("data",))
    case = rule.cases()[0]
    function, some = pick(case, rule)
    expected = both(function, *some)
    with jax.set_mesh(mesh):
        got = jax.jit(partial(both, function))(*jax.tree.map(partial(on_mesh, mesh), some))
    assert_near(jax.device_get(got), expected, reduced=reduced(case))


def on_mesh(mesh: jax.sharding.Mesh, leaf: jax.Array) -> jax.Array:
    divides = jnp.ndim(leaf) > 0 and leaf.shape[0] % 2 == 0
    spec = PartitionSpec("data") if divides else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def both(function: Callable, *some: jax.Array) -> tuple:
    """The value, and the cotangents for a g of ones."""
    y, pullback = jax.vjp(function, *some)
    return y, pullback(jax.tree.map(jnp.ones_like, y))
