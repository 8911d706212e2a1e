"""Activations told from their output: kinks, infinities, saturation, peers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Rule, identity, leaky_relu, relu, sigmoid, softplus, tanh
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

RULES = [identity, relu, leaky_relu, sigmoid, tanh, softplus]
IN_JAX: dict[Rule, Callable] = {
    identity: lambda x: x,
    relu: jax.nn.relu,
    leaky_relu: jax.nn.leaky_relu,
    sigmoid: jax.nn.sigmoid,
    tanh: jnp.tanh,
    softplus: jax.nn.softplus,
}
IN_TORCH = {
    identity: "Identity",
    relu: "ReLU",
    leaky_relu: "LeakyReLU",
    sigmoid: "Sigmoid",
    tanh: "Tanh",
    softplus: "Softplus",
}


def away_from_kinks() -> jax.Array:
    return jnp.linspace(-9.0, 9.0, 40)


def both(rule: Rule, x: jax.Array, g: float = 1.0, **options: float) -> tuple:
    """The value and the cotangent of x."""
    y, saved = rule.forward(x, **options)
    return y, rule.backward(saved, jnp.full_like(y, g))[0]


def assert_equal(actual: jax.Array, expected: list[float]) -> None:
    np.testing.assert_array_equal(np.asarray(actual, np.float64), np.array(expected))


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_jax(rule: Rule) -> None:
    assert_agrees_with_jax(rule, IN_JAX[rule], [away_from_kinks()])


@pytest.mark.peers
@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_torch(rule: Rule) -> None:
    def peer(torch, x):  # type: ignore[no-untyped-def]
        return getattr(torch.nn, IN_TORCH[rule])()(x)

    assert_agrees_with_torch(rule, peer, [away_from_kinks()])


@pytest.mark.parametrize(
    "rule", [*RULES, jaxprop.silu, jaxprop.gelu.bind(approximate=True)], ids=ids
)
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_what_is_not_floating_is_refused(rule: Rule, dtype: str) -> None:
    x = jnp.ones(3, dtype)
    assert_refuses(rule, (x,), TypeError, not_floating(rule.name, "x", dtype))


@pytest.mark.parametrize(
    "rule", [*RULES, jaxprop.silu, jaxprop.gelu.bind(approximate=True)], ids=ids
)
def test_nan_stays_nan_and_does_not_spread(rule: Rule) -> None:
    y, dx = both(rule, jnp.array([jnp.nan, 1.0]))
    assert np.isnan(y[0])
    assert np.isfinite(y[1])
    assert np.isfinite(dx[1])


def test_relu_passes_g_at_nan() -> None:
    assert_equal(both(relu, jnp.array([jnp.nan]), 3.0)[1], [3.0])


def test_relu_takes_the_subgradient_0_at_its_kink() -> None:
    y, dx = both(relu, jnp.array([-1.0, -0.0, 0.0, 1e-30]), 3.0)
    assert_equal(y, [0.0, 0.0, 0.0, np.float32(1e-30)])
    assert_equal(dx, [0.0, 0.0, 0.0, 3.0])


def test_relu_at_infinity() -> None:
    y, dx = both(relu, jnp.array([-jnp.inf, jnp.inf]), 3.0)
    assert_equal(y, [0.0, np.inf])
    assert_equal(dx, [0.0, 3.0])


def test_leaky_relu_takes_the_subgradient_slope_at_its_kink() -> None:
    y, dx = both(leaky_relu, jnp.array([-1.0, -0.0, 0.0, 1.0]), slope=0.25)
    assert_equal(y, [-0.25, 0.0, 0.0, 1.0])
    assert_equal(dx, [0.25, 0.25, 0.25, 1.0])


def test_leaky_relu_takes_any_slope_from_0_up() -> None:
    """Told from the sign of y, so a slope above 1 is right too, and 0 is relu."""
    x = jnp.array([-2.0, 3.0])
    for slope in (0.0, 0, 0.5, 1.0, 3.0):
        y, dx = both(leaky_relu, x, slope=slope)
        assert_equal(y, [-2.0 * slope, 3.0])
        assert_equal(dx, [slope, 1.0])


def test_leaky_relu_of_slope_0_gives_nan_at_minus_infinity() -> None:
    y, _ = both(leaky_relu, jnp.array([-jnp.inf]), slope=0.0)
    assert np.isnan(y[0])
    y, dx = both(leaky_relu, jnp.array([-jnp.inf, jnp.inf]), slope=0.5)
    assert_equal(y, [-np.inf, np.inf])
    assert_equal(dx, [0.5, 1.0])


@pytest.mark.parametrize("slope", [-0.01, -1, float("inf"), float("nan")])
def test_leaky_relu_refuses_a_slope_that_hides_the_sign_of_x(slope: float) -> None:
    message = (
        f"leaky_relu: slope must be a finite number of at least 0, got {slope!r}. The sign of y "
        "would not tell that of x."
    )
    assert_refuses(leaky_relu, (jnp.ones(3),), ValueError, message, slope=slope)


def test_leaky_relu_multiplies_in_float32() -> None:
    """0.01 in bfloat16 is off by 2^-9 of itself; slope * x is rounded once."""
    x = -jnp.linspace(1.0, 3.0, 50).astype(jnp.bfloat16)
    y, dx = both(leaky_relu, x)
    truth = (0.01 * np.asarray(x, np.float64)).astype(jnp.bfloat16)
    assert_equal(y, np.asarray(truth, np.float64))
    assert_equal(dx, np.full(50, jnp.bfloat16(0.01), np.float64))


def test_sigmoid_is_0_and_1_at_infinity_with_gradient_0() -> None:
    y, dx = both(sigmoid, jnp.array([-jnp.inf, jnp.inf, -1e4, 1e4]))
    assert_equal(y, [0.0, 1.0, 0.0, 1.0])
    assert_equal(dx, [0.0, 0.0, 0.0, 0.0])


def test_tanh_is_minus_1_and_1_at_infinity_with_gradient_0() -> None:
    y, dx = both(tanh, jnp.array([-jnp.inf, jnp.inf, -1e4, 1e4]))
    assert_equal(y, [-1.0, 1.0, -1.0, 1.0])
    assert_equal(dx, [0.0, 0.0, 0.0, 0.0])


def test_softplus_is_0_and_infinite_at_infinity_with_gradient_0_and_g() -> None:
    y, dx = both(softplus, jnp.array([-jnp.inf, jnp.inf, -1e4, 1e4]), 3.0)
    assert_equal(y, [0.0, np.inf, 0.0, 1e4])
    assert_equal(dx, [0.0, 3.0, 0.0, 3.0])


@pytest.mark.parametrize(
    ("rule", "dtype", "limit", "not_yet"),
    [
        (sigmoid, "float32", 17.0, 16.0),
        (sigmoid, "bfloat16", 6.3, 6.0),
        (tanh, "float32", 9.0, 7.9),
        (tanh, "bfloat16", 3.5, 3.4),
    ],
)
def test_beyond_the_limit_y_has_rounded_to_1_and_the_gradient_is_0(
    rule: Rule, dtype: str, limit: float, not_yet: float
) -> None:
    x = np.linspace(limit, limit + 20, 500).astype(dtype)
    y, dx = both(rule, jnp.asarray(x[x > np.asarray(limit, dtype)]))
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1)
    np.testing.assert_array_equal(np.asarray(dx, np.float32), 0)
    y, dx = both(rule, jnp.asarray([not_yet], dtype))
    assert float(y[0]) < 1
    assert float(dx[0]) > 0


def test_sigmoid_keeps_its_relative_accuracy_below_zero() -> None:
    x = jnp.linspace(-80.0, 0.0, 33)
    y, dx = both(sigmoid, x)
    exact = np.asarray(x, np.float64)
    p = 1 / (1 + np.exp(-exact))
    assert_near(np.asarray(y) / p, np.ones(33), "float32", reduced=80)
    assert_near(np.asarray(dx) / (p * (1 - p)), np.ones(33), "float32", reduced=80)


def test_tanh_multiplies_two_exact_differences() -> None:
    """Near saturation 1 - y * y has lost the low digits of the square; (1 - y) * (1 + y) has not.

    So the gradient has the relative accuracy of float32 in the stored y, element by element.
    """
    y, dx = both(tanh, jnp.linspace(3.0, 6.0, 200))
    stored = np.asarray(y, np.float64)
    assert_near(np.asarray(dx) / (1 - stored**2), np.ones(200), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_softplus_keeps_the_relative_accuracy_of_its_gradient_everywhere(dtype: str) -> None:
    """1 - exp(-y) by expm1, element by element: neither a small y nor a rounded one harms it."""
    x = jnp.linspace(-80.0, 80.0, 201).astype(dtype)
    _, dx = both(softplus, x)
    p = 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    assert_near(np.asarray(dx, np.float64) / p, np.ones(201), dtype, reduced=80)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        return (jnp.asarray(np.random.default_rng(seed).normal(0, 3, 200), jnp.bfloat16),)

    assert_no_worse(rule, IN_JAX[rule], draw)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_the_value_in_bfloat16_is_that_of_float32_rounded_once(rule: Rule) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, 200), jnp.bfloat16)
    exact = rule(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(rule(x), np.float32), np.asarray(exact, np.float32))
