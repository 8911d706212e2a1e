"""Self-gated activations: limits far out, accuracy in the tail, peers."""

from math import erfc, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, gelu, silu
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.tolerances import assert_near

EXACT, APPROXIMATE = gelu.bind(approximate=False), gelu.bind(approximate=True)
RULES = {"silu": silu, "gelu": EXACT, "gelu, approximate": APPROXIMATE}
IN_JAX = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu, approximate": lambda x: jax.nn.gelu(x, approximate=True),
}
IN_TORCH = {
    "silu": lambda torch, x: torch.nn.functional.silu(x),
    "gelu": lambda torch, x: torch.nn.functional.gelu(x),
    "gelu, approximate": lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def gradient(rule: Rule, x: jax.Array, g: float = 1.0) -> jax.Array:
    y, saved = rule.forward(x)
    return rule.backward(saved, jnp.full_like(y, g))[0]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_jax(name: str) -> None:
    """Not far out, where JAX's own derivative of the approximate gelu is off by 165 ulp."""
    assert_agrees_with_jax(RULES[name], IN_JAX[name], [jnp.linspace(-4.0, 4.0, 41)])


@pytest.mark.peers
@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("x64")
def test_is_the_activation_in_torch(name: str) -> None:
    assert_agrees_with_torch(RULES[name], IN_TORCH[name], [jnp.linspace(-9.0, 9.0, 41)])


def test_gelu_asks_for_its_form() -> None:
    """jax.nn is approximate unless told, PyTorch exact: a default would be wrong for half."""
    with pytest.raises(TypeError, match=r"^gelu: missing a required .*argument: 'approximate'"):
        gelu(jnp.ones(3))
    assert not np.array_equal(APPROXIMATE(jnp.ones(3)), EXACT(jnp.ones(3)))


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("far", [jnp.inf, 3e38, 1e30, 1001.0, 1000.0, 999.0])
def test_far_out_y_is_0_or_x_and_the_gradient_0_or_g(rule: Rule, far: float) -> None:
    """Where x * p is inf * 0, or x ** 3 overflows."""
    x = jnp.array([-far, far])
    y, dx = rule(x), gradient(rule, x, 3.0)
    np.testing.assert_array_equal(y, np.array([0.0, far], np.float32))
    np.testing.assert_array_equal(dx, np.array([0.0, 3.0], np.float32))


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_the_gradient_at_0_is_half_of_g(rule: Rule) -> None:
    np.testing.assert_array_equal(gradient(rule, jnp.array([0.0, -0.0]), 3.0), [1.5, 1.5])


def test_exact_gelu_keeps_its_relative_accuracy_at_negative_x() -> None:
    """P(Z < x) by erfc; 1 + erf(x / sqrt(2)) would have no digit left at x = -6."""
    x = jnp.linspace(-8.0, -1.0, 29)
    exact = np.asarray(x, np.float64)
    p = np.array([erfc(-v / sqrt(2)) / 2 for v in exact])
    slope = p + exact * np.exp(-exact * exact / 2) / sqrt(2 * np.pi)
    assert_near(np.asarray(EXACT(x)) / (exact * p), np.ones(29), "float32", reduced=64)
    assert_near(np.asarray(gradient(EXACT, x)) / slope, np.ones(29), "float32", reduced=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(name: str) -> None:
    def draw(seed: int) -> tuple:
        return (jnp.asarray(np.random.default_rng(seed).normal(0, 3, 200), jnp.bfloat16),)

    assert_no_worse(RULES[name], IN_JAX[name], draw)


@pytest.mark.parametrize("rule", [silu, APPROXIMATE], ids=ids)
def test_the_value_in_bfloat16_is_that_of_float32_rounded_once(rule: Rule) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, 200), jnp.bfloat16)
    exact = rule(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(rule(x), np.float32), np.asarray(exact, np.float32))
