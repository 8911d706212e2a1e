"""Layers: dense, and rules of one array as layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from tests.subjects import pattern
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", [(5, 3), (1, 3), (2, 4, 3), (3,)])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_is_an_affine_map_and_its_activation(shape: tuple[int, ...], bias: bool) -> None:
    layer = jaxprop.dense(4, jaxprop.tanh, bias=bias)
    x = normal(0, *shape)
    params = {"w": normal(1, 3, 4), "b": normal(2, 4)} if bias else {"w": normal(1, 3, 4)}

    def plain(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["w"] + params.get("b", 0.0))

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        y, saved = layer.forward(params, x)
        y_true, pullback = jax.vjp(plain, params, x)
        by_hand = y, layer.reference(params, x), layer.backward(saved, pattern(y))[:2]
        return by_hand, (y_true, y_true, pullback(pattern(y)))

    by_hand, truth = run(params, x)
    assert_near(by_hand, truth, reduced=30)


def test_dense_has_no_activation_unless_told() -> None:
    layer, x, params = jaxprop.dense(2), normal(0, 5, 3), {"w": normal(1, 3, 2), "b": normal(2, 2)}
    assert_near(layer(params, x), x @ params["w"] + params["b"], reduced=3)


def test_dense_takes_an_activation_that_is_not_elementwise() -> None:
    layer, x, params = jaxprop.dense(4, jaxprop.softmax), normal(0, 5, 3), {"w": normal(1, 3, 4)}
    y, saved = layer.forward(params, x)
    y_true, pullback = jax.vjp(lambda p, x: jax.nn.softmax(x @ p["w"]), params, x)
    assert_near(y, y_true, reduced=4)
    assert_near(layer.backward(saved, pattern(y))[:2], pullback(pattern(y)), reduced=30)


def test_dense_takes_the_options_that_its_activation_was_bound_to() -> None:
    layer = jaxprop.dense(2, jaxprop.leaky_relu.bind(slope=0.5))
    x, params = jnp.array([[1.0, -1.0]]), {"w": jnp.eye(2)}
    y, saved = layer.forward(params, x)
    assert_near(y, jnp.array([[1.0, -0.5]]))
    assert_near(layer.backward(saved, jnp.ones_like(y))[1], jnp.array([[1.0, 0.5]]))


def test_dense_draws_glorot_uniform_weights_and_zero_biases() -> None:
    params = jaxprop.dense(300).init(jax.random.key(0), (8, 100))
    limit = (6 / (100 + 300)) ** 0.5
    w = np.asarray(params["w"])
    assert w.shape == (100, 300)
    assert np.abs(w).max() <= limit
    assert np.abs(w).max() > 0.99 * limit
    np.testing.assert_array_equal(params["b"], np.zeros(300))


def test_dense_without_a_bias_has_weights_alone() -> None:
    layer = jaxprop.dense(4, bias=False)
    params = layer.init(jax.random.key(0), (8, 3))
    assert set(params) == {"w"}
    y, saved = layer.forward(params, jnp.ones((8, 3), jnp.float32))
    assert set(layer.backward(saved, y)[0]) == {"w"}


def test_dense_draws_its_weights_as_it_is_told() -> None:
    asked = []

    def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        asked.append((shape, dtype))
        return jnp.ones(shape, dtype)

    params = jaxprop.dense(4, weights=ones).init(jax.random.key(0), (2, 7, 3), jnp.float16)
    assert asked == [((3, 4), jnp.float16)]
    np.testing.assert_array_equal(params["w"], np.ones((3, 4)))
    assert params["w"].dtype == params["b"].dtype == jnp.float16


def test_init_is_a_function_of_its_key() -> None:
    layer = jaxprop.dense(4)
    first, again, other = (layer.init(jax.random.key(seed), (2, 3)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["w"], again["w"])
    assert not np.array_equal(first["w"], other["w"])


@pytest.mark.parametrize("units", [0, -1, 2.0, True, "4", None])
def test_dense_refuses_a_width_that_is_no_positive_integer(units: Any) -> None:
    with pytest.raises(ValueError, match="units") as refused:
        jaxprop.dense(units)
    assert str(refused.value) == f"dense: units must be a positive integer, got {units!r}."


@pytest.mark.parametrize("make", ["dense", "elementwise"])
def test_an_activation_that_is_no_rule_of_one_array_is_refused(make: str) -> None:
    def layer(activation: Any) -> jaxprop.Layer:
        return (
            jaxprop.elementwise(activation)
            if make == "elementwise"
            else jaxprop.dense(4, activation)
        )

    with pytest.raises(TypeError, match=rf"^{make}: the activation must be a Rule, got function"):
        layer(lambda a: a)
    with pytest.raises(TypeError, match=r"Give one such as jaxprop\.relu, or make one with"):
        layer(jnp.tanh)
    with pytest.raises(TypeError, match=rf"^{make}: .* a rule of one array, got linear\(x, w, b="):
        layer(jaxprop.linear)
    with pytest.raises(TypeError, match="a rule with more arrays needs a layer of its own"):
        layer(jaxprop.mean_squared_error)


def test_dense_refuses_an_x_that_its_weights_do_not_fit() -> None:
    layer = jaxprop.dense(4)
    params = layer.init(jax.random.key(0), (2, 3))
    with pytest.raises(ValueError, match=r"^linear: x must be .*got x \(2, 5\) and w \(3, 4\)"):
        layer(params, jnp.ones((2, 5), jnp.float32))


@pytest.mark.parametrize("rule", [jaxprop.relu, jaxprop.softmax, jaxprop.silu])
def test_a_rule_of_one_array_as_a_layer_is_the_rule(rule: jaxprop.Rule) -> None:
    layer, x, key = jaxprop.elementwise(rule), normal(0, 4, 3), jax.random.key(0)
    assert layer.init(key, x.shape) == {}
    y, saved = layer.forward({}, x, key)
    dparams, dx, dkey = layer.backward(saved, pattern(y))
    assert_near(y, rule(x))
    assert_near(layer.reference({}, x), rule.reference(x))
    assert_near(dx, rule.backward(rule.forward(x)[1], pattern(y))[0])
    assert (dparams, dkey) == (None, None)


def test_an_activation_whose_options_are_not_fixed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^dense: .* a rule of one array, got gelu.* with bind"):
        jaxprop.dense(4, jaxprop.gelu)
    gelu = jaxprop.gelu.bind(approximate=True)
    assert jaxprop.dense(4, gelu).init(jax.random.key(0), (2, 3))["w"].shape == (3, 4)


def test_a_layer_is_called_after_what_it_does() -> None:
    assert jaxprop.elementwise(jaxprop.softplus).name == "softplus"
    assert jaxprop.dense(3).name == "dense"
    assert repr(jaxprop.dense(3)) == "dense(params, x, key=None)"
    assert "Forward    y = log(1 + exp(x))" in jaxprop.elementwise(jaxprop.softplus).__doc__


def test_the_quantities_of_dense_run_one_after_the_other_are_the_layer() -> None:
    layer, x = jaxprop.dense(4, jaxprop.tanh), normal(0, 5, 3)
    params = {"w": normal(1, 3, 4), "b": normal(2, 4)}
    assert list(layer.quantities) == ["a", "h"]
    a, saved_a = layer.quantities["a"].forward(params, x)
    h, saved_h = layer.quantities["h"].forward({}, a)
    assert_near(a, x @ params["w"] + params["b"], reduced=3)
    assert_near(h, layer(params, x))
    _, da, _ = layer.quantities["h"].backward(saved_h, pattern(h))
    dparams, dx, _ = layer.quantities["a"].backward(saved_a, da)
    whole = layer.backward(layer.forward(params, x)[1], pattern(h))
    assert_near((dparams, dx), whole[:2])
    assert_near(layer.quantities["a"].reference(params, x), a)


def test_layers_compare_by_identity() -> None:
    """A network is built once and reused: two that look alike are two to jit."""
    first, second = jaxprop.dense(3), jaxprop.dense(3)
    assert first != second
    assert len({first, second, first}) == 2


NORMS = {
    "layer_norm": jaxprop.layer_norm.bind(eps=1e-5),
    "rms_norm": jaxprop.rms_norm.bind(eps=1e-5),
    "group_norm": jaxprop.group_norm.bind(groups=2, eps=1e-5),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_as_a_layer_is_the_norm_with_its_parameters_by_name(name: str) -> None:
    norm, x = NORMS[name], normal(0, 2, 3, 4)
    layer = jaxprop.normalisation(norm)
    names = ("gamma",) if name == "rms_norm" else ("gamma", "beta")
    start = layer.init(jax.random.key(0), x.shape)
    assert {k: float(v[0]) for k, v in start.items()} == dict(zip(names, (1.0, 0.0), strict=False))
    params = {k: normal(seed, 4) for seed, k in enumerate(names, start=1)}
    y, saved = layer.forward(params, x)
    y_true, of_norm = norm.forward(x, *params.values())
    dx, *dparams = norm.backward(of_norm, pattern(y))
    assert_near(y, y_true)
    assert_near(layer.reference(params, x), norm.reference(x, *params.values()))
    assert_near(layer.backward(saved, pattern(y))[:2], (dict(zip(names, dparams, strict=True)), dx))


@pytest.mark.parametrize("norm", [jaxprop.batch_norm_eval, jaxprop.relu, jnp.mean])
def test_a_rule_that_is_no_norm_is_refused(norm: Any) -> None:
    with pytest.raises(TypeError, match=r"^normalisation: the norm must be a Rule of \(x, gamma\)"):
        jaxprop.normalisation(norm)


def test_a_norm_whose_options_are_not_fixed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^normalisation: .*eps.* Fix its options with bind"):
        jaxprop.normalisation(jaxprop.layer_norm)
