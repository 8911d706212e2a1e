"""Layers for images: convolution and flatten, against plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop
from jaxprop.checking.compiling import quickly
from tests.subjects import pattern
from tests.test_layers import normal
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "every option": {
        "stride": (2, 1),
        "padding": ((1, 0), (2, 1)),
        "dilation": (1, 2),
        "groups": 2,
        "bias": False,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_convolution_is_an_affine_map_of_windows_and_its_activation(name: str) -> None:
    options = OPTIONS[name]
    layer, x = jaxprop.convolution(4, (3, 2), jaxprop.tanh, **options), normal(0, 2, 5, 6, 2)
    groups, bias = options.get("groups", 1), options.get("bias", True)
    params = {"w": normal(1, 3, 2, 2 // groups, 4)} | ({"b": normal(2, 4)} if bias else {})

    def plain(params: Any, x: jax.Array) -> jax.Array:
        a = lax.conv_general_dilated(
            x,
            params["w"],
            options.get("stride", (1, 1)),
            options.get("padding", "SAME"),
            rhs_dilation=options.get("dilation"),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.tanh(a + params.get("b", 0.0))

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        y, saved = layer.forward(params, x)
        y_true, pullback = jax.vjp(plain, params, x)
        by_hand = y, layer.reference(params, x), layer.backward(saved, pattern(y))[:2]
        return by_hand, (y_true, y_true, pullback(pattern(y)))

    by_hand, truth = run(params, x)
    assert_near(by_hand, truth, reduced=60)


@pytest.mark.slow
def test_convolution_draws_glorot_uniform_weights_by_what_a_window_sees() -> None:
    params = jaxprop.convolution(40, (3, 3)).init(jax.random.key(0), (8, 5, 5, 30))
    limit = (6 / (9 * 30 + 9 * 40)) ** 0.5
    w = np.asarray(params["w"])
    assert w.shape == (3, 3, 30, 40)
    assert 0.99 * limit < np.abs(w).max() <= limit
    np.testing.assert_array_equal(params["b"], np.zeros(40))
    grouped = jaxprop.convolution(40, (3,), groups=2, bias=False)
    assert jax.tree.map(jnp.shape, grouped.init(jax.random.key(0), (8, 5, 30))) == {
        "w": (3, 15, 40)
    }


def test_convolution_draws_its_weights_as_it_is_told() -> None:
    layer = jaxprop.convolution(2, (3,), weights=lambda key, shape, dtype: jnp.ones(shape, dtype))
    np.testing.assert_array_equal(
        layer.init(jax.random.key(0), (1, 4, 3), jnp.float32)["w"], np.ones((3, 3, 2))
    )


def test_the_quantities_of_convolution_run_one_after_the_other_are_the_layer() -> None:
    layer, x = jaxprop.convolution(4, (2, 2), jaxprop.tanh), normal(0, 2, 3, 3, 2)
    params = {"w": normal(1, 2, 2, 2, 4), "b": normal(2, 4)}
    assert list(layer.quantities) == ["a", "h"]
    a, saved_a = layer.quantities["a"].forward(params, x)
    h, saved_h = layer.quantities["h"].forward({}, a)
    assert_near(h, layer(params, x))
    _, da, _ = layer.quantities["h"].backward(saved_h, pattern(h))
    dparams, dx, _ = layer.quantities["a"].backward(saved_a, da)
    assert_near((dparams, dx), layer.backward(layer.forward(params, x)[1], pattern(h))[:2])


@pytest.mark.parametrize(
    ("channels", "window", "message"),
    [
        (0, (3,), "convolution: channels must be a positive integer, got 0."),
        (True, (3,), "convolution: channels must be a positive integer, got True."),
        (4, (3, 0), "one per spatial axis, got (3, 0). Give (3, 3) for images."),
        (4, 3, "one per spatial axis, got 3. Give (3, 3) for images."),
        (4, (), "one per spatial axis, got (). Give (3, 3) for images."),
    ],
)
def test_sizes_that_cannot_be_are_refused(channels: Any, window: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^convolution: ") as refused:
        jaxprop.convolution(channels, window)
    assert str(refused.value).endswith(message)


def test_an_activation_that_is_no_rule_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^convolution: the activation must be a Rule, got"):
        jaxprop.convolution(4, (3,), jnp.tanh)


def test_flatten_puts_an_example_into_a_row_and_its_gradient_back() -> None:
    layer, x = jaxprop.flatten(), normal(0, 2, 3, 4, 5)
    assert layer.init(jax.random.key(0), x.shape) == {}
    y, saved = layer.forward({}, x)
    np.testing.assert_array_equal(y, x.reshape(2, 60))
    dparams, dx, _ = layer.backward(saved, pattern(y))
    assert dparams is None
    np.testing.assert_array_equal(dx, pattern(y).reshape(x.shape))
    with pytest.raises(ValueError, match=r"^flatten: x must be \(B, \.\.\.\), got a scalar\."):
        layer({}, jnp.ones(()))


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: jaxprop.convolution(3, (2, 2), jaxprop.tanh)])
def test_the_checker_passes(make: Any) -> None:
    layer = make()
    x = normal(0, 2, 3, 4, 2).astype(jnp.float32)
    params = {"w": normal(1, 2, 2, 2, 3).astype(jnp.float32), "b": jnp.ones(3, jnp.float32)}
    report = jaxprop.check(layer, params, x)
    assert report.verdict == "PASS", str(report)
