"""A chain is Algorithms 6.3 and 6.4: what `jax.grad` gives for the same network in plain JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.composition import add_cotangents, split
from tests.subjects import pattern
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

GELU = jaxprop.gelu.bind(approximate=True)

# Each activation as JAX has it: nothing here runs a rule.
PLAIN: dict[jaxprop.Rule, Callable] = {
    jaxprop.identity: lambda a: a,
    jaxprop.relu: jax.nn.relu,
    jaxprop.leaky_relu: jax.nn.leaky_relu,
    jaxprop.sigmoid: jax.nn.sigmoid,
    jaxprop.tanh: jnp.tanh,
    jaxprop.softplus: jax.nn.softplus,
    jaxprop.silu: jax.nn.silu,
    GELU: jax.nn.gelu,
    jaxprop.softmax: jax.nn.softmax,
}

# Widths after the input's, and the activation of each layer.
NETWORKS: dict[str, list[tuple[int, jaxprop.Rule]]] = {
    "one layer": [(2, jaxprop.identity)],
    "two layers": [(5, jaxprop.tanh), (2, jaxprop.identity)],
    "narrow in the middle": [(4, jaxprop.relu), (1, jaxprop.sigmoid), (3, jaxprop.softmax)],
    "softmax in every layer": [(4, jaxprop.softmax), (5, jaxprop.softmax), (3, jaxprop.softmax)],
    "all the others": [
        (7, jaxprop.leaky_relu),
        (6, jaxprop.silu),
        (5, GELU),
        (4, jaxprop.softplus),
        (3, jaxprop.relu),
        (2, jaxprop.tanh),
    ],
    "one unit wide": [(1, jaxprop.tanh), (1, jaxprop.softplus), (1, jaxprop.identity)],
}
SHAPES = {"batch": (6, 3), "batch of one": (1, 3), "leading axes": (2, 4, 3), "vector": (3,)}


def network_of(name: str) -> jaxprop.Layer:
    layers = [jaxprop.dense(units, activation) for units, activation in NETWORKS[name]]
    return jaxprop.chain(**{f"layer_{k}": layer for k, layer in enumerate(layers, start=1)})


def plain_network(name: str, params: Any, x: jax.Array) -> jax.Array:
    h = x
    for k, (_, activation) in enumerate(NETWORKS[name], start=1):
        theta = params[f"layer_{k}"]
        h = PLAIN[activation](h @ theta["w"] + theta["b"])
    return h


def parameters(network: jaxprop.Layer, x_shape: tuple[int, ...]) -> Any:
    """Random ones, biases too, which `init` sets to zero."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x_shape))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)


def normal(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape))


def by_hand(network: jaxprop.Layer, params: Any, x: jax.Array) -> tuple:
    """The output, and the cotangents of params, x and key, by forward and backward."""
    y, saved = network.forward(params, x)
    return y, network.backward(saved, pattern(y))


def by_jax(function: Callable, params: Any, x: jax.Array) -> tuple:
    """The output, and the cotangents of params and x, by automatic differentiation."""
    y, pullback = jax.vjp(function, params, x)
    return y, pullback(pattern(y))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, "batch") for name in NETWORKS),
        ("narrow in the middle", "batch of one"),
        ("narrow in the middle", "leading axes"),
        ("narrow in the middle", "vector"),
        ("one layer", "batch of one"),
    ],
)
def test_value_and_cotangents_are_those_of_the_network_in_plain_jax(name: str, shape: str) -> None:
    """Of forward and backward by hand, and through JAX of the chain and of its reference."""
    network, x = network_of(name), normal(SHAPES[shape])

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        truth = by_jax(lambda params, x: plain_network(name, params, x), params, x)
        others = by_jax(network, params, x), by_jax(network.reference, params, x)
        return by_hand(network, params, x), others, truth

    (y, (*cotangents, dkey)), others, truth = run(parameters(network, x.shape), x)
    assert_near((y, tuple(cotangents)), truth, reduced=64)
    assert_near(others, (truth, truth), reduced=64)
    assert dkey is None


def test_a_rule_of_one_array_is_a_layer_without_parameters() -> None:
    """Affine maps and activations as layers of their own give the same as together."""
    together = network_of("narrow in the middle")
    apart = jaxprop.chain(
        layer_1=jaxprop.dense(4),
        relu=jaxprop.relu,
        layer_2=jaxprop.dense(1),
        sigmoid=jaxprop.sigmoid,
        layer_3=jaxprop.dense(3),
        softmax=jaxprop.softmax,
    )
    x = normal((6, 3))
    params = parameters(together, x.shape)
    all_params = params | {"relu": {}, "sigmoid": {}, "softmax": {}}
    y, (dparams, dx, _) = quickly(partial(by_hand, apart))(all_params, x)
    y_true, (dparams_true, dx_true, _) = quickly(partial(by_hand, together))(params, x)
    assert_near((y, dx), (y_true, dx_true))
    assert_near({name: dparams[name] for name in params}, dparams_true)
    assert dparams["relu"] == {}


def test_a_chain_is_a_layer_of_a_chain() -> None:
    inner = jaxprop.chain(a=jaxprop.dense(4, jaxprop.relu), b=jaxprop.dense(1, jaxprop.sigmoid))
    nested = jaxprop.chain(block=inner, layer_3=jaxprop.dense(3, jaxprop.softmax))
    flat = network_of("narrow in the middle")
    x = normal((6, 3))
    params = parameters(flat, x.shape)
    block = {"a": params["layer_1"], "b": params["layer_2"]}
    nested_params = {"block": block, "layer_3": params["layer_3"]}
    y, (dparams, dx, _) = quickly(partial(by_hand, nested))(nested_params, x)
    y_true, (dparams_true, dx_true, _) = quickly(partial(by_hand, flat))(params, x)
    assert_near((y, dx), (y_true, dx_true))
    assert_near(dparams["block"], {"a": dparams_true["layer_1"], "b": dparams_true["layer_2"]})
    assert_near(dparams["layer_3"], dparams_true["layer_3"])


def recording(name: str, log: list[str]) -> jaxprop.Layer:
    """A layer y = 2 * x that writes down when it runs."""

    def double(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return 2 * x

    def forward(params: Any, x: jax.Array, key: jax.Array | None) -> tuple:
        log.append(f"{name} forward")
        return 2 * x, ()

    def backward(res: tuple, g: jax.Array) -> tuple:
        log.append(f"{name} backward")
        return None, 2 * g, None

    return jaxprop.Layer(double, forward, backward, init=lambda key, x_shape, dtype: {})


def test_backwards_run_in_reverse_order() -> None:
    log: list[str] = []
    network = jaxprop.chain(**{name: recording(name, log) for name in ("a", "b", "c")})
    x = jnp.ones((2, 3))
    y, saved = network.forward({"a": {}, "b": {}, "c": {}}, x)
    _, dx, _ = network.backward(saved, jnp.ones_like(y))
    assert_near((y, dx), (8 * x, 8 * x))
    forwards, backwards = log[:3], log[3:]
    assert forwards == ["a forward", "b forward", "c forward"]
    assert backwards == ["c backward", "b backward", "a backward"]


def blocking() -> jaxprop.Layer:
    """A layer that hands no gradient on."""

    def blocking(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return jax.lax.stop_gradient(x)

    return jaxprop.Layer(
        blocking,
        lambda params, x, key: (x, ()),
        lambda res, g: (None, None, None),
        init=lambda key, x_shape, dtype: {},
    )


def test_below_a_layer_that_hands_no_gradient_on_every_gradient_is_zero() -> None:
    network = jaxprop.chain(below=jaxprop.dense(4), block=blocking(), above=jaxprop.dense(2))
    x = normal((5, 3))
    params = parameters(network, x.shape)
    y, (dparams, dx, _) = quickly(partial(by_hand, network))(params, x)
    truth = quickly(partial(by_jax, network.reference))(params, x)
    assert_near((y, (dparams, dx)), truth, reduced=64)
    assert not np.any(dx)
    assert np.any(dparams["above"]["w"])


def test_unnamed_layers_are_named_by_kind_and_position_before_the_named() -> None:
    block = jaxprop.chain(jaxprop.dense(2))
    network = jaxprop.chain(jaxprop.dense(4), jaxprop.relu, block, output=jaxprop.dense(3))
    assert list(network.layers) == ["dense_1", "relu_2", "chain_3", "output"]
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (5, 3)))
    assert set(params) == {"dense_1", "relu_2", "chain_3", "output"}
    assert set(params["chain_3"]) == {"dense_1"}


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="two layers") as refused:
        jaxprop.chain(jaxprop.dense(4), dense_1=jaxprop.dense(3))
    assert str(refused.value) == ("chain: two layers are called 'dense_1'. Give one another name.")


def test_a_chain_of_no_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^chain: needs at least one layer, got none\.$"):
        jaxprop.chain()


@pytest.mark.parametrize("layer", [3, jnp.tanh, "relu", None])
def test_what_is_no_layer_is_refused_by_its_place(layer: Any) -> None:
    remedy = r"Give dense\(\.\.\.\), chain\(\.\.\.\) or a rule such as relu\."
    kind = type(layer).__name__
    must = "must be a Layer or a Rule of one array"
    with pytest.raises(TypeError, match=rf"^chain: the argument at position 2 {must}, got {kind}"):
        jaxprop.chain(jaxprop.relu, layer)
    with pytest.raises(TypeError, match=rf"^chain: hidden {must}, got {kind}\. {remedy}$"):
        jaxprop.chain(jaxprop.relu, hidden=layer)


def test_a_rule_of_several_arrays_is_no_layer() -> None:
    with pytest.raises(TypeError, match="must be a rule of one array, got linear") as refused:
        jaxprop.chain(jaxprop.linear)
    assert "bind(...)" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda params: {"hidden": params["hidden"]}, "['hidden']"),
        (lambda params: params | {"extra": {}}, "['extra', 'hidden', 'output']"),
        (lambda params: {}, "[]"),
        (lambda params: list(params.values()), "list"),
        (lambda params: (), "tuple"),
    ],
)
def test_params_that_are_not_the_layers_are_refused(change: Callable, got: str) -> None:
    network = jaxprop.chain(hidden=jaxprop.dense(4), output=jaxprop.dense(2))
    x = normal((5, 3))
    params = change(parameters(network, x.shape))
    message = (
        f"chain: params must be a dict with the layers ['hidden', 'output'], got {got}. Make them "
        "with init(key, x_shape)."
    )
    for function in (network, network.forward, network.reference):
        with pytest.raises(ValueError, match="chain: params") as refused:
            function(params, x)
        assert str(refused.value) == message


def test_adding_cotangents_takes_none_for_zero_at_a_leaf_or_for_a_tree() -> None:
    one, two = jnp.ones(2), jnp.full(2, 2.0)
    tree = {"w": one, "b": None, "c": two}
    other = {"w": two, "b": one, "c": None}
    assert add_cotangents(None, None) is None
    assert add_cotangents(tree, None) is tree
    assert add_cotangents(None, tree) is tree
    assert_near(add_cotangents(one, two), jnp.full(2, 3.0))
    total = add_cotangents(tree, other)
    assert_near(total, {"w": jnp.full(2, 3.0), "b": one, "c": two})
    assert add_cotangents({"w": None}, {"w": None}) == {"w": None}


def noise() -> jaxprop.Layer:
    """A layer that adds noise made from its key, and nothing without one."""

    def noise(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return x if key is None else x + jax.random.normal(key, x.shape, x.dtype)

    return jaxprop.Layer(
        noise,
        lambda params, x, key: (noise(params, x, key), ()),
        lambda res, g: (None, g, None),
        init=lambda key, x_shape, dtype: {},
    )


def test_the_key_of_a_layer_depends_on_its_position_alone() -> None:
    x, key = jnp.zeros((2, 3)), jax.random.key(5)
    short = jaxprop.chain(a=jaxprop.identity, b=noise())
    renamed = jaxprop.chain(x=jaxprop.identity, y=noise(), z=jaxprop.identity)
    expected = jax.random.normal(jax.random.fold_in(key, 1), x.shape, x.dtype)
    for network in (short, renamed):
        params = network.init(key, x.shape)
        for function in (network, network.reference, lambda *a: network.forward(*a)[0]):  # noqa: B023
            assert_near(function(params, x, key), expected)


def test_layers_at_different_positions_get_different_keys() -> None:
    keys = split(jax.random.key(0), {"a": noise(), "b": noise(), "c": noise()})
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_without_a_key_no_layer_gets_one() -> None:
    x = normal((2, 3))
    network = jaxprop.chain(noise(), jaxprop.chain(noise(), noise()))
    params = network.init(jax.random.key(0), x.shape)
    assert split(None, network.layers) == [None, None]
    assert_near(network(params, x), x)
    assert_near(network.reference(params, x), x)
    assert not np.array_equal(network(params, x, jax.random.key(0)), x)


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float64",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
    ],
)
def test_outputs_and_cotangents_have_the_dtypes_of_their_primals(dtype: str) -> None:
    """Parameters in float32 beside x of any dtype, as in mixed precision, and in x's dtype."""
    network = network_of("two layers")
    exact = parameters(network, (6, 3))
    x, name = normal((6, 3)).astype(dtype), "two layers"
    for params_dtype in ("float32", dtype):
        params = jax.tree.map(lambda p, kind=params_dtype: p.astype(kind), exact)
        y, (dparams, dx, _) = quickly(partial(by_hand, network))(params, x)
        assert y.dtype == dx.dtype == dtype
        assert {leaf.dtype.name for leaf in jax.tree.leaves(dparams)} == {params_dtype}
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), (params, x))
        truth = quickly(partial(by_jax, lambda p, x: plain_network(name, p, x)))(*wide)
        lowest = min(dtype, params_dtype, key=lambda kind: -float(jnp.finfo(kind).eps))
        assert_near((y, (dparams, dx)), truth, lowest, reduced=64)


def test_init_makes_parameters_of_the_shapes_that_the_layers_before_decide() -> None:
    network, key = network_of("narrow in the middle"), jax.random.key(0)
    params = jax.eval_shape(lambda: network.init(key, (10, 3), jnp.bfloat16))
    for k, (n_in, n_out) in enumerate([(3, 4), (4, 1), (1, 3)], start=1):
        assert params[f"layer_{k}"]["w"].shape == (n_in, n_out)
        assert params[f"layer_{k}"]["b"].shape == (n_out,)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    params = jax.eval_shape(lambda: network.init(key, (10, 3)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_init_computes_no_activations() -> None:
    """It asks for shapes alone: a batch too big for any memory costs nothing."""
    network = network_of("two layers")
    params = network.init(jax.random.key(0), (10**12, 3))
    assert params["layer_2"]["w"].shape == (5, 2)


def test_init_gives_the_layer_at_each_position_its_own_key() -> None:
    same = jaxprop.chain(a=jaxprop.dense(3), b=jaxprop.dense(3))
    key = jax.random.key(3)
    params = same.init(key, (2, 3))
    assert not np.array_equal(params["a"]["w"], params["b"]["w"])
    alone = jaxprop.dense(3).init(jax.random.fold_in(key, 1), (2, 3))
    np.testing.assert_array_equal(params["b"]["w"], alone["w"])


def test_an_empty_batch_has_zero_parameter_gradients() -> None:
    network, x = network_of("two layers"), jnp.zeros((0, 3))
    params = parameters(network, x.shape)
    y, (dparams, dx, _) = quickly(partial(by_hand, network))(params, x)
    assert y.shape == (0, 2)
    assert dx.shape == (0, 3)
    assert_near(dparams, jax.tree.map(jnp.zeros_like, params))
