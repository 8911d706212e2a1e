"""Softmax: axes, masked entries, extreme logits, peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import softmax
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

AXES = (-1, 0, 1, 2, -2)


def gradient(x: jax.Array, g: jax.Array, axis: int = -1) -> jax.Array:
    _, saved = softmax.forward(x, axis=axis)
    return softmax.backward(saved, g)[0]


def logits(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, shape))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.usefixtures("x64")
def test_is_softmax_in_jax_along_any_axis(axis: int) -> None:
    x = logits(2, 3, 5)
    assert_agrees_with_jax(softmax, lambda x: jax.nn.softmax(x, axis), [x], reduced=5, axis=axis)


@pytest.mark.peers
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.usefixtures("x64")
def test_is_softmax_in_torch_along_any_axis(axis: int) -> None:
    x = logits(2, 3, 5)
    assert_agrees_with_torch(
        softmax, lambda torch, x: torch.softmax(x, axis), [x], reduced=5, axis=axis
    )


def test_integers_are_refused() -> None:
    message = not_floating("softmax", "x", "int32")
    assert_refuses(softmax, (jnp.ones((2, 3), jnp.int32),), TypeError, message)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((), -1), ((), 0)])
def test_an_axis_that_x_does_not_have_is_refused(shape: tuple, axis: int) -> None:
    message = (
        f"softmax: axis must be one of x's {len(shape)} axes, got axis {axis} for x {shape}. Give "
        "an axis between -x.ndim and x.ndim - 1."
    )
    assert_refuses(softmax, (jnp.ones(shape),), ValueError, message, axis=axis)


def test_a_masked_entry_has_probability_0_and_gradient_0() -> None:
    x = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf, 0.0, -jnp.inf]])
    y, dx = softmax(x), gradient(x, jnp.array([[1.0, 5.0, 2.0], [3.0, 4.0, 5.0]]))
    masked = np.isneginf(np.asarray(x))
    np.testing.assert_array_equal(np.asarray(y)[masked], 0.0)
    np.testing.assert_array_equal(np.asarray(dx)[masked], 0.0)
    assert_near(y[0, ::2], jax.nn.softmax(x[0, ::2]))
    np.testing.assert_array_equal(y[1], [0.0, 1.0, 0.0])


@pytest.mark.parametrize("row", [[-jnp.inf] * 3, [1.0, jnp.inf, 0.0], [jnp.nan, 0.0, 1.0]])
def test_a_row_that_no_distribution_has_is_nan_and_the_others_are_not(row: list[float]) -> None:
    x = jnp.array([row, [1.0, 2.0, 3.0]])
    y, dx = softmax(x), gradient(x, jnp.ones((2, 3)))
    assert np.all(np.isnan(y[0]))
    assert np.all(np.isnan(dx[0]))
    assert np.all(np.isfinite(y[1]))
    assert np.all(np.isfinite(dx[1]))


def test_extreme_logits_give_the_limit() -> None:
    x = jnp.array([[1e4, 0.0, -1e4], [1e30, 1e30, -1e30], [3e38, -3e38, 0.0]])
    np.testing.assert_array_equal(softmax(x), [[1.0, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]])
    g = jnp.array([[1.0, 2.0, 3.0]] * 3)
    np.testing.assert_array_equal(gradient(x, g), [[0.0, 0, 0], [-0.25, 0.25, 0], [0.0, 0, 0]])


def test_a_shift_of_a_row_changes_nothing() -> None:
    """Whole numbers, so that the shift itself rounds nothing."""
    x = jnp.round(logits(4, 5))
    shifted = x + jnp.array([[1000.0], [-1000.0], [8.0], [0.0]])
    g = logits(4, 5)
    np.testing.assert_array_equal(softmax(shifted), softmax(x))
    np.testing.assert_array_equal(gradient(shifted, g), gradient(x, g))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_the_same_g_for_every_class_is_0(dtype: str) -> None:
    """The rows of y sum to 1, so a constant moves along nothing."""
    dx = gradient(logits(4, 1000).astype(dtype), jnp.ones((4, 1000), dtype))
    assert_near(np.asarray(dx, np.float64) + 1, np.ones((4, 1000)), dtype)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    x = jnp.zeros(shape)
    assert softmax(x).shape == shape
    assert gradient(x, x).shape == shape


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        x = np.random.default_rng(seed).normal(0, 3, (16, 50))
        return (jnp.asarray(x, jnp.bfloat16),)

    assert_no_worse(softmax, jax.nn.softmax, draw)


def test_the_value_in_bfloat16_is_that_of_float32_rounded_once() -> None:
    x = logits(8, 100).astype(jnp.bfloat16)
    exact = softmax(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(softmax(x), np.float32), np.asarray(exact, np.float32))
