"""Pools: peers, ties and nan, windows of every kind, what is saved, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprop import avg_pool, global_avg_pool, global_max_pool, max_pool
from jaxprop.rules.windows import check_windows, laid_back, views
from jaxprop.samples import normal
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.rules.test_every_rule import residual_bytes
from tests.tolerances import assert_near


def gradient(rule: Any, x: jax.Array, g: jax.Array, **options: Any) -> tuple[jax.Array, jax.Array]:
    """A rule's value and cotangent."""
    y, saved = rule.forward(x, **options)
    return y, rule.backward(saved, g)[0]


def double(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64)


def channels_first(x: Any) -> Any:
    return x.movedim(-1, 1)


def channels_last(y: Any) -> Any:
    return y.movedim(1, -1)


@pytest.mark.peers
@pytest.mark.parametrize(
    "axes", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("x64")
def test_max_pool_is_that_of_torch(axes: int) -> None:
    def peer(torch: Any, x: Any) -> Any:
        pool = getattr(torch.nn.functional, f"max_pool{axes}d")
        return channels_last(pool(channels_first(x), kernel_size=3, stride=2, padding=1))

    x = double(normal(0, 2, *(7, 6, 5)[:axes], 3))
    options = {"window": (3,) * axes, "stride": (2,) * axes, "padding": ((1, 1),) * axes}
    assert_agrees_with_torch(max_pool, peer, [x], reduced=27, **options)


@pytest.mark.peers
@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.usefixtures("x64")
def test_avg_pool_is_that_of_torch(count_padding: bool) -> None:
    def peer(torch: Any, x: Any) -> Any:
        pool = torch.nn.functional.avg_pool2d
        y = pool(channels_first(x), (3, 2), (2, 1), (1, 1), count_include_pad=count_padding)
        return channels_last(y)

    options = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 1), (1, 1))}
    x = double(normal(0, 2, 7, 6, 3))
    assert_agrees_with_torch(avg_pool, peer, [x], reduced=6, **options, count_padding=count_padding)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_going_back_is_the_transpose_of_looking_whatever_the_windows() -> None:
    """<views(x), g> = <x, laid_back(g)>, for windows, strides and padding of many kinds."""
    x = double(normal(0, 1, 7, 5, 2))
    for window, stride in (((1, 1), (1, 1)), ((3, 2), (2, 3)), ((4, 5), (3, 1)), ((2, 1), (4, 2))):
        for padding in ("VALID", "SAME", ((window[0] - 1, 0), (0, window[1] - 1))):
            at = check_windows("pool", x, window, stride, padding)
            seen = jnp.stack(list(views(x, at, 0)))
            g = double(normal(1, *seen.shape[1:]))
            back = laid_back(g, at)
            assert back.shape == x.shape
            assert_near(jnp.sum(x * back), jnp.sum(seen * g), reduced=seen.size)


def test_of_entries_that_tie_the_first_gets_g_in_row_major_order() -> None:
    x = jnp.ones((1, 4, 4, 1))
    g = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    options = {"window": (2, 2), "stride": (2, 2), "padding": "VALID"}
    _, dx = gradient(max_pool, x, g, **options)
    expected = np.zeros((4, 4))
    expected[::2, ::2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(dx[0, :, :, 0], expected)
    _, dx = gradient(global_max_pool, x, g[:, 0, 0])
    np.testing.assert_array_equal(jnp.flatnonzero(dx), [0])


def test_a_window_of_minus_infinity_gives_g_to_its_first_entry_and_not_to_padding() -> None:
    x, g = jnp.full((1, 4, 1), -jnp.inf), jnp.array([1.0, 2.0]).reshape(1, 2, 1)
    y, dx = gradient(max_pool, x, g, window=(3,), stride=(3,), padding=((1, 1),))
    np.testing.assert_array_equal(y.ravel(), [-jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(dx.ravel(), [1, 0, 2, 0])


def test_nan_is_the_largest_and_the_first_gets_g() -> None:
    x = jnp.array([1.0, jnp.nan, jnp.nan, jnp.inf, jnp.inf, 2.0]).reshape(1, 6, 1)
    g = jnp.array([1.0, 2.0]).reshape(1, 2, 1)
    y, dx = gradient(max_pool, x, g, window=(4,), stride=(2,), padding="VALID")
    np.testing.assert_array_equal(y.ravel(), [jnp.nan, jnp.nan])
    np.testing.assert_array_equal(dx.ravel(), [0, 1, 2, 0, 0, 0])
    y, dx = gradient(global_max_pool, x, g[:, 0])
    assert jnp.isnan(y).all()
    np.testing.assert_array_equal(dx.ravel(), [0, 1, 0, 0, 0, 0])


@pytest.mark.slow
def test_a_place_takes_the_smallest_integers_that_number_the_window() -> None:
    x = normal(0, 1, 300, 1)
    for window, size in ((128, 1), (129, 2)):
        options = {"window": (window,), "stride": (1,), "padding": "VALID"}
        y, saved = max_pool.forward(x, **options)
        (place,) = jax.tree.leaves(saved)
        assert place.nbytes == size * y.size
        expected = [int(jnp.argmax(x[0, i : i + window, 0])) for i in (0, 100, 171)]
        np.testing.assert_array_equal(place[0, jnp.array([0, 100, 171]), 0], expected)


def test_nothing_but_the_place_is_saved() -> None:
    case = max_pool.cases()[0]
    y, saved = max_pool.forward(*case.args, **case.options)
    (place,) = jax.tree.leaves(saved)
    assert place.dtype == jnp.int8
    assert residual_bytes(max_pool, case) == y.size
    for rule in (avg_pool, global_avg_pool):
        first = rule.cases()[0]
        assert jax.tree.leaves(rule.forward(*first.args, **first.options)[1]) == []


@pytest.mark.slow
def test_every_place_of_a_large_window_can_win() -> None:
    """Places beyond 127 and 32767, for which int8 and int16 are too small."""
    for window in (200, 40000):
        for last in (0, window // 2, window - 1):
            x = jnp.zeros((1, window, 1)).at[0, last].set(1.0)
            _, dx = gradient(global_max_pool, x, jnp.ones((1, 1)))
            np.testing.assert_array_equal(jnp.flatnonzero(dx), [last])


def test_the_mean_of_windows_that_reach_beyond_x_is_of_x_alone_where_padding_does_not_count() -> (
    None
):
    x, options = jnp.ones((1, 4, 1)), {"window": (3,), "stride": (1,), "padding": "SAME"}
    y = avg_pool(x, **options, count_padding=False)
    np.testing.assert_array_equal(y.ravel(), [1, 1, 1, 1])
    assert_near(avg_pool(x, **options).ravel(), jnp.array([2 / 3, 1, 1, 2 / 3]))


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_reduce_window() -> None:
    options = {"window": (3, 3), "stride": (2, 2), "padding": "SAME"}

    def plain(x: jax.Array, start: float, reduce: Any) -> jax.Array:
        shape = (1, 3, 3, 1), (1, 2, 2, 1)
        return lax.reduce_window(x, x.dtype.type(start), reduce, *shape, "SAME")

    def draw(seed: int) -> tuple:
        return (normal(seed, 1, 9, 9, 4).astype(jnp.bfloat16),)

    assert_no_worse(max_pool.bind(**options), lambda x: plain(x, -np.inf, lax.max), draw)
    assert_no_worse(avg_pool.bind(**options), lambda x: plain(x, 0, lax.add) / 9, draw)


X = jnp.ones((2, 5, 4, 3))
FITTING: dict[str, Any] = {"window": (2, 2), "stride": (1, 1), "padding": "VALID"}


@pytest.mark.parametrize("rule", [max_pool, avg_pool])
def test_an_x_that_is_no_batch_of_images_is_refused(rule: Any) -> None:
    whole = X.astype(jnp.int32)
    assert_refuses(rule, (whole,), TypeError, not_floating(rule.name, "x", "int32"), **FITTING)
    for shape in ((4, 3), (1, 1, 1, 1, 1, 1)):
        message = (
            f"{rule.name}: x must be (B, *spatial, C) with 1 to 3 spatial axes, got {shape}. "
            "Channels are the last axis; give one example a batch axis of 1."
        )
        assert_refuses(rule, (jnp.ones(shape),), ValueError, message, **FITTING)


@pytest.mark.parametrize("name", ["window", "stride"])
@pytest.mark.parametrize("value", [2, (2,), (2, 0), (2, 1.5), (1, 2, 2)])
def test_an_option_that_is_not_one_positive_integer_per_axis_is_refused(
    name: str, value: Any
) -> None:
    message = (
        f"max_pool: {name} must be a tuple of 2 positive integers, one per spatial axis of x, got "
        f"{value!r}."
    )
    assert_refuses(max_pool, (X,), ValueError, message, **{**FITTING, name: value})


@pytest.mark.parametrize("padding", ["same", 1, ((0, 0),), ((0, 0), (-1, 0)), ((0, 0), (1, 0.5))])
def test_a_padding_that_is_none_is_refused(padding: Any) -> None:
    message = (
        "avg_pool: padding must be 'SAME', 'VALID' or a tuple of 2 pairs (low, high) of integers "
        f"of at least 0, one per spatial axis of x, got {padding!r}."
    )
    assert_refuses(avg_pool, (X,), ValueError, message, **{**FITTING, "padding": padding})


def test_a_window_of_padding_alone_and_one_that_does_not_fit_are_refused() -> None:
    padding = ((0, 2), (0, 0))
    message = (
        f"max_pool: padding must be less than the window (2, 2) on either side, got {padding}. A "
        "window further out would see no entry of x."
    )
    assert_refuses(max_pool, (X,), ValueError, message, **{**FITTING, "padding": padding})
    message = (
        "max_pool: a window must fit in x and its padding, got one that spans (2, 5) for spatial "
        "axes (5, 4) padded by ((0, 0), (0, 0)). Use a smaller window, or padding 'SAME'."
    )
    assert_refuses(max_pool, (X,), ValueError, message, **{**FITTING, "window": (2, 5)})


@pytest.mark.parametrize("rule", [global_max_pool, global_avg_pool])
def test_a_global_pool_over_nothing_is_refused(rule: Any) -> None:
    message = (
        f"{rule.name}: the spatial axes of x must have entries, got (2, 5, 0, 3). There is nothing "
        "to pool."
    )
    assert_refuses(rule, (X[:, :, :0],), ValueError, message)
    assert_refuses(rule, (X.astype(jnp.int32),), TypeError, not_floating(rule.name, "x", "int32"))
