"""Mean squared error: reductions, dtypes, errors, peers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import mean_squared_error
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCE = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}


def pair(*shape: int) -> list[jax.Array]:
    return [jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(2, *shape))]


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_is_the_squared_error_of_optax(reduction: str) -> None:
    def peer(y_hat: jax.Array, y: jax.Array) -> jax.Array:
        return REDUCE[reduction](optax.squared_error(y_hat, y))

    assert_agrees_with_jax(mean_squared_error, peer, pair(4, 3), reduced=12, reduction=reduction)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_is_the_mse_loss_of_torch(reduction: str) -> None:
    assert_agrees_with_torch(
        mean_squared_error,
        lambda torch, y_hat, y: torch.nn.functional.mse_loss(y_hat, y, reduction=reduction),
        pair(4, 3),
        reduced=12,
        reduction=reduction,
    )


def test_the_mean_is_over_every_element_and_there_is_no_half() -> None:
    y_hat, y = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    assert float(mean_squared_error(y_hat, y)) == 9 / 4
    assert float(mean_squared_error(y_hat, y, reduction="sum")) == 9


@pytest.mark.parametrize(
    ("y_hat", "y", "loss"),
    [
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float64", "float64"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_the_loss_has_the_wider_dtype_and_each_cotangent_its_own(
    y_hat: str, y: str, loss: str
) -> None:
    args = [x.astype(dtype) for x, dtype in zip(pair(4, 3), (y_hat, y), strict=True)]
    for reduction in REDUCE:
        value, saved = mean_squared_error.forward(*args, reduction=reduction)
        dy_hat, dy = mean_squared_error.backward(saved, jnp.ones_like(value))
        assert (value.dtype, dy_hat.dtype, dy.dtype) == (loss, y_hat, y)


def test_the_mean_of_nothing_is_nan_and_its_sum_0() -> None:
    nothing = jnp.zeros((0, 3))
    assert np.isnan(mean_squared_error(nothing, nothing))
    assert float(mean_squared_error(nothing, nothing, reduction="sum")) == 0
    assert mean_squared_error(nothing, nothing, reduction="none").shape == (0, 3)


def test_the_difference_is_taken_in_float32() -> None:
    """256 - 255 in bfloat16 would be exact; 256 + 1 is not a bfloat16 at all."""
    y_hat, y = jnp.full(1, 256.0, jnp.bfloat16), jnp.full(1, -1.0, jnp.bfloat16)
    assert float(mean_squared_error(y_hat, y)) == 257.0**2


@pytest.mark.parametrize("name", ["y_hat", "y"])
def test_integers_are_refused(name: str) -> None:
    args = {"y_hat": jnp.ones((2, 3)), "y": jnp.ones((2, 3))}
    args[name] = args[name].astype(jnp.int32)
    message = not_floating("mean_squared_error", name, "int32")
    assert_refuses(mean_squared_error, tuple(args.values()), TypeError, message)


@pytest.mark.parametrize(
    "shapes", [((4, 3), (4, 1)), ((4,), (4, 1)), ((4, 3), ()), ((3, 4), (4, 3))]
)
def test_nothing_is_broadcast(shapes: tuple) -> None:
    """(4,) against (4, 1) would be a mean over 16 differences."""
    message = (
        f"mean_squared_error: y_hat and y must have the same shape, got {shapes[0]} and "
        f"{shapes[1]}. Nothing is broadcast: add, drop or repeat an axis."
    )
    assert_refuses(mean_squared_error, tuple(map(jnp.ones, shapes)), ValueError, message)


@pytest.mark.parametrize("reduction", ["average", "", None, True])
def test_an_unknown_reduction_is_refused(reduction: object) -> None:
    message = (
        f"mean_squared_error: reduction must be one of ('mean', 'sum', 'none'), got {reduction!r}."
    )
    assert_refuses(mean_squared_error, tuple(pair(2)), ValueError, message, reduction=reduction)


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        y_hat, y = np.random.default_rng(seed).normal(size=(2, 32, 16))
        return jnp.asarray(y_hat, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)

    assert_no_worse(mean_squared_error, lambda y_hat, y: jnp.mean((y_hat - y) ** 2), draw)


def test_the_gradient_of_none_weighs_each_element_by_its_own_g() -> None:
    y_hat, y = pair(4, 3)
    g = jnp.arange(12.0).reshape(4, 3)
    _, saved = mean_squared_error.forward(y_hat, y, reduction="none")
    dy_hat, dy = mean_squared_error.backward(saved, g)
    assert_near(dy_hat, 2 * np.asarray(g) * (np.asarray(y_hat) - np.asarray(y)))
    assert_near(dy, -dy_hat)
