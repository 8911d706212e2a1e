"""Convolutions: peers, groups, the transposes as sums over windows, precision, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprop import causal_depthwise_conv, conv, conv_transpose
from jaxprop.samples import normal, replaced
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near


def double(*arrays: jax.Array) -> list[jax.Array]:
    return [x.astype(jnp.float64) for x in arrays]


def channels_first(x: Any) -> Any:
    return x.movedim(-1, 1)


def channels_last(y: Any) -> Any:
    return y.movedim(1, -1)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "images": ((2, 7, 6, 4), (3, 2, 4, 5), {"stride": (2, 1), "padding": ((1, 1), (2, 2))}),
    "signals": ((2, 9, 4), (3, 4, 5), {"stride": (2,), "dilation": (3,), "padding": ((4, 4),)}),
    "volumes": ((1, 4, 3, 5, 2), (2, 1, 3, 2, 3), {"padding": ((0, 0), (1, 1), (1, 1))}),
    "groups": ((2, 5, 6, 4), (2, 3, 2, 6), {"padding": ((1, 1), (0, 0)), "groups": 2}),
    "depthwise": ((2, 7, 6), (3, 1, 12), {"stride": (2,), "padding": ((1, 1),), "groups": 6}),
}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kernel", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.usefixtures("x64")
def test_conv_is_that_of_torch(
    shape: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    axes = len(shape) - 2

    def peer(torch: Any, x: Any, w: Any, b: Any) -> Any:
        y = getattr(torch.nn.functional, f"conv{axes}d")(
            channels_first(x),
            w.movedim(-1, 0).movedim(-1, 1),
            b,
            options.get("stride", 1),
            tuple(low for low, _ in options["padding"]),
            options.get("dilation", 1),
            options.get("groups", 1),
        )
        return channels_last(y)

    args = double(normal(0, *shape), normal(1, *kernel), normal(2, kernel[-1]))
    assert_agrees_with_torch(conv, peer, args, reduced=100, **options)


@pytest.mark.usefixtures("x64")
def test_the_cotangents_are_sums_over_windows_place_by_place() -> None:
    """By NumPy: stride, dilation, padding that differs on the two sides, and groups."""
    x, w = map(np.asarray, double(normal(0, 2, 9, 4), normal(1, 3, 2, 6)))
    y, saved = conv.forward(x, w, stride=(2,), padding=((3, 1),), dilation=(2,), groups=2)
    g = np.asarray(normal(2, *y.shape), np.float64)
    y_true, dx, dw = np.zeros(y.shape), np.zeros((2, 13, 4)), np.zeros(w.shape)
    padded = np.pad(x, ((0, 0), (3, 1), (0, 0)))
    for window in range(y.shape[1]):
        for place in range(3):
            at = 2 * window + 2 * place
            for ins, outs in ((slice(2), slice(3)), (slice(2, 4), slice(3, 6))):
                y_true[:, window, outs] += padded[:, at, ins] @ w[place][:, outs]
                dx[:, at, ins] += g[:, window, outs] @ w[place][:, outs].T
                dw[place][:, outs] += padded[:, at, ins].T @ g[:, window, outs]
    assert_near(y, y_true, reduced=6)
    assert_near(conv.backward(saved, g)[:2], (dx[:, 3:-1], dw), reduced=10)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (4, 1)])
@pytest.mark.usefixtures("x64")
def test_conv_transpose_is_that_of_lax(stride: tuple[int, ...], padding: Any) -> None:
    def peer(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_transpose(x, w, stride, padding, rhs_dilation=(1, 2))

    args = double(normal(0, 2, 4, 3, 2), normal(1, 3, 2, 2, 3))
    options = {"stride": stride, "padding": padding, "dilation": (1, 2)}
    assert_agrees_with_jax(conv_transpose, peer, args, reduced=20, **options)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_conv_transpose_is_that_of_torch_with_the_window_turned_round() -> None:
    """And padding p of a window of K is K - 1 - p on either side of ours."""

    def peer(torch: Any, x: Any, w: Any, b: Any) -> Any:
        turned = torch.flip(w, (0,)).movedim(0, -1)
        y = torch.nn.functional.conv_transpose1d(channels_first(x), turned, b, 2, padding=1)
        return channels_last(y)

    args = double(normal(0, 2, 4, 2), normal(1, 4, 2, 3), normal(2, 3))
    assert_agrees_with_torch(conv_transpose, peer, args, reduced=20, stride=(2,), padding=((2, 2),))


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_causal_depthwise_conv_is_torchs_conv_whose_end_is_cut_off() -> None:
    def peer(torch: Any, x: Any, w: Any, b: Any) -> Any:
        kernel = w.T[:, None]
        y = torch.nn.functional.conv1d(channels_first(x), kernel, b, padding=3, groups=3)
        return channels_last(y[..., : x.shape[1]])

    args = double(normal(0, 2, 6, 3), normal(1, 4, 3), normal(2, 3))
    assert_agrees_with_torch(causal_depthwise_conv, peer, args, reduced=12)


def test_a_causal_output_does_not_see_what_comes_after() -> None:
    x, w = normal(0, 1, 6, 2), normal(1, 3, 2)
    before = causal_depthwise_conv(x, w)
    after = causal_depthwise_conv(replaced(x, np.s_[:, 3:], 100.0), w)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.asarray(before[:, 3] != after[:, 3]))


@pytest.mark.slow
def test_arguments_are_all_that_is_saved() -> None:
    for rule in (conv, conv_transpose):
        case = rule.cases()[0]
        x, w, _ = case.args
        _, saved = rule.forward(*case.args, **case.options)
        assert [leaf is arg for leaf, arg in zip(jax.tree.leaves(saved), (x, w), strict=True)] == [
            True,
            True,
        ]


@pytest.mark.slow
def test_bfloat16_sums_over_the_batch_are_in_float32() -> None:
    """300 examples of 1 each: in bfloat16 a running sum would stop at 256."""
    x, w = jnp.ones((300, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 1))
    y, saved = conv.forward(x, w, w[0, 0], padding="VALID")
    _, dw, db = conv.backward(saved, jnp.ones_like(y))
    np.testing.assert_array_equal((dw.ravel(), db), [[300], [300]])


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_lax() -> None:
    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def draw(seed: int) -> tuple:
        arrays = normal(seed, 2, 6, 6, 3), normal(seed + 100, 3, 3, 3, 4)
        return tuple(x.astype(jnp.bfloat16) for x in arrays)

    assert_no_worse(conv.bind(padding="SAME"), plain, draw)


X, W, B = jnp.ones((2, 5, 4, 3)), jnp.ones((3, 2, 3, 6)), jnp.ones(6)
OPTIONS: dict[Any, dict[str, Any]] = {
    conv: {"padding": "SAME"},
    conv_transpose: {"padding": "SAME", "stride": (2, 2)},
}


@pytest.mark.parametrize("rule", [conv, conv_transpose])
def test_what_is_not_floating_is_refused(rule: Any) -> None:
    for position, name in enumerate(("x", "w", "b")):
        args = [X, W, B]
        args[position] = args[position].astype(jnp.int32)
        message = not_floating(rule.name, name, "int32")
        assert_refuses(rule, tuple(args), TypeError, message, **OPTIONS[rule])


@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (3, 3, 6), (3, 0, 3, 6)])
@pytest.mark.parametrize("rule", [conv, conv_transpose])
def test_a_w_that_does_not_fit_is_refused(rule: Any, shape: tuple[int, ...]) -> None:
    message = (
        f"{rule.name}: w must be (*window, 3, C_out) with 2 axes of window and C_out a multiple of "
        f"groups = 1, got {shape} for x (2, 5, 4, 3). The window comes first and the outputs last."
    )
    assert_refuses(rule, (X, jnp.ones(shape)), ValueError, message, **OPTIONS[rule])


@pytest.mark.parametrize("rule", [conv, conv_transpose])
def test_a_bias_that_is_not_one_per_output_is_refused(rule: Any) -> None:
    message = (
        f"{rule.name}: b must be (C_out,) = (6,), got (1, 6). Give one bias per output, or None."
    )
    assert_refuses(rule, (X, W, B[None]), ValueError, message, **OPTIONS[rule])


@pytest.mark.parametrize("groups", [0, 2, 1.0, 6])
def test_groups_that_do_not_divide_the_channels_are_refused(groups: Any) -> None:
    message = (
        f"conv: groups must be a positive integer that divides C = 3, got {groups!r}. Channels are "
        "the last axis of x."
    )
    assert_refuses(conv, (X, W), ValueError, message, padding="SAME", groups=groups)


def test_outputs_that_groups_do_not_divide_are_refused() -> None:
    message = (
        "conv: w must be (*window, 1, C_out) with 2 axes of window and C_out a multiple of groups "
        "= 3, got (1, 1, 1, 4) for x (2, 5, 4, 3). The window comes first and the outputs last."
    )
    assert_refuses(conv, (X, jnp.ones((1, 1, 1, 4))), ValueError, message, padding="SAME", groups=3)


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("rule", [conv, conv_transpose])
def test_an_option_that_is_not_one_positive_integer_per_axis_is_refused(
    rule: Any, name: str
) -> None:
    message = (
        f"{rule.name}: {name} must be a tuple of 2 positive integers, one per spatial axis of x, "
        "got (2, 0)."
    )
    assert_refuses(rule, (X, W), ValueError, message, **{**OPTIONS[rule], name: (2, 0)})


def test_a_padding_that_is_none_and_a_window_that_does_not_fit_are_refused() -> None:
    message = (
        "conv: padding must be 'SAME', 'VALID' or a tuple of 2 pairs (low, high) of integers of at "
        "least 0, one per spatial axis of x, got 1."
    )
    assert_refuses(conv, (X, W), ValueError, message, padding=1)
    message = (
        "conv: a window must fit in x and its padding, got one that spans (7, 2) for spatial axes "
        "(5, 4) padded by ((0, 0), (0, 0)). Use a smaller window, or padding 'SAME'."
    )
    assert_refuses(conv, (X, W), ValueError, message, padding="VALID", dilation=(3, 1))


def test_a_causal_conv_of_other_shapes_is_refused() -> None:
    x, w = jnp.ones((2, 5, 3)), jnp.ones((4, 3))
    for bad_x, bad_w in ((x[0], w), (x, w[0]), (x, w[:, :2]), (x, w[:0])):
        message = (
            "causal_depthwise_conv: x must be (B, T, C) and w (K, C) with K at least 1, got x "
            f"{bad_x.shape} and w {bad_w.shape}. Give one weight per step and channel."
        )
        assert_refuses(causal_depthwise_conv, (bad_x, bad_w), ValueError, message)
    message = (
        "causal_depthwise_conv: b must be (C,) = (3,), got (4,). Give one bias per channel, or "
        "None."
    )
    assert_refuses(causal_depthwise_conv, (x, w, jnp.ones(4)), ValueError, message)
    whole = x.astype(jnp.int32)
    message = not_floating("causal_depthwise_conv", "x", "int32")
    assert_refuses(causal_depthwise_conv, (whole, w), TypeError, message)
