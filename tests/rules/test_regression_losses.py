"""mean_absolute_error, huber, log_cosh: kinks, outliers, small losses, delta, errors, peers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import Rule, huber, log_cosh, mean_absolute_error
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCE = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}
RULES = [mean_absolute_error, huber, log_cosh]
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def pair(*shape: int) -> list[jax.Array]:
    return [2 * jnp.asarray(np.random.default_rng(seed).normal(size=shape)) for seed in (0, 1)]


def both(rule: Rule, *args: Any) -> tuple:
    """The losses and every cotangent, for a g of ones."""
    args = tuple(map(jnp.asarray, args))
    losses, saved = rule.forward(*args, reduction="none")
    return losses, rule.backward(saved, jnp.ones_like(losses))


OPTAX = {
    "mean_absolute_error": lambda y_hat, y: jnp.abs(y_hat - y),
    "huber": lambda y_hat, y, delta: optax.huber_loss(y_hat, y, delta=delta),
    "log_cosh": optax.log_cosh,
}


@pytest.mark.parametrize("reduction", REDUCE)
@by_name
@pytest.mark.usefixtures("x64")
def test_is_the_loss_of_optax(rule: Rule, reduction: str) -> None:
    def peer(*args: jax.Array) -> jax.Array:
        return REDUCE[reduction](OPTAX[rule.name](*args))

    args = [*pair(4, 3), jnp.asarray(0.7)][: 3 if rule is huber else 2]
    assert_agrees_with_jax(rule, peer, args, reduced=12, reduction=reduction)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_is_the_l1_and_the_huber_loss_of_torch(reduction: str) -> None:
    options = {"reduced": 12, "reduction": reduction}
    assert_agrees_with_torch(
        mean_absolute_error,
        lambda torch, y_hat, y: torch.nn.functional.l1_loss(y_hat, y, reduction=reduction),
        pair(4, 3),
        **options,
    )
    assert_agrees_with_torch(
        huber,
        lambda torch, y_hat, y: torch.nn.functional.huber_loss(y_hat, y, reduction=reduction),
        pair(4, 3),
        **options,
    )


@by_name
def test_no_difference_costs_nothing_and_has_no_gradient(rule: Rule) -> None:
    losses, (dy_hat, dy, *_) = both(rule, [1.0, -2.0, 0.0], [1.0, -2.0, 0.0])
    for zeros in (losses, dy_hat, dy):
        np.testing.assert_array_equal(zeros, [0.0, 0.0, 0.0])


@by_name
def test_an_infinite_difference_has_a_gradient_of_1(rule: Rule) -> None:
    """And one whose square overflows is no infinite loss."""
    losses, (dy_hat, *_) = both(rule, [np.inf, -np.inf, 1e30], [0.0, 0.0, -1e30])
    np.testing.assert_array_equal(losses[:2], [np.inf, np.inf])
    assert_near(losses[2], np.float32(2e30))
    np.testing.assert_array_equal(dy_hat, [1.0, -1.0, 1.0])


def test_huber_is_half_a_square_up_to_delta_and_a_line_beyond() -> None:
    losses, (dy_hat, dy, ddelta) = both(huber, [0.5, -2.0, 2.5, -6.0], jnp.zeros(4), 2.0)
    assert_near(losses, np.array([0.125, 2.0, 2 * (2.5 - 1), 2 * (6.0 - 1)]))
    assert_near(dy_hat, np.array([0.5, -2.0, 2.0, -2.0]))
    assert_near(dy, -dy_hat)
    assert_near(ddelta, np.array(0.5 + 4.0))
    assert ddelta.shape == ()


def test_a_sweep_over_delta_compiles_once() -> None:
    traced = []

    @jax.jit
    def loss(delta: jax.Array) -> jax.Array:
        traced.append(delta)
        return huber(*pair(4, 3), delta)

    assert loss(0.5) < loss(2.0)
    assert len(traced) == 1


@pytest.mark.usefixtures("x64")
def test_the_default_delta_does_not_widen_the_loss() -> None:
    y_hat, y = (x.astype(jnp.float32) for x in pair(4, 3))
    assert huber(y_hat, y).dtype == jnp.float32


def test_a_small_log_cosh_keeps_its_digits() -> None:
    """diff ** 2 / 2 - diff ** 4 / 12: at 1e-4 the usual form has lost every digit."""
    diff = np.array([1e-6, 1e-4, 1e-2, 0.5, 0.999, 1.001, 3.0])
    losses, _ = both(log_cosh, jnp.asarray(diff, jnp.float32), jnp.zeros(7))
    truth = np.log(np.cosh(diff))
    truth[:2] = diff[:2] ** 2 / 2
    assert_near(np.asarray(losses, np.float64) / truth, np.ones(7), "float32")


PLAIN: dict[str, Callable] = {
    "mean_absolute_error": lambda y_hat, y: jnp.mean(jnp.abs(y_hat - y)),
    "huber": lambda y_hat, y, delta: jnp.mean(optax.huber_loss(y_hat, y, delta=delta)),
    "log_cosh": lambda y_hat, y: jnp.mean(optax.log_cosh(y_hat, y)),
}


@pytest.mark.slow
@by_name
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        y_hat, y = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 32, 16)))
        args = (y_hat, y, jnp.float32(0.75))[: 3 if rule is huber else 2]
        return tuple(arg.astype(jnp.bfloat16) for arg in args)

    assert_no_worse(rule, PLAIN[rule.name], draw)


@by_name
def test_what_does_not_fit_is_refused(rule: Rule) -> None:
    name, args = rule.name, pair(2, 3)
    message = not_floating(name, "y", "int32")
    assert_refuses(rule, (args[0], args[1].astype(jnp.int32)), TypeError, message)
    message = (
        f"{name}: y_hat and y must have the same shape, got (2, 3) and (3,). Nothing is broadcast: "
        "add, drop or repeat an axis."
    )
    assert_refuses(rule, (args[0], args[1][0]), ValueError, message)
    message = f"{name}: reduction must be one of ('mean', 'sum', 'none'), got 'average'."
    assert_refuses(rule, tuple(args), ValueError, message, reduction="average")


def test_huber_refuses_a_delta_that_is_no_floating_scalar() -> None:
    message = (
        "huber: delta must have the shape (), got (3,). Nothing is broadcast: add, drop or repeat "
        "an axis, or leave it None."
    )
    assert_refuses(huber, (*pair(2, 3), jnp.ones(3)), ValueError, message)
    message = not_floating("huber", "delta", "int32")
    assert_refuses(huber, (*pair(2, 3), jnp.int32(1)), TypeError, message)
