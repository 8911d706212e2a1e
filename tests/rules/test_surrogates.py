"""Surrogates: what stands in the gradient's place, at kinks too, and under automatic()."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import (
    Rule,
    clip_gradient,
    reverse_gradient,
    scale_gradient,
    straight_through_round,
    straight_through_sign,
)
from jaxprop.derivation import derivation
from jaxprop.verification import verify
from tests.rules.oracle import ids
from tests.rules.refusing import assert_refuses, not_floating
from tests.slips import with_line
from tests.tolerances import tolerance

SCALED = [reverse_gradient, scale_gradient, clip_gradient]
RULES = [straight_through_round, straight_through_sign, *SCALED]
X = np.array([-np.inf, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.5, np.inf], np.float32)


def arguments(rule: Rule) -> tuple:
    return (jnp.ones(3), 0.5) if rule in SCALED else (jnp.ones(3),)


def gradient(rule: Rule, g: jax.Array, *args: jax.typing.ArrayLike) -> jax.Array:
    _, saved = rule.forward(*args)
    return rule.backward(saved, g)[0]


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_it_is_declared_a_surrogate(rule: Rule) -> None:
    assert rule.surrogate


def test_round_takes_halves_to_even_and_passes_g() -> None:
    g = jnp.arange(11.0)
    rounded = [-np.inf, -2.0, -1.0, -0.0, -0.0, 0.0, 0.0, 1.0, 2.0, 2.0, np.inf]
    np.testing.assert_array_equal(straight_through_round(X), rounded)
    np.testing.assert_array_equal(gradient(straight_through_round, g, X), g)


def test_sign_has_two_values_and_passes_g_up_to_1() -> None:
    signs = [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    passed = [0.0, 0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]
    np.testing.assert_array_equal(straight_through_sign(X), signs)
    np.testing.assert_array_equal(gradient(straight_through_sign, jnp.full(11, 3.0), X), passed)


def test_sign_keeps_nan_and_gives_it_no_gradient() -> None:
    nan = jnp.array([jnp.nan])
    assert np.isnan(straight_through_sign(nan)[0])
    np.testing.assert_array_equal(gradient(straight_through_sign, jnp.ones(1), nan), [0.0])


@pytest.mark.parametrize("rule", SCALED, ids=ids)
def test_the_value_is_x_itself(rule: Rule) -> None:
    np.testing.assert_array_equal(rule(X, 0.3), X)


def test_the_gradient_is_reversed_scaled_or_clipped() -> None:
    x, g = jnp.zeros(5), jnp.array([-3.0, -0.25, 0.0, 0.25, jnp.inf])
    np.testing.assert_array_equal(gradient(reverse_gradient, g, x, 0.5), -0.5 * g)
    np.testing.assert_array_equal(gradient(reverse_gradient, g, x), -g)
    np.testing.assert_array_equal(gradient(scale_gradient, g, x, 0.5), 0.5 * g)
    clipped = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])
    np.testing.assert_array_equal(gradient(clip_gradient, g, x, 0.5), clipped)


def test_clipping_keeps_nan() -> None:
    assert np.isnan(gradient(clip_gradient, jnp.full(1, jnp.nan), jnp.zeros(1), 0.5)[0])


@pytest.mark.parametrize("rule", SCALED, ids=ids)
def test_the_strength_has_no_cotangent(rule: Rule) -> None:
    _, saved = rule.forward(jnp.ones(3), 0.5)
    assert rule.backward(saved, jnp.ones(3))[1] is None


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_under_automatic_the_gradient_is_the_same_but_for_clipping(rule: Rule) -> None:
    g = 2 * jnp.ones(3)
    x, *strength = arguments(rule)
    with jaxprop.automatic():
        _, pullback = jax.vjp(lambda x: rule(x, *strength), x)
    expected = g if rule is clip_gradient else gradient(rule, g, x, *strength)
    np.testing.assert_array_equal(pullback(g)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_slip_in_the_line_of_a_surrogate_is_found(rule: Rule) -> None:
    """Its B line is held to what its backward does."""
    case = next(c for c in rule.cases() if c.name in ("matrix", "clipped"))
    assert verify(rule, case, tolerance("float64")) == []
    (line,) = derivation(rule).backward
    wrong = with_line(rule, line.label, "2 * g")
    assert any("B1" in problem for problem in verify(wrong, case, tolerance("float64")))


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_what_is_not_floating_is_refused(rule: Rule) -> None:
    _, *strength = arguments(rule)
    message = not_floating(rule.name, "x", "int32")
    assert_refuses(rule, (jnp.ones(3, jnp.int32), *strength), TypeError, message)


@pytest.mark.parametrize("rule", SCALED, ids=ids)
def test_a_strength_that_is_no_floating_scalar_is_refused(rule: Rule) -> None:
    name = "limit" if rule is clip_gradient else "scale"
    message = not_floating(rule.name, name, "int32")
    assert_refuses(rule, (jnp.ones(3), jnp.int32(1)), TypeError, message)
    message = (
        f"{rule.name}: {name} must be a scalar, got (3,). Call it once for each, or under jax.vmap."
    )
    assert_refuses(rule, (jnp.ones(3), jnp.ones(3)), ValueError, message)
