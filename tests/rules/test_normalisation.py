"""layer_norm, rms_norm, group_norm, instance_norm, and both with a residual added."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import (
    Rule,
    add_layer_norm,
    add_rms_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import by_hand, double, ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.rules.test_every_rule import residual_bytes
from tests.tolerances import assert_near

EPS = 1e-5
ROWS = (rms_norm, layer_norm)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def arguments(rule: Rule, x: jax.Array) -> tuple:
    """x, and gamma and beta where the rule has them."""
    parameters = [normal(x.shape[-1], seed=seed) for seed in (1, 2)]
    return (x, *parameters[: len(rule.argument_names) - 1])


def plain_rms_norm(x: jax.Array, gamma: jax.Array) -> jax.Array:
    """As it is written without thought for the dtype."""
    return gamma * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)


def plain_layer_norm(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    inv_std = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + EPS)
    return gamma * centred * inv_std + beta


PLAIN = {rms_norm: plain_rms_norm, layer_norm: plain_layer_norm}


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_the_norms_of_rows_are_those_of_torch() -> None:
    x = normal(3, 2, 5) + 1
    for rule in ROWS:
        name = rule.name

        def peer(torch: Any, x: Any, *parameters: Any, name: str = name) -> Any:
            return getattr(torch.nn.functional, name)(x, (5,), *parameters, eps=EPS)

        assert_agrees_with_torch(rule, peer, arguments(rule, x), reduced=6, eps=EPS)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_the_norms_of_examples_are_those_of_torch() -> None:
    """Which has channels second."""
    x = normal(2, 3, 2, 6) + 1

    def grouped(torch: Any, x: Any, *parameters: Any) -> Any:
        y = torch.nn.functional.group_norm(x.movedim(-1, 1), 3, *parameters, eps=EPS)
        return y.movedim(1, -1)

    def instance(torch: Any, x: Any, gamma: Any, beta: Any) -> Any:
        functional = torch.nn.functional
        y = functional.instance_norm(x.movedim(-1, 1), weight=gamma, bias=beta, eps=EPS)
        return y.movedim(1, -1)

    args = arguments(group_norm, x)
    assert_agrees_with_torch(group_norm, grouped, args, reduced=12, eps=EPS, groups=3)
    assert_agrees_with_torch(instance_norm, instance, args, reduced=12, eps=EPS)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_the_norms_of_rows_are_those_of_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    x = normal(6, 5) + 1
    layers = {rms_norm: nnx.RMSNorm, layer_norm: nnx.LayerNorm}
    for rule, layer in layers.items():

        def peer(x: jax.Array, *parameters: jax.Array, layer: Callable = layer) -> jax.Array:
            module = layer(5, epsilon=EPS, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
            for name, value in zip(("scale", "bias"), parameters, strict=False):
                setattr(module, name, nnx.Param(value))
            with jax.numpy_dtype_promotion("standard"):
                return module(x)

        assert_agrees_with_jax(rule, peer, arguments(rule, x), reduced=6, eps=EPS)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_one_group_per_channel_is_instance_norm_and_one_alone_is_layer_norm_of_vectors() -> None:
    x = normal(2, 3, 2, 6)
    args = arguments(group_norm, x)
    each, instance = group_norm(*args, groups=6, eps=EPS), instance_norm(*args, eps=EPS)
    assert_near(each, instance, reduced=6)
    rows = (x[:, 0, 0], *args[1:])
    assert_near(group_norm(*rows, groups=1, eps=EPS), layer_norm(*rows, eps=EPS), reduced=6)


@pytest.mark.usefixtures("x64")
def test_add_norms_are_the_norm_of_the_sum_and_the_sum() -> None:
    x, residual, g, g_stream = (normal(4, 5, seed=seed) for seed in range(3, 7))
    for both, norm in ((add_rms_norm, rms_norm), (add_layer_norm, layer_norm)):
        _, *parameters = arguments(norm, x)
        (y, stream), (dx, dresidual, *others) = by_hand(
            both, (g, g_stream), x, residual, *parameters, eps=EPS
        )
        assert_near(stream, residual + x)
        alone, (dh, *expected) = by_hand(norm, g, residual + x, *parameters, eps=EPS)
        assert_near(y, alone, reduced=5)
        assert_near((dx, dresidual), (dh + g_stream,) * 2, reduced=5)
        assert_near(others, expected, reduced=5)


def test_the_stream_keeps_the_dtype_of_the_residual() -> None:
    x, residual = normal(4, 5).astype(jnp.bfloat16), normal(4, 5, seed=1)
    for rule, parameters in ((add_rms_norm, 1), (add_layer_norm, 2)):
        y, stream = rule(x, residual, *[None] * parameters, eps=EPS)
        assert (y.dtype, stream.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(stream, residual + x.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROWS, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        x, *parameters = arguments(rule, 2 * normal(16, 64, seed=seed) + 1)
        return tuple(array.astype(jnp.bfloat16) for array in (x, *parameters))

    assert_no_worse(rule.bind(eps=EPS), PLAIN[rule], draw)


@pytest.mark.parametrize("rule", ROWS, ids=ids)
def test_the_value_in_bfloat16_is_that_of_float32_rounded_once(rule: Rule) -> None:
    x, *parameters = arguments(rule, normal(8, 64))
    low = x.astype(jnp.bfloat16)
    y = rule(low, *parameters, eps=EPS)
    exact = rule(low.astype(jnp.float32), *parameters, eps=EPS).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), exact.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROWS, ids=ids)
def test_parameter_gradients_over_65536_rows_of_bfloat16_are_summed_in_float32(rule: Rule) -> None:
    x, *parameters = arguments(rule, normal(65536, 8).astype(jnp.bfloat16))
    g = normal(65536, 8, seed=3).astype(jnp.bfloat16) + jnp.bfloat16(1)
    _, (_, *got) = by_hand(rule, g, x, *parameters, eps=EPS)
    with jax.enable_x64(True):
        _, (_, *truth) = by_hand(rule, double(g), *double((x, *parameters)), eps=EPS)
    assert {d.dtype for d in got} == {jnp.dtype(jnp.float32)}
    assert_near(got, truth, "float32", reduced=65536)


def test_rows_far_from_zero_keep_their_digits() -> None:
    """Of 1000 channels near 1e4: their mean alone, rounded, is off by more than is allowed."""
    x = normal(4, 1000) + 1e4
    g = normal(4, 1000, seed=1)
    y, (dx, *_) = by_hand(layer_norm, g, x, None, None, eps=EPS)
    with jax.enable_x64(True):
        truth, (dx_truth, *_) = by_hand(layer_norm, double(g), double(x), None, None, eps=EPS)
    assert_near(y, truth, reduced=1)
    assert_near(dx, dx_truth, reduced=1)


def test_a_shift_of_a_row_changes_no_layer_norm() -> None:
    """Whole numbers, so that the shift itself rounds nothing."""
    x = jnp.round(8 * normal(4, 8))
    shifted = x + jnp.array([[1024.0], [-4096.0], [8.0], [0.0]])
    assert_near(layer_norm(shifted, None, None, eps=EPS), layer_norm(x, None, None, eps=EPS))


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -1e4])
def test_a_constant_row_gives_beta_and_a_finite_gradient(value: float) -> None:
    x, gamma, beta = arguments(layer_norm, jnp.full((2, 8), value))
    g = normal(2, 8, seed=3)
    y, (dx, dgamma, _) = by_hand(layer_norm, g, x, gamma, beta, eps=EPS)
    dx_hat = gamma * g
    assert_near(y, jnp.broadcast_to(beta, y.shape))
    assert_near(dx, EPS**-0.5 * (dx_hat - jnp.mean(dx_hat, -1, keepdims=True)), reduced=8)
    assert_near(1 + dgamma, jnp.ones(8))


def test_a_row_of_one_channel_has_no_direction() -> None:
    """Its layer norm is beta, its rms norm the sign, up to eps; neither has much of a gradient."""
    x, g = jnp.array([[3.0], [-2.0], [0.0]]), jnp.ones((3, 1))
    y, saved = layer_norm.forward(x, jnp.array([2.0]), jnp.array([0.5]), eps=EPS)
    np.testing.assert_array_equal(y, np.full((3, 1), 0.5))
    np.testing.assert_array_equal(layer_norm.backward(saved, g)[0], np.zeros((3, 1)))
    y, saved = rms_norm.forward(x, jnp.array([2.0]), eps=1e-30)
    assert_near(y, 2 * jnp.sign(x))
    assert_near(1 + rms_norm.backward(saved, g)[0][:2], jnp.ones((2, 1)))


def test_a_small_eps_tells_rows_apart_that_a_large_one_does_not() -> None:
    x = 1e-6 * normal(4, 8)
    sharp, flat = rms_norm(x, None, eps=1e-20), rms_norm(x, None, eps=1.0)
    assert_near(jnp.mean(sharp * sharp, -1), jnp.ones(4), reduced=8)
    assert_near(flat, x)


def test_squares_that_overflow_give_beta_and_no_gradient() -> None:
    x, gamma, beta = arguments(layer_norm, 1e30 * normal(2, 8))
    y, (dx, dgamma, _) = by_hand(layer_norm, jnp.ones((2, 8)), x, gamma, beta, eps=EPS)
    np.testing.assert_array_equal(y, jnp.broadcast_to(beta, y.shape))
    np.testing.assert_array_equal(dx, jnp.zeros_like(x))
    np.testing.assert_array_equal(dgamma, jnp.zeros(8))


@pytest.mark.parametrize("shape", [(0, 2, 6), (2, 0, 6), (2, 3, 0)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    for rule, options in (
        (rms_norm, {}),
        (layer_norm, {}),
        (group_norm, {"groups": 3}),
        (instance_norm, {}),
    ):
        args = arguments(rule, jnp.zeros(shape))
        y, (dx, dgamma, *_) = by_hand(rule, np.zeros(shape, np.float32), *args, eps=EPS, **options)
        assert y.shape == dx.shape == shape
        np.testing.assert_array_equal(dgamma, jnp.zeros(shape[-1]))


@pytest.mark.slow
def test_so_many_numbers_are_saved_per_row_or_group() -> None:
    images, rows = normal(2, 3, 2, 6), normal(4, 5)
    for rule, x, options, expected in (
        (rms_norm, rows, {}, 4),
        (layer_norm, rows, {}, 4 * 3),
        (group_norm, images, {"groups": 2}, 2 * 2 * 3),
        (instance_norm, images, {}, 2 * 6 * 3),
    ):
        args = arguments(rule, x)
        case = rule.cases()[0]._replace(args=args, options={"eps": EPS, **options})
        assert residual_bytes(rule, case) == 4 * expected


@pytest.mark.parametrize("rule", [rms_norm, layer_norm, group_norm, instance_norm], ids=ids)
def test_what_is_not_floating_is_refused(rule: Rule) -> None:
    options = {"eps": EPS} | ({"groups": 1} if rule is group_norm else {})
    x, *parameters = arguments(rule, jnp.ones((2, 3, 4)))
    whole = jnp.ones((2, 3, 4), jnp.int32)
    message = not_floating(rule.name, "x", "int32")
    assert_refuses(rule, (whole, *parameters), TypeError, message, **options)
    message = not_floating(rule.name, "gamma", "int32")
    args = (x, whole[0, 0], *parameters[1:])
    assert_refuses(rule, args, TypeError, message, **options)


@pytest.mark.parametrize("rule", ROWS, ids=ids)
def test_a_scalar_a_wrong_parameter_and_a_wrong_eps_are_refused(rule: Rule) -> None:
    name, (x, *parameters) = rule.name, arguments(rule, jnp.ones((2, 4)))
    message = f"{name}: x must be (..., C), got a scalar. Give it an axis of channels, the last."
    assert_refuses(rule, (jnp.ones(()), *parameters), ValueError, message, eps=EPS)
    for shape in ((3,), (1, 4), (), (1,)):
        message = (
            f"{name}: gamma must be (C,) = (4,), the last axis of x, got {shape}. Give one number "
            "per channel."
        )
        args = (x, jnp.ones(shape), *parameters[1:])
        assert_refuses(rule, args, ValueError, message, eps=EPS)
    for eps in (0.0, -1e-5, float("inf"), float("nan")):
        message = (
            f"{name}: eps must be positive and finite, got {eps!r}. It keeps numbers that are all "
            "the same from being divided by 0."
        )
        assert_refuses(rule, (x, *parameters), ValueError, message, eps=eps)


@pytest.mark.parametrize("groups", [0, -1, 4, 2.0, 7])
def test_groups_that_do_not_divide_the_channels_are_refused(groups: Any) -> None:
    message = (
        f"group_norm: groups must be a positive integer that divides C = 6, got {groups!r}. "
        "Channels are the last axis of x."
    )
    args = arguments(group_norm, jnp.ones((2, 6)))
    assert_refuses(group_norm, args, ValueError, message, groups=groups, eps=EPS)


def test_too_few_axes_for_an_example_are_refused() -> None:
    message = "group_norm: x must be (B, ..., C), got (6,). Give it a batch axis, the first."
    args = arguments(group_norm, jnp.ones(6))
    assert_refuses(group_norm, args, ValueError, message, groups=2, eps=EPS)
    message = (
        "instance_norm: x must be (B, ..., C) with an axis between, got (2, 6). With none, each "
        "channel is one number, and y would be beta."
    )
    args = arguments(instance_norm, jnp.ones((2, 6)))
    assert_refuses(instance_norm, args, ValueError, message, eps=EPS)


@pytest.mark.parametrize("rule", [add_rms_norm, add_layer_norm], ids=ids)
def test_a_residual_that_does_not_fit_is_refused(rule: Rule) -> None:
    x, parameters = jnp.ones((2, 3)), [None] * (len(rule.argument_names) - 2)
    message = (
        f"{rule.name}: x and residual must have the same shape, got (2, 3) and (3,). Nothing is "
        "broadcast: add, drop or repeat an axis."
    )
    assert_refuses(rule, (x, x[0], *parameters), ValueError, message, eps=EPS)
    whole = jnp.ones((2, 3), jnp.int32)
    message = not_floating(rule.name, "residual", "int32")
    assert_refuses(rule, (x, whole, *parameters), TypeError, message, eps=EPS)
