"""The piecewise, exponential and algebraic activations, and mish, hard_silu, relu_squared."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import (
    Rule,
    celu,
    elu,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    log_sigmoid,
    mish,
    prelu,
    relu6,
    relu_squared,
    selu,
    soft_cap,
    soft_sign,
    squareplus,
)
from jaxprop.samples import normal
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import by_hand, ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

IN_JAX: dict[Rule, Callable] = {
    relu6: jax.nn.relu6,
    hard_tanh: jax.nn.hard_tanh,
    hard_sigmoid: jax.nn.hard_sigmoid,
    elu: jax.nn.elu,
    celu: jax.nn.celu,
    selu: jax.nn.selu,
    log_sigmoid: jax.nn.log_sigmoid,
    soft_sign: jax.nn.soft_sign,
    squareplus: jax.nn.squareplus,
    mish: jax.nn.mish,
    hard_silu: jax.nn.hard_silu,
    relu_squared: lambda x: jnp.square(jax.nn.relu(x)),
}
# Not hard_sigmoid: its derivative there is a sixth in float32, in float64 too.
IN_TORCH = {
    relu6: "relu6",
    hard_tanh: "hardtanh",
    elu: "elu",
    celu: "celu",
    selu: "selu",
    log_sigmoid: "logsigmoid",
    soft_sign: "softsign",
    mish: "mish",
    hard_silu: "hardswish",
}
INF = np.inf
# At -inf and inf: y, and the cotangent of x where g is 3.
LIMITS = {
    relu6: ([0, 6], [0, 0]),
    hard_tanh: ([-1, 1], [0, 0]),
    hard_sigmoid: ([0, 1], [0, 0]),
    elu: ([-1, INF], [0, 3]),
    celu: ([-1, INF], [0, 3]),
    log_sigmoid: ([-INF, 0], [3, 0]),
    soft_sign: ([-1, 1], [0, 0]),
    squareplus: ([0, INF], [0, 3]),
    mish: ([0, INF], [0, 3]),
    hard_silu: ([0, INF], [0, 3]),
    relu_squared: ([0, INF], [0, INF]),
}
# At the kinks: x, and the cotangent where g is 6.
KINKS = {
    relu6: ([0.0, 6.0], [0, 0]),
    hard_tanh: ([-1.0, 1.0], [0, 0]),
    hard_sigmoid: ([-3.0, 3.0], [0, 0]),
    hard_silu: ([-3.0, 3.0], [0, 6]),
    elu.bind(alpha=0.5): ([0.0, -0.0], [3, 3]),
    celu.bind(alpha=0.5): ([0.0, -0.0], [6, 6]),
    soft_sign: ([0.0, -0.0], [6, 6]),
    squareplus: ([0.0, -0.0], [3, 3]),
    relu_squared: ([0.0, -0.0], [0, 0]),
}


def both(rule: Rule, x: jax.Array, g: float) -> tuple:
    """The value and the cotangent of x."""
    y, saved = rule.forward(x)
    return y, rule.backward(saved, jnp.full_like(y, g))[0]


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_jax(rule: Rule) -> None:
    """Between the kinks, and in full digits below zero, where JAX's squareplus has lost some."""
    assert_agrees_with_jax(rule, IN_JAX[rule], [jnp.linspace(-8.9, 9.1, 37)])


@pytest.mark.peers
@pytest.mark.parametrize("rule", IN_TORCH, ids=ids)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_torch(rule: Rule) -> None:
    """At the kinks of relu6 and hard_tanh too."""
    x = jnp.linspace(-9.0, 9.0, 37) if rule is not hard_silu else jnp.linspace(-8.9, 9.1, 37)

    def peer(torch, x):  # type: ignore[no-untyped-def]
        return getattr(torch.nn.functional, IN_TORCH[rule])(x)

    assert_agrees_with_torch(rule, peer, [x])


@pytest.mark.peers
@pytest.mark.parametrize("slope", [np.array([0.25]), np.array([0.25, -0.5, 1.5])], ids=len)
@pytest.mark.usefixtures("x64")
def test_prelu_is_that_of_torch_at_its_kink_too(slope: np.ndarray) -> None:
    x = jnp.concatenate([normal(0, 4, 3).astype(jnp.float64), jnp.zeros((1, 3))])
    slope = jnp.asarray(slope if len(slope) > 1 else slope[0])

    def peer(torch, x, slope):  # type: ignore[no-untyped-def]
        return torch.nn.functional.prelu(x, slope.reshape(-1))

    assert_agrees_with_torch(prelu, peer, [x, slope], reduced=12)


@pytest.mark.parametrize("rule", LIMITS, ids=ids)
def test_at_infinity_y_and_the_gradient_have_their_limits(rule: Rule) -> None:
    y, dx = both(rule, jnp.array([-INF, INF]), 3.0)
    np.testing.assert_array_equal(y, LIMITS[rule][0])
    np.testing.assert_array_equal(dx, LIMITS[rule][1])


@pytest.mark.parametrize("rule", KINKS, ids=ids)
def test_the_subgradient_at_a_kink(rule: Rule) -> None:
    x, expected = KINKS[rule]
    _, dx = both(rule, jnp.array(x), 6.0)
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_nan_stays_nan_and_does_not_spread(rule: Rule) -> None:
    y, dx = both(rule, jnp.array([jnp.nan, 1.0]), 1.0)
    assert np.isnan(y[0])
    assert np.isfinite(y[1])
    assert np.isfinite(dx[1])


def test_squareplus_keeps_its_relative_accuracy_below_zero() -> None:
    """(x + sqrt(x * x + 4)) / 2 in float32 is 0 from x = -1e4 on; the true value is 1 / abs(x)."""
    x = -jnp.logspace(0.0, 15.0, 16)
    y, dx = both(squareplus, x, 1.0)
    exact = np.asarray(x, np.float64)
    r = np.sqrt(exact * exact + 4)
    assert_near(np.asarray(y) / (2 / (r - exact)), np.ones(16), "float32")
    assert_near(np.asarray(dx) / (2 / (r * (r - exact))), np.ones(16), "float32")


def test_soft_cap_has_its_limits_and_the_gradient_of_its_cap() -> None:
    x, cap = jnp.array([-INF, -1e30, 0.0, 1e30, INF]), jnp.float32(2.0)
    y, (dx, dcap) = by_hand(soft_cap, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]), x, cap)
    np.testing.assert_array_equal(y, [-2.0, -2.0, 0.0, 2.0, 2.0])
    np.testing.assert_array_equal(dx, [0.0, 0.0, 3.0, 0.0, 0.0])
    assert float(dcap) == -1 - 2 + 4 + 5


@pytest.mark.usefixtures("x64")
def test_soft_cap_is_cap_tanh_x_over_cap() -> None:
    x = 3 * normal(0, 4, 3).astype(jnp.float64)
    peer = lambda x, cap: cap * jnp.tanh(x / cap)  # noqa: E731
    assert_agrees_with_jax(soft_cap, peer, [x, jnp.float64(1.5)], reduced=12)


@pytest.mark.slow
@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        return (jnp.asarray(np.random.default_rng(seed).normal(0, 3, 200), jnp.bfloat16),)

    assert_no_worse(rule, IN_JAX[rule], draw)


@pytest.mark.parametrize("rule", IN_JAX, ids=ids)
def test_what_is_not_floating_is_refused(rule: Rule) -> None:
    message = not_floating(rule.name, "x", "int32")
    assert_refuses(rule, (jnp.ones(3, jnp.int32),), TypeError, message)


@pytest.mark.parametrize("alpha", [0.0, -1.0, INF, float("nan")])
@pytest.mark.parametrize("rule", [elu, celu], ids=ids)
def test_an_alpha_that_is_not_positive_is_refused(rule: Rule, alpha: float) -> None:
    message = (
        f"{rule.name}: alpha must be positive and finite, got {alpha!r}. The sign of y would not "
        "tell that of x."
    )
    assert_refuses(rule, (jnp.ones(3),), ValueError, message, alpha=alpha)


@pytest.mark.parametrize("b", [0.0, -1.0, INF])
def test_squareplus_refuses_a_b_that_is_not_positive(b: float) -> None:
    message = f"squareplus: b must be positive and finite, got {b!r}. For b = 0 it is relu."
    assert_refuses(squareplus, (jnp.ones(3),), ValueError, message, b=b)


def test_prelu_refuses_a_slope_that_does_not_fit() -> None:
    message = (
        "prelu: slope must be a scalar or one per channel, (3,), got (4,) for x (4, 3). Channels "
        "are the last axis."
    )
    assert_refuses(prelu, (jnp.ones((4, 3)), jnp.ones(4)), ValueError, message)
    message = not_floating("prelu", "slope", "int32")
    assert_refuses(prelu, (jnp.ones((4, 3)), jnp.int32(1)), TypeError, message)


def test_soft_cap_refuses_a_cap_that_is_no_floating_scalar() -> None:
    message = "soft_cap: cap must be a scalar, got (3,). Call it once for each, or under jax.vmap."
    assert_refuses(soft_cap, (jnp.ones(3), jnp.ones(3)), ValueError, message)
    message = not_floating("soft_cap", "cap", "int32")
    assert_refuses(soft_cap, (jnp.ones(3), jnp.int32(1)), TypeError, message)
