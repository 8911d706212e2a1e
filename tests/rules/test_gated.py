"""Gated units: which operand is which, limits of the gate, peers, errors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, geglu, glu, reglu, swiglu
from jaxprop.samples import normal
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import by_hand, ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating

EXACT, APPROXIMATE = geglu.bind(approximate=False), geglu.bind(approximate=True)
IN_JAX: dict[Rule, Callable] = {
    swiglu: lambda value, gate: value * jax.nn.silu(gate),
    EXACT: lambda value, gate: value * jax.nn.gelu(gate, approximate=False),
    APPROXIMATE: lambda value, gate: value * jax.nn.gelu(gate, approximate=True),
    reglu: lambda value, gate: value * jax.nn.relu(gate),
}


def operands() -> list[jax.Array]:
    return [normal(0, 4, 3).astype(jnp.float64), 2 * normal(1, 4, 3).astype(jnp.float64)]


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
@pytest.mark.usefixtures("x64")
def test_is_the_value_times_the_activation_of_the_gate_in_jax(rule: Rule) -> None:
    assert_agrees_with_jax(rule, IN_JAX[rule], operands())


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.usefixtures("x64")
def test_glu_is_that_of_jax(axis: int) -> None:
    x = normal(0, 4, 6).astype(jnp.float64)
    assert_agrees_with_jax(glu, lambda x: jax.nn.glu(x, axis), [x], axis=axis)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_glu_is_that_of_torch() -> None:
    x = normal(0, 4, 6).astype(jnp.float64)
    assert_agrees_with_torch(glu, lambda torch, x: torch.nn.functional.glu(x), [x])


def test_the_operands_stand_in_the_order_of_the_halves_of_glu() -> None:
    """The first is the value, linear in y; a large second one lets it through."""
    value, gate = normal(0, 4, 3), jnp.full((4, 3), 100.0)
    np.testing.assert_array_equal(glu(jnp.concatenate([value, gate], -1)), value)
    for rule in IN_JAX:
        np.testing.assert_array_equal(rule(value, gate), 100 * value)


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_a_gate_far_below_zero_gives_0_and_no_gradient(rule: Rule) -> None:
    value, gate = jnp.array([2.0, 2.0]), jnp.array([-jnp.inf, -1e4])
    y, saved = rule.forward(value, gate)
    for array in (y, *rule.backward(saved, jnp.ones(2))):
        np.testing.assert_array_equal(array, [0.0, 0.0])


def test_reglu_takes_the_subgradient_0_at_its_kink() -> None:
    _, (_, dgate) = by_hand(reglu, jnp.ones(2), jnp.ones(2), jnp.array([0.0, -0.0]))
    np.testing.assert_array_equal(dgate, [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        random = np.random.default_rng(seed)
        return tuple(jnp.asarray(random.normal(0, 2, 200), jnp.bfloat16) for _ in range(2))

    assert_no_worse(rule, IN_JAX[rule], draw)


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_operands_that_do_not_fit_are_refused(rule: Rule) -> None:
    ones, whole = jnp.ones((4, 3)), jnp.ones((4, 3), jnp.int32)
    assert_refuses(rule, (whole, ones), TypeError, not_floating(rule.name, "value", "int32"))
    assert_refuses(rule, (ones, whole), TypeError, not_floating(rule.name, "gate", "int32"))
    message = (
        f"{rule.name}: gate must have value's shape, (4, 3), got (4, 1). Value and gate are two "
        "projections of the same width."
    )
    assert_refuses(rule, (ones, jnp.ones((4, 1))), ValueError, message)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3), -1), ((4, 3), 2), ((), -1)])
def test_glu_refuses_what_it_cannot_halve(shape: tuple, axis: int) -> None:
    message = (
        f"glu: axis must be one of x's {len(shape)} axes, of even length, got axis {axis} for x "
        f"{shape}. Its first half is the value, its second the gate."
    )
    assert_refuses(glu, (jnp.ones(shape),), ValueError, message, axis=axis)


def test_geglu_asks_for_its_form() -> None:
    with pytest.raises(TypeError, match=r"^geglu: missing a required .*argument: 'approximate'"):
        geglu(jnp.ones(3), jnp.ones(3))
