"""l2_normalize, weight_standardize, weight_norm: peers, zero vectors, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import l2_normalize, weight_norm, weight_standardize
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import by_hand
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.rules.test_every_rule import residual_bytes
from tests.tolerances import assert_near

EPS = 1e-5


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def normalised(x: jax.Array, g: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """l2_normalize's value and cotangent."""
    y, saved = l2_normalize.forward(x, eps=eps)
    return y, l2_normalize.backward(saved, g)[0]


@pytest.mark.peers
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.usefixtures("x64")
def test_l2_normalize_is_that_of_torch_along_any_axis(axis: int) -> None:
    def peer(torch: Any, x: Any) -> Any:
        return torch.nn.functional.normalize(x, dim=axis)

    args = [normal(2, 3, 5)]
    assert_agrees_with_torch(l2_normalize, peer, args, reduced=5, axis=axis, eps=1e-12)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_weight_norm_is_that_of_torch() -> None:
    def peer(torch: Any, v: Any, gain: Any) -> Any:
        return torch._weight_norm(v, gain.reshape(1, 1, -1), 2)

    args = [normal(2, 3, 4), normal(4, seed=1)]
    assert_agrees_with_torch(weight_norm, peer, args, reduced=6)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_weight_standardize_is_batch_norm_of_the_inputs_in_torch() -> None:
    def peer(torch: Any, w: Any) -> Any:
        y = torch.nn.functional.batch_norm(w.reshape(6, 4), None, None, training=True, eps=EPS)
        return y.reshape(w.shape)

    assert_agrees_with_torch(weight_standardize, peer, [normal(2, 3, 4) + 1], reduced=6, eps=EPS)


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_at_the_zero_vector_value_and_gradient_are_0_and_others_are_not_touched(eps: float) -> None:
    x, g = normal(3, 5), normal(3, 5, seed=1)
    y, dx = normalised(x.at[1].set(0.0), g, eps)
    np.testing.assert_array_equal((y[1], dx[1]), np.zeros((2, 5)))
    expected, dexpected = normalised(x[::2], g[::2], eps)
    np.testing.assert_array_equal(y[::2], expected)
    np.testing.assert_array_equal(dx[::2], dexpected)


def test_a_vector_no_longer_than_eps_counts_as_0() -> None:
    x, g = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]])
    for eps, zero in ((4.9, False), (5.0, True), (5.1, True)):
        y, dx = normalised(x, g, eps)
        assert np.all(np.asarray(y) == 0) == zero
        assert np.all(np.asarray(dx) == 0) == zero


def test_the_length_is_1_and_the_gradient_is_across_the_vector() -> None:
    x = normal(4, 100)
    y, dx = normalised(x, normal(4, 100, seed=1), EPS)
    assert_near(jnp.sum(y * y, -1), jnp.ones(4), reduced=100)
    assert_near(1 + jnp.sum(dx * x, -1), jnp.ones(4), reduced=100)


def test_of_one_number_the_sign_is_left_and_no_gradient() -> None:
    x, g = normal(5, 1), jnp.ones((5, 1))
    y, dx = normalised(x, g, 0.0)
    np.testing.assert_array_equal(y, jnp.sign(x))
    np.testing.assert_array_equal(dx, jnp.zeros((5, 1)))
    w, saved = weight_norm.forward(x.T, 2 * g[:, 0])
    np.testing.assert_array_equal(w, 2 * jnp.sign(x.T))
    np.testing.assert_array_equal(weight_norm.backward(saved, g.T)[0], jnp.zeros((1, 5)))


def test_an_output_whose_v_is_0_has_weights_and_gradients_of_0() -> None:
    v, gain = normal(5, 3).at[:, 1].set(0.0), normal(3, seed=1)
    w, (dv, dgain) = by_hand(weight_norm, normal(5, 3, seed=2), v, gain)
    np.testing.assert_array_equal((w[:, 1], dv[:, 1]), np.zeros((2, 5)))
    assert float(dgain[1]) == 0
    assert np.all(np.isfinite(dv))


def test_weight_norm_gives_each_output_its_length() -> None:
    gain = jnp.array([2.0, 0.5, -3.0])
    w = weight_norm(normal(4, 5, 3), gain)
    assert_near(jnp.sqrt(jnp.sum(w * w, (0, 1))), jnp.abs(gain), reduced=20)


def test_weight_standardize_gives_each_output_mean_0_and_variance_1() -> None:
    w = weight_standardize(normal(10, 10, 3) + 5, eps=EPS)
    assert_near(1 + jnp.mean(w, (0, 1)), jnp.ones(3), reduced=100)
    assert_near(jnp.var(w, (0, 1)), jnp.ones(3), reduced=100)


def test_weights_that_are_all_the_same_give_0() -> None:
    y = weight_standardize(jnp.full((4, 3), 0.1), eps=EPS)
    assert_near(1 + y, jnp.ones((4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["l2_normalize", "weight_standardize", "weight_norm"])
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: str) -> None:
    def draw(seed: int) -> tuple:
        x = normal(16, 32, seed=seed).astype(jnp.bfloat16)
        gain = (normal(32, seed=seed + 100) + 2).astype(jnp.bfloat16)
        return (x, gain) if rule == "weight_norm" else (x,)

    def standardized(w: jax.Array) -> jax.Array:
        centred = w - jnp.mean(w, 0)
        return centred * jax.lax.rsqrt(jnp.mean(centred * centred, 0) + EPS)

    ours, plain = {
        "l2_normalize": (
            l2_normalize.bind(eps=EPS),
            lambda x: x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)),
        ),
        "weight_standardize": (weight_standardize.bind(eps=EPS), standardized),
        "weight_norm": (weight_norm, lambda v, gain: gain * v / jnp.sqrt(jnp.sum(v * v, 0))),
    }[rule]
    assert_no_worse(ours, plain, draw)


def test_so_many_numbers_are_saved_per_vector_or_output() -> None:
    rows = l2_normalize.cases()[0]
    assert residual_bytes(l2_normalize, rows) == 4 * rows.args[0].shape[0]
    assert residual_bytes(weight_standardize, weight_standardize.cases()[0]) == 4 * 3 * 3
    assert residual_bytes(weight_norm, weight_norm.cases()[0]) == 4 * 3


def test_l2_normalize_refuses_what_does_not_fit() -> None:
    message = not_floating("l2_normalize", "x", "int32")
    assert_refuses(l2_normalize, (jnp.ones((2, 3), jnp.int32),), TypeError, message, eps=EPS)
    for shape, axis in (((2, 3), 2), ((2, 3), -3), ((), -1)):
        message = (
            f"l2_normalize: axis must be one of x's {len(shape)} axes, got axis {axis} for x "
            f"{shape}. Give an axis between -x.ndim and x.ndim - 1."
        )
        options = {"axis": axis, "eps": EPS}
        assert_refuses(l2_normalize, (jnp.ones(shape),), ValueError, message, **options)
    for eps in (-1.0, float("inf"), float("nan")):
        message = (
            f"l2_normalize: eps must be at least 0 and finite, got {eps!r}. It is the length up to "
            "which a vector counts as 0."
        )
        assert_refuses(l2_normalize, (jnp.ones((2, 3)),), ValueError, message, eps=eps)


def test_weights_of_too_few_axes_are_refused() -> None:
    too_few = (
        "must be (..., n_out) of at least two axes, got (3,). The last is that of the outputs."
    )
    message = f"weight_standardize: w {too_few}"
    assert_refuses(weight_standardize, (jnp.ones(3),), ValueError, message, eps=EPS)
    message = f"weight_norm: v {too_few}"
    assert_refuses(weight_norm, (jnp.ones(3), jnp.ones(3)), ValueError, message)


def test_weights_and_gains_that_do_not_fit_are_refused() -> None:
    whole = jnp.ones((2, 3), jnp.int32)
    message = not_floating("weight_standardize", "w", "int32")
    assert_refuses(weight_standardize, (whole,), TypeError, message, eps=EPS)
    message = (
        "weight_standardize: eps must be positive and finite, got 0.0. It keeps numbers that are "
        "all the same from being divided by 0."
    )
    assert_refuses(weight_standardize, (jnp.ones((2, 3)),), ValueError, message, eps=0.0)
    message = not_floating("weight_norm", "v", "int32")
    assert_refuses(weight_norm, (whole, jnp.ones(3)), TypeError, message)
    message = not_floating("weight_norm", "gain", "int32")
    assert_refuses(weight_norm, (jnp.ones((2, 3)), whole[0]), TypeError, message)
    message = (
        "weight_norm: gain must be (n_out,) = (3,), the last axis of v, got (2,). Give one length "
        "per output."
    )
    assert_refuses(weight_norm, (jnp.ones((2, 3)), jnp.ones(2)), ValueError, message)
