"""batch_norm and batch_norm_eval: the statistics and their cotangents, peers, extremes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, batch_norm, batch_norm_eval
from jaxprop.rule import Saved
from jaxprop.samples import uniform
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import by_hand, double
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.rules.test_every_rule import residual_bytes
from tests.tolerances import assert_near

EPS = 1e-5


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def arguments(x: jax.Array) -> list[jax.Array]:
    return [x, normal(x.shape[-1], seed=1), normal(x.shape[-1], seed=2)]


def y_alone() -> Rule:
    """batch_norm without its statistics, as most libraries have it."""

    def y_alone_reference(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        return batch_norm.reference(x, gamma, beta, eps=EPS)[0]

    def forward(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> tuple[jax.Array, Saved]:
        (y, _, _), saved = batch_norm.forward(x, gamma, beta, eps=EPS)
        return y, saved

    def backward(saved: Saved, g: jax.Array) -> tuple:
        return batch_norm.backward(saved, (g, None, None))

    return Rule(y_alone_reference, forward, backward)


def plain_batch_norm(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
    """As it is written without thought for the dtype."""
    mean, var = jnp.mean(x, 0), jnp.var(x, 0)
    return (x - mean) / jnp.sqrt(var + EPS) * gamma + beta


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_y_is_that_of_torch_in_training() -> None:
    def peer(torch: Any, x: Any, gamma: Any, beta: Any) -> Any:
        options = {"weight": gamma, "bias": beta, "training": True, "eps": EPS}
        y = torch.nn.functional.batch_norm(x.movedim(-1, 1), None, None, **options)
        return y.movedim(1, -1)

    assert_agrees_with_torch(y_alone(), peer, arguments(normal(4, 2, 3, 5) + 1), reduced=24)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_evaluation_is_that_of_torch() -> None:
    """Whose own function has no gradient in the statistics: there its formula is differentiated."""

    def peer(torch: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        options = {"training": False, "eps": EPS}
        fixed = mean.detach(), var.detach()
        y = torch.nn.functional.batch_norm(x, *fixed, gamma, beta, **options)
        formula = (x - mean) * torch.rsqrt(var + EPS) * gamma + beta
        assert torch.allclose(y, formula)
        return formula

    args = [*arguments(normal(6, 5)), normal(5, seed=4), jnp.exp(normal(5, seed=5))]
    assert_agrees_with_torch(batch_norm_eval, peer, args, reduced=6, eps=EPS)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_y_is_that_of_flax_in_training() -> None:
    nnx = pytest.importorskip("flax.nnx")

    def peer(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        layer = nnx.BatchNorm(5, epsilon=EPS, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        layer.scale, layer.bias = nnx.Param(gamma), nnx.Param(beta)
        layer.mean, layer.var = nnx.BatchStat(jnp.zeros(5)), nnx.BatchStat(jnp.ones(5))
        with jax.numpy_dtype_promotion("standard"):
            return layer(x, use_running_average=False)

    assert_agrees_with_jax(y_alone(), peer, arguments(normal(6, 5)), reduced=6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_statistics_are_those_of_numpy_over_every_axis_but_the_last() -> None:
    x = normal(2, 3, 4, 5) + 1
    _, mean, var = batch_norm(x, None, None, eps=EPS)
    rows = np.asarray(x).reshape(24, 5)
    assert_near((mean, var), (rows.mean(0), rows.var(0)), reduced=24)


@pytest.mark.usefixtures("x64")
def test_the_cotangents_of_the_statistics_reach_x_each_by_itself() -> None:
    x, g = normal(6, 5), normal(5, seed=3)
    _, (by_mean, *_) = by_hand(batch_norm, (None, g, None), x, None, None, eps=EPS)
    _, (by_var, *_) = by_hand(batch_norm, (None, None, g), x, None, None, eps=EPS)
    assert_near(by_mean, jnp.broadcast_to(g / 6, x.shape))
    assert_near(by_var, g * 2 * (x - x.mean(0)) / 6, reduced=6)


@pytest.mark.usefixtures("x64")
def test_evaluation_with_the_batch_s_own_statistics_is_training() -> None:
    x, gamma, beta = arguments(normal(6, 5))
    y, mean, var = batch_norm(x, gamma, beta, eps=EPS)
    assert_near(batch_norm_eval(x, gamma, beta, mean, var, eps=EPS), y, reduced=6)


def test_the_statistics_are_float32_where_x_is_bfloat16() -> None:
    x = normal(6, 5).astype(jnp.bfloat16)
    y, mean, var = batch_norm(x, None, None, eps=EPS)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        args = arguments(2 * normal(64, 16, seed=seed) + 1)
        return tuple(arg.astype(jnp.bfloat16) for arg in args)

    assert_no_worse(y_alone(), plain_batch_norm, draw)


@pytest.mark.parametrize("distance", [1e4, 1e6])
def test_channels_far_from_zero_keep_their_digits(distance: float) -> None:
    x, gamma, beta = arguments(normal(1000, 4) + distance)
    g = normal(1000, 4, seed=1) + 1
    (y, _, var), got = by_hand(batch_norm, (g, None, None), x, gamma, beta, eps=EPS)
    with jax.enable_x64(True):
        wide = double((x, gamma, beta))
        (truth, _, var_truth), expected = by_hand(
            batch_norm, (double(g), None, None), *wide, eps=EPS
        )
    assert_near((y, var), (truth, var_truth))
    assert_near(got, expected, reduced=1000)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_constant_channel_gives_beta_and_variance_0(rows: int) -> None:
    x, gamma, beta = arguments(jnp.full((rows, 3), 0.1))
    (y, mean, var), saved = batch_norm.forward(x, gamma, beta, eps=EPS)
    g = normal(rows, 3, seed=3)
    dx, dgamma, _ = batch_norm.backward(saved, (g, None, None))
    assert_near(y, jnp.broadcast_to(beta, y.shape))
    assert_near((mean, 1 + var), (x[0], jnp.ones(3)))
    assert_near(1 + dgamma, jnp.ones(3))
    assert_near(dx, EPS**-0.5 * gamma * (g - g.mean(0)), reduced=rows)


def test_constant_channels_far_from_zero_have_no_negative_variance() -> None:
    """The mean of squares and the square of the mean are rounded apart."""
    x = jnp.broadcast_to(1e6 * (1 + uniform(0, 64)), (28, 64))
    y, _, var = batch_norm(x, None, None, eps=1e-12)
    assert np.min(var) >= 0
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize("size", [1.0, 1e10])
def test_squares_that_overflow_give_beta_and_no_gradient(size: float) -> None:
    """Where g is large too, so does the sum of g * x."""
    x, gamma, beta = arguments(1e30 * normal(8, 3))
    g = jnp.full((8, 3), size), None, None
    (y, _, var), (dx, dgamma, _) = by_hand(batch_norm, g, x, gamma, beta, eps=EPS)
    np.testing.assert_array_equal(var, np.full(3, np.inf))
    np.testing.assert_array_equal(y, jnp.broadcast_to(beta, y.shape))
    np.testing.assert_array_equal(dx, jnp.zeros_like(x))
    np.testing.assert_array_equal(dgamma, jnp.zeros(3))


def test_no_rows_have_no_statistics_and_no_gradient() -> None:
    x, gamma, beta = arguments(jnp.zeros((0, 3)))
    (y, mean, var), saved = batch_norm.forward(x, gamma, beta, eps=EPS)
    dx, dgamma, dbeta = batch_norm.backward(saved, (y, None, None))
    assert y.shape == dx.shape == (0, 3)
    assert np.all(np.isnan((mean, var)))
    np.testing.assert_array_equal((dgamma, dbeta), np.zeros((2, 3)))


def test_three_numbers_are_saved_per_channel_and_in_evaluation_none() -> None:
    assert residual_bytes(batch_norm, batch_norm.cases()[0]) == 4 * 3 * 3
    assert residual_bytes(batch_norm_eval, batch_norm_eval.cases()[0]) == 0


def test_what_does_not_fit_is_refused() -> None:
    x, gamma, beta = arguments(jnp.ones((2, 4)))
    statistics = gamma, beta
    for rule, rest in ((batch_norm, ()), (batch_norm_eval, statistics)):
        name = rule.name
        message = not_floating(name, "x", "int32")
        args = (jnp.ones((2, 4), jnp.int32), gamma, beta, *rest)
        assert_refuses(rule, args, TypeError, message, eps=EPS)
        message = (
            f"{name}: x must be (..., C), got a scalar. Give it an axis of channels, the last."
        )
        assert_refuses(rule, (x[0, 0], gamma, beta, *rest), ValueError, message, eps=EPS)
        message = (
            f"{name}: beta must be (C,) = (4,), the last axis of x, got (3,). Give one number per "
            "channel."
        )
        assert_refuses(rule, (x, gamma, beta[:3], *rest), ValueError, message, eps=EPS)
        message = (
            f"{name}: eps must be positive and finite, got 0.0. It keeps numbers that are all the "
            "same from being divided by 0."
        )
        assert_refuses(rule, (x, gamma, beta, *rest), ValueError, message, eps=0.0)


@pytest.mark.parametrize("name", ["mean", "var"])
def test_statistics_that_do_not_fit_are_refused(name: str) -> None:
    x, gamma, beta = arguments(jnp.ones((2, 4)))
    given = {"mean": gamma, "var": beta}
    message = (
        f"batch_norm_eval: {name} must be (C,) = (4,), the last axis of x, got (1, 4). Give one "
        "number per channel."
    )
    args = (x, gamma, beta, *(given | {name: gamma[None]}).values())
    assert_refuses(batch_norm_eval, args, ValueError, message, eps=EPS)
