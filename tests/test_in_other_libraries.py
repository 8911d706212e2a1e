"""Rules in the place of other libraries' layers: a network trains to the same numbers.

The same network every time: rows of features, two affine maps with a normalisation and an
activation between them, softmax cross-entropy. Each library trains it with its own layers and
with rules called on the same parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprop
from tests.tolerances import assert_near

FEATURES, WIDTH, CLASSES, ROWS, STEPS = 5, 7, 3, 16, 6
EPS = 1e-6
REDUCED = STEPS * ROWS * WIDTH


@pytest.fixture
def batch(x64: None) -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(size=(ROWS, FEATURES))), jnp.arange(ROWS) % CLASSES


def by_rules(params: dict[str, Any], x: jax.Array, labels: jax.Array) -> jax.Array:
    h = jaxprop.linear(x, params["w_1"], params["b_1"])
    h = jaxprop.layer_norm(h, params["gamma"], params["beta"], eps=EPS)
    h = jaxprop.silu(h)
    logits = jaxprop.linear(h, params["w_2"], params["b_2"])
    return jaxprop.softmax_cross_entropy(logits, labels)


def trained(params: Any, loss: Callable[[Any], jax.Array]) -> tuple[Any, list[float]]:
    """The parameters after a few steps of gradient descent, and the losses on the way."""
    optimiser = optax.sgd(0.3, momentum=0.9)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimiser.init(params), []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        losses.append(float(value))
    return params, losses


def assert_same_training(params: Any, mine: Callable, theirs: Callable) -> None:
    (ours, losses), (others, expected) = trained(params, mine), trained(params, theirs)
    assert losses[-1] < 0.9 * losses[0]
    assert_near(losses, expected, reduced=REDUCED)
    assert_near(ours, others, reduced=REDUCED)


def test_in_plain_jax(batch: tuple[jax.Array, jax.Array]) -> None:
    x, labels = batch
    random = np.random.default_rng(1)
    params = {
        "w_1": jnp.asarray(random.normal(size=(FEATURES, WIDTH))),
        "b_1": jnp.zeros(WIDTH),
        "gamma": jnp.ones(WIDTH),
        "beta": jnp.zeros(WIDTH),
        "w_2": jnp.asarray(random.normal(size=(WIDTH, CLASSES))),
        "b_2": jnp.zeros(CLASSES),
    }

    def plain(params: dict[str, Any]) -> jax.Array:
        h = x @ params["w_1"] + params["b_1"]
        h = jax.nn.standardize(h, epsilon=EPS) * params["gamma"] + params["beta"]
        logits = jax.nn.silu(h) @ params["w_2"] + params["b_2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    assert_same_training(params, lambda params: by_rules(params, x, labels), plain)


@pytest.mark.peers
def test_in_flax(batch: tuple[jax.Array, jax.Array]) -> None:
    nnx = pytest.importorskip("flax.nnx")
    x, labels = batch

    class Network(nnx.Module):
        def __init__(self) -> None:
            options = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
            self.first = nnx.Linear(FEATURES, WIDTH, **options)
            self.norm = nnx.LayerNorm(WIDTH, epsilon=EPS, use_fast_variance=False, **options)
            self.last = nnx.Linear(WIDTH, CLASSES, **options)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(nnx.silu(self.norm(self.first(x))))

    class ByRules(Network):
        def __call__(self, x: jax.Array) -> jax.Array:
            h = jaxprop.linear(x, self.first.kernel[...], self.first.bias[...])
            h = jaxprop.layer_norm(h, self.norm.scale[...], self.norm.bias[...], eps=EPS)
            return jaxprop.linear(jaxprop.silu(h), self.last.kernel[...], self.last.bias[...])

    def loss_of(kind: type, cross_entropy: Callable) -> tuple[Any, Callable]:
        structure, params = nnx.split(kind())
        return params, lambda params: cross_entropy(nnx.merge(structure, params)(x), labels)

    with jax.numpy_dtype_promotion("standard"):
        _, theirs = loss_of(
            Network,
            lambda y, labels: optax.softmax_cross_entropy_with_integer_labels(y, labels).mean(),
        )
        params, mine = loss_of(ByRules, jaxprop.softmax_cross_entropy)
        assert_same_training(params, mine, theirs)


@pytest.mark.peers
def test_in_equinox(batch: tuple[jax.Array, jax.Array]) -> None:
    eqx = pytest.importorskip("equinox")
    x, labels = batch
    keys = jax.random.split(jax.random.key(0))
    network = {
        "first": eqx.nn.Linear(FEATURES, WIDTH, key=keys[0]),
        "norm": eqx.nn.LayerNorm(WIDTH, eps=EPS),
        "last": eqx.nn.Linear(WIDTH, CLASSES, key=keys[1]),
    }
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), arrays)

    def theirs(arrays: Any) -> jax.Array:
        here = eqx.combine(arrays, rest)

        def of_one(x: jax.Array) -> jax.Array:
            return here["last"](jax.nn.silu(here["norm"](here["first"](x))))

        logits = jax.vmap(of_one)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def mine(arrays: Any) -> jax.Array:
        here = eqx.combine(arrays, rest)
        first, norm, last = here["first"], here["norm"], here["last"]

        def of_one(x: jax.Array) -> jax.Array:
            h = jaxprop.linear(x, first.weight.T, first.bias)
            h = jaxprop.layer_norm(h, norm.weight, norm.bias, eps=EPS)
            return jaxprop.linear(jaxprop.silu(h), last.weight.T, last.bias)

        return jaxprop.softmax_cross_entropy(jax.vmap(of_one)(x), labels)

    with jax.numpy_dtype_promotion("standard"):
        assert_same_training(arrays, mine, theirs)
