"""residuals, repeat, reversible, checkpointed: against plain JAX, and what each saves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Layer
from jaxprop.checking.compiling import quickly
from jaxprop.structure import keys_of
from tests.subjects import pattern
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

DEPTH = 3


def block(width: int = 4) -> Layer:
    return jaxprop.chain(a=jaxprop.dense(5, jaxprop.tanh), b=jaxprop.dense(width))


def plain_block(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["a"]["w"] + p["a"]["b"]) @ p["b"]["w"] + p["b"]["b"]


def norm_layer() -> Layer:
    return jaxprop.normalisation(jaxprop.layer_norm.bind(eps=1e-5))


def plain_norm(p: Any, x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    inv_std = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
    return p["gamma"] * inv_std * centred + p["beta"]


def at(params: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], params)


def plain_stack(p: Any, x: jax.Array) -> jax.Array:
    for k in range(DEPTH):
        x = x + plain_block(at(p, k), x)
    return x


def plain_reversible(p: Any, x: jax.Array) -> jax.Array:
    x1, x2 = jnp.split(x, 2, axis=-1)
    for k in range(DEPTH):
        x1 = x1 + plain_block(at(p["f"], k), x2)
        x2 = x2 + plain_block(at(p["g"], k), x1)
    return jnp.concatenate([x1, x2], axis=-1)


def noise() -> Layer:
    """A layer that multiplies by 1 and noise made from its key, and by 1 without one."""

    def noise(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return x * scale(key, x)

    def scale(key: jax.Array | None, x: jax.Array) -> jax.Array:
        return jnp.ones_like(x) if key is None else 1 + jax.random.normal(key, x.shape, x.dtype)

    def forward(params: Any, x: jax.Array, key: jax.Array | None) -> tuple:
        return noise(params, x, key), scale(key, x)

    def backward(res: jax.Array, g: jax.Array) -> tuple:
        return None, g * res, None

    return Layer(noise, forward, backward, init=lambda key, x_shape, dtype=None: {})


NETWORKS: dict[str, tuple[Callable[[], Layer], Callable]] = {
    "residual": (lambda: jaxprop.residual(block()), lambda p, x: x + plain_block(p, x)),
    "pre_norm": (
        lambda: jaxprop.pre_norm(block(), norm_layer()),
        lambda p, x: x + plain_block(p["branch"], plain_norm(p["norm"], x)),
    ),
    "post_norm": (
        lambda: jaxprop.post_norm(block(), norm_layer()),
        lambda p, x: plain_norm(p["norm"], x + plain_block(p["branch"], x)),
    ),
    "repeat": (lambda: jaxprop.repeat(jaxprop.residual(block()), DEPTH), plain_stack),
    "reversible": (lambda: jaxprop.reversible(block(2), block(2), DEPTH), plain_reversible),
    "checkpointed": (lambda: jaxprop.checkpointed(block()), plain_block),
    "repeat of checkpointed": (
        lambda: jaxprop.repeat(jaxprop.checkpointed(jaxprop.residual(block())), DEPTH),
        plain_stack,
    ),
    "no parameters": (
        lambda: jaxprop.repeat(jaxprop.tanh, DEPTH),
        lambda p, x: jnp.tanh(jnp.tanh(jnp.tanh(x))),
    ),
}
X = np.random.default_rng(1).normal(size=(3, 4))


def parameters(network: Layer) -> Any:
    """Random ones, biases too, of the shapes that init makes."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), X.shape))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)


def by_hand(network: Layer, params: Any, x: jax.Array, key: jax.Array | None = None) -> tuple:
    y, saved = network.forward(params, x, key)
    dparams, dx, _ = network.backward(saved, pattern(y))
    return y, (dparams, dx)


def by_jax(function: Callable, params: Any, x: jax.Array) -> tuple:
    y, pullback = jax.vjp(function, params, x)
    return y, pullback(pattern(y))


SLOW = {"no parameters", "repeat of checkpointed", "pre_norm"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS],
)
def test_value_and_cotangents_are_those_of_the_network_in_plain_jax(name: str) -> None:
    """Of forward and backward by hand, of the call, and of the reference."""
    make, plain = NETWORKS[name]
    network = make()

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        others = by_jax(network, params, x), by_jax(network.reference, params, x)
        return by_hand(network, params, x), others, by_jax(plain, params, x)

    got, others, truth = run(parameters(network), jnp.asarray(X))
    assert_near(got, truth, reduced=64)
    assert_near(others, (truth, truth), reduced=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_are_those_of_the_network_in_plain_jax(name: str) -> None:
    make, plain = NETWORKS[name]
    network = make()

    def second(function: Callable, params: Any, x: jax.Array) -> Any:
        def slope(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(jax.grad(lambda x: jnp.sum(jnp.sin(function(params, x))))(x)))

        def gradient(x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: jnp.sum(jnp.sin(function(params, x))))(x)

        return jax.grad(slope)(x), jax.jvp(gradient, (x,), (jnp.cos(x),))[1]

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        return second(network, params, x), second(plain, params, x)

    got, truth = run(parameters(network), jnp.asarray(X))
    assert_near(got, truth, reduced=256)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "checkpointed", "repeat", "reversible"])
def test_a_key_reaches_the_layers_and_backward_sees_the_same_noise(name: str) -> None:
    noisy = {
        "residual": lambda: jaxprop.residual(noise()),
        "checkpointed": lambda: jaxprop.checkpointed(noise()),
        "repeat": lambda: jaxprop.repeat(noise(), DEPTH),
        "reversible": lambda: jaxprop.reversible(noise(), noise(), DEPTH),
    }[name]()
    key, x = jax.random.key(3), jnp.asarray(X)
    truth = by_jax(lambda p, x: noisy.reference(p, x, key), parameters(noisy), x)
    assert_near(by_hand(noisy, parameters(noisy), x, key), truth, reduced=64)
    without = noisy.reference(parameters(noisy), x)
    assert not np.allclose(truth[0], without)


def blocking() -> Layer:
    """A layer that hands no gradient on."""

    def blocking(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return jax.lax.stop_gradient(x)

    return Layer(
        blocking,
        lambda params, x, key: (x, ()),
        lambda res, g: (None, None, None),
        init=lambda key, x_shape, dtype=None: {},
    )


def test_a_layer_that_hands_no_gradient_on_has_the_gradient_0() -> None:
    x = jnp.asarray(X)
    nothing = jnp.zeros_like(x)
    for network, dx in {
        jaxprop.residual(blocking()): pattern(x),
        jaxprop.repeat(blocking(), DEPTH): nothing,
        jaxprop.reversible(blocking(), blocking(), DEPTH): pattern(x),
    }.items():
        _, (_, found) = by_hand(network, parameters(network), x)
        assert_near(found, dx)


def test_each_repetition_has_a_key_of_its_own_that_its_position_gives() -> None:
    key, x = jax.random.key(3), jnp.asarray(X)
    truth = x
    for k in range(DEPTH):
        truth = noise().reference({}, truth, jax.random.fold_in(key, k))
    assert_near(jaxprop.repeat(noise(), DEPTH).reference({}, x, key), truth)
    assert keys_of(None, DEPTH) is None


def test_init_gives_each_repetition_parameters_of_its_own() -> None:
    network = jaxprop.repeat(jaxprop.dense(4), DEPTH)
    w = network.init(jax.random.key(0), X.shape)["w"]
    assert w.shape == (DEPTH, 4, 4)
    assert not np.allclose(w[0], w[1])
    one = jaxprop.dense(4).init(jax.random.fold_in(jax.random.key(0), 1), X.shape)["w"]
    assert_near(w[1], one)


def test_residual_and_checkpointed_have_the_parameters_and_parts_of_what_they_wrap() -> None:
    for wrap in (jaxprop.residual, jaxprop.checkpointed):
        assert set(wrap(block()).layers) == {"a", "b"}
        params = jax.eval_shape(lambda wrap=wrap: wrap(block()).init(jax.random.key(0), X.shape))
        assert set(params) == {"a", "b"}


def saved_sizes(network: Layer) -> list[int]:
    """The sizes of all arrays saved that are no parameters, largest first."""
    params, x = parameters(network), jnp.asarray(X)
    taken = {id(leaf) for leaf in jax.tree.leaves(params)}
    _, saved = network.forward(params, x)
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(saved)}
    return sorted((leaf.size for key, leaf in kept.items() if key not in taken), reverse=True)


def test_repeat_copies_no_parameters_into_its_residuals() -> None:
    """Of each repetition x and tanh(a), and the input of the second layer, which is that."""
    hidden, x = DEPTH * 3 * 5, DEPTH * 3 * 4
    assert saved_sizes(NETWORKS["repeat"][0]()) in ([hidden, x], [hidden, hidden, x])
    assert saved_sizes(NETWORKS["repeat of checkpointed"][0]()) == [x]


def test_what_reversible_saves_does_not_grow_with_depth() -> None:
    for depth in (1, 5):
        assert saved_sizes(jaxprop.reversible(block(2), block(2), depth)) == [6, 6]


def test_checkpointed_saves_its_input_alone() -> None:
    assert saved_sizes(jaxprop.checkpointed(block())) == [X.size]


def test_xla_does_not_merge_the_second_forward_with_the_first() -> None:
    """Else the residuals of all segments would live until their backwards run."""
    segment = jaxprop.chain(*[jaxprop.tanh] * 6)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32)

    def temp(layer: Layer) -> int:
        network = jaxprop.chain(*[layer] * 6)
        params = jax.eval_shape(lambda: network.init(jax.random.key(0), x.shape))
        compiled = jax.jit(lambda p, x: by_hand(network, p, x)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp(jaxprop.checkpointed(segment)) < 0.6 * temp(segment)


@pytest.mark.slow
def test_reversible_rebuilds_its_inputs_in_float32_where_the_data_are_bfloat16() -> None:
    network = jaxprop.reversible(block(2), block(2), DEPTH)
    low = jax.tree.map(lambda p: (p / 4).astype(jnp.bfloat16), parameters(network))
    x = jnp.asarray(X).astype(jnp.bfloat16)
    got = quickly(lambda p, x: by_hand(network, p, x))(low, x)
    wide = jax.tree.map(lambda p: p.astype(jnp.float64), (low, x))
    truth = quickly(lambda p, x: by_jax(plain_reversible, p, x))(*wide)
    assert got[0].dtype == got[1][1].dtype == jnp.bfloat16
    assert_near(got, truth, reduced=16)


@pytest.mark.parametrize("name", ["residual", "repeat", "reversible"])
def test_an_output_that_is_not_as_x_is_refused(name: str) -> None:
    wide = jaxprop.dense(7)
    network = {
        "residual": lambda: jaxprop.residual(wide),
        "repeat": lambda: jaxprop.repeat(wide, 2),
        "reversible": lambda: jaxprop.reversible(wide, wide, 2),
    }[name]()
    width = 2 if name == "reversible" else 4
    message = (
        f"{name}: the output must have x's shape and dtype, (3, {width}) float64, got (3, 7) "
        "float64. End with a layer as wide as x."
    )
    for function in (network, network.reference, network.forward):
        with pytest.raises(ValueError, match="the output must") as refused:
            function(parameters(network), jnp.asarray(X))
        assert str(refused.value) == message


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_count_that_is_no_positive_integer_is_refused(n: Any) -> None:
    message = rf"n must be a positive integer, got {n!r}\.$"
    with pytest.raises(ValueError, match=f"^repeat: {message}"):
        jaxprop.repeat(block(), n)
    with pytest.raises(ValueError, match=f"^reversible: {message}"):
        jaxprop.reversible(block(2), block(2), n)


def test_params_of_another_depth_are_refused_by_their_path() -> None:
    network = jaxprop.repeat(block(), DEPTH)
    params = parameters(jaxprop.repeat(block(), DEPTH - 1))
    with pytest.raises(ValueError, match="first axis") as refused:
        network(params, jnp.asarray(X))
    assert str(refused.value) == (
        "repeat: params['a']['b'] must have a first axis of 3, one for each repetition, got "
        "(2, 5). Make params with init(key, x_shape)."
    )


def test_an_x_of_odd_width_has_no_halves() -> None:
    network = jaxprop.reversible(jaxprop.tanh, jaxprop.tanh)
    with pytest.raises(ValueError, match="even length") as refused:
        network({"f": {}, "g": {}}, jnp.ones((2, 3)))
    assert str(refused.value) == (
        "reversible: x must have a last axis of even length, to be split into halves, got (2, 3). "
        "Make the layer before it wider by one."
    )


def test_a_normed_residual_names_what_is_no_layer() -> None:
    with pytest.raises(TypeError, match=r"^pre_norm: the norm must be a Layer or a Rule of one"):
        jaxprop.pre_norm(block(), 3)
    with pytest.raises(TypeError, match=r"^post_norm: the branch must be a Layer or a Rule of one"):
        jaxprop.post_norm(3, norm_layer())


@pytest.mark.parametrize("wrap", [jaxprop.residual, jaxprop.checkpointed])
def test_what_is_no_layer_is_refused(wrap: Callable) -> None:
    with pytest.raises(TypeError, match=r"must be a Layer or a Rule of one array, got int\."):
        wrap(3)
