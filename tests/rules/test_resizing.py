"""Resizing and pixel shuffle: peers, the transposes, edges, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import pixel_shuffle, pixel_unshuffle, resize_bilinear, resize_nearest
from jaxprop.samples import normal
from tests.rules.oracle import by_hand
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

SIZES = [(9, 4), (5, 7), (15, 12), (1, 2), (8, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("rule", "method"), [(resize_nearest, "nearest"), (resize_bilinear, "linear")]
)
@pytest.mark.usefixtures("x64")
def test_it_is_that_of_jax_image_without_antialias(
    rule: Any, method: str, size: tuple[int, int]
) -> None:
    def peer(x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (2, *size, 3), method, antialias=False)

    x = normal(0, 2, 5, 4, 3).astype(jnp.float64)
    assert_agrees_with_jax(rule, peer, [x], reduced=100, size=size)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("rule", "mode"), [(resize_nearest, "nearest-exact"), (resize_bilinear, "bilinear")]
)
@pytest.mark.usefixtures("x64")
def test_it_is_that_of_torch(rule: Any, mode: str, size: tuple[int, int]) -> None:
    def peer(torch: Any, x: Any) -> Any:
        y = torch.nn.functional.interpolate(x.movedim(-1, 1), size, mode=mode)
        return y.movedim(1, -1)

    x = normal(0, 2, 5, 4, 3).astype(jnp.float64)
    assert_agrees_with_torch(rule, peer, [x], reduced=100, size=size)


@pytest.mark.usefixtures("x64")
def test_twice_the_length_copies_pixels_or_mixes_three_to_one() -> None:
    x, g = jnp.array([1.0, 5.0, 3.0]).reshape(1, 3, 1), jnp.arange(6.0).reshape(1, 6, 1)
    for rule, value, gradient in (
        (resize_nearest, [1, 1, 5, 5, 3, 3], [1, 5, 9]),
        (resize_bilinear, [1, 2, 4, 4.5, 3.5, 3], [1.25, 5, 8.75]),
    ):
        y, (dx,) = by_hand(rule, g, x, size=(6,))
        assert_near(y.ravel(), np.array(value, float))
        assert_near(dx.ravel(), np.array(gradient, float), reduced=6)


@pytest.mark.slow
def test_pixels_of_x_that_are_left_out_get_no_gradient() -> None:
    x = normal(0, 1, 9, 1)
    for rule, read in ((resize_nearest, [1, 4, 7]), (resize_bilinear, [1, 4, 7])):
        y, saved = rule.forward(x, size=(3,))
        (dx,) = rule.backward(saved, jnp.ones_like(y))
        np.testing.assert_array_equal(jnp.flatnonzero(dx), read)


def test_the_size_of_x_leaves_it_as_it_is_and_nothing_is_saved() -> None:
    x = normal(0, 1, 3, 2, 2)
    for rule in (resize_nearest, resize_bilinear):
        y, saved = rule.forward(x, size=(3, 2))
        np.testing.assert_array_equal(y, x)
        assert jax.tree.leaves(saved) == []


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_pixel_shuffle_and_its_inverse_are_those_of_torch() -> None:
    def shuffled(torch: Any, x: Any) -> Any:
        return torch.nn.functional.pixel_shuffle(x.movedim(-1, 1), 3).movedim(1, -1)

    def unshuffled(torch: Any, x: Any) -> Any:
        return torch.nn.functional.pixel_unshuffle(x.movedim(-1, 1), 3).movedim(1, -1)

    x = normal(0, 2, 2, 4, 18).astype(jnp.float64)
    assert_agrees_with_torch(pixel_shuffle, shuffled, [x], factor=3)
    x = normal(0, 2, 6, 3, 2).astype(jnp.float64)
    assert_agrees_with_torch(pixel_unshuffle, unshuffled, [x], factor=3)


def test_unshuffled_it_is_as_before() -> None:
    x = normal(0, 2, 3, 2, 8)
    np.testing.assert_array_equal(pixel_unshuffle(pixel_shuffle(x, factor=2), factor=2), x)


@pytest.mark.parametrize("rule", [resize_nearest, resize_bilinear])
def test_an_x_or_a_size_that_does_not_fit_is_refused(rule: Any) -> None:
    x = jnp.ones((2, 3, 4, 1))
    whole = x.astype(jnp.int32)
    assert_refuses(rule, (whole,), TypeError, not_floating(rule.name, "x", "int32"), size=(2, 2))
    for size in (3, (3,), (3, 0), (3, 2.0)):
        message = (
            f"{rule.name}: size must be a tuple of 2 positive integers, one per spatial axis of x, "
            f"got {size!r}."
        )
        assert_refuses(rule, (x,), ValueError, message, size=size)
    message = (
        f"{rule.name}: the spatial axes of x must have entries, got (2, 3, 0, 1). There is nothing "
        "to resize."
    )
    assert_refuses(rule, (x[:, :, :0],), ValueError, message, size=(2, 2))
    message = (
        f"{rule.name}: x must be (B, *spatial, C) with 1 to 3 spatial axes, got (3, 4). Channels "
        "are the last axis; give one example a batch axis of 1."
    )
    assert_refuses(rule, (x[0, :, :, 0],), ValueError, message, size=(2, 2))


@pytest.mark.parametrize("rule", [pixel_shuffle, pixel_unshuffle])
def test_what_is_no_image_and_no_factor_is_refused(rule: Any) -> None:
    x = jnp.ones((2, 4, 4, 4))
    whole = x.astype(jnp.int32)
    assert_refuses(rule, (whole,), TypeError, not_floating(rule.name, "x", "int32"), factor=2)
    message = (
        f"{rule.name}: x must be (B, H, W, C), got (4, 4, 4). Give one image a batch axis of 1."
    )
    assert_refuses(rule, (x[0],), ValueError, message, factor=2)
    for factor in (0, -2, 2.0):
        message = (
            f"{rule.name}: factor must be a positive integer, got {factor!r}. It is the same along "
            "both axes."
        )
        assert_refuses(rule, (x,), ValueError, message, factor=factor)


def test_channels_and_pixels_that_the_factor_does_not_divide_are_refused() -> None:
    message = (
        "pixel_shuffle: the channels of x must be a multiple of factor * factor = 4, got "
        "(1, 2, 2, 6). Channels are the last axis."
    )
    assert_refuses(pixel_shuffle, (jnp.ones((1, 2, 2, 6)),), ValueError, message, factor=2)
    for shape in ((1, 3, 2, 1), (1, 2, 3, 1)):
        message = (
            "pixel_unshuffle: the height and width of x must be multiples of factor = 2, got "
            f"{shape}. Pad or crop it first."
        )
        assert_refuses(pixel_unshuffle, (jnp.ones(shape),), ValueError, message, factor=2)
