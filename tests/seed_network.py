"""The notes' three-layer network, twice: columns in NumPy float64, rows as a chain.

Columns are as in the notes: W_k is (n_k, n_{k-1}), every vector an (n, 1) matrix, one example
at a time. One-dimensional arrays would hide the order of a product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprop

LAMBDA = 0.3
UNEQUAL = (5, 4, 3, 2)
SQUARE = (3, 3, 3, 3)
BATCH = 6


def tanh(a: np.ndarray) -> np.ndarray:
    return np.tanh(a)


def dtanh(a: np.ndarray) -> np.ndarray:
    return 1 - np.tanh(a) ** 2


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def dsigmoid(a: np.ndarray) -> np.ndarray:
    return sigmoid(a) * (1 - sigmoid(a))


class Columns(NamedTuple):
    """One example through the network, in the notes' names; a list's entry 0 is unused."""

    x: np.ndarray
    y: np.ndarray
    W: list
    b: list
    a: list
    h: list
    f: list
    df: list

    @property
    def g(self) -> np.ndarray:
        """N0: dL/dy_hat, L being the mean over the outputs of (y_hat - y)^2."""
        return 2 * (self.h[3] - self.y) / self.y.size

    def loss(self) -> float:
        return float(np.mean((self.h[3] - self.y) ** 2))


def columns(x: np.ndarray, y: np.ndarray, W: list, b: list) -> Columns:
    """Algorithm 6.3 for one example: a_k = W_k h_{k-1} + b_k, h_k = f_k(a_k)."""
    f, df = [None, tanh, sigmoid, tanh], [None, dtanh, dsigmoid, dtanh]
    a: list[Any] = [None]
    h: list[Any] = [x]
    for k in (1, 2, 3):
        a.append(W[k] @ h[k - 1] + b[k])
        h.append(f[k](a[k]))
    return Columns(x, y, W, b, a, h, f, df)


class Seed(NamedTuple):
    """The same network, parameters and batch in both conventions."""

    examples: list[Columns]
    network: jaxprop.layers.Layer
    params: Any
    x: jax.Array
    y: jax.Array

    def mean(self, gradient: Callable[[Columns], np.ndarray]) -> np.ndarray:
        """A column gradient averaged over the batch, in the layout of the chain's arrays."""
        return np.mean([gradient(example).T for example in self.examples], axis=0)

    def rows(self, gradient: Callable[[Columns], np.ndarray]) -> np.ndarray:
        """A column gradient of each example, as the rows of G: 1/batch is already in it."""
        return np.concatenate([gradient(example).T for example in self.examples]) / BATCH

    def W(self, k: int) -> np.ndarray:
        return self.examples[0].W[k]

    def b(self, k: int) -> np.ndarray:
        return self.examples[0].b[k]


def seed_network(widths: tuple[int, ...]) -> Seed:
    random = np.random.default_rng(7)
    W = [None] + [random.normal(size=(widths[k], widths[k - 1])) for k in (1, 2, 3)]
    b = [None] + [random.normal(size=(widths[k], 1)) for k in (1, 2, 3)]
    x, y = random.normal(size=(BATCH, widths[0])), random.normal(size=(BATCH, widths[3]))
    network = jaxprop.chain(
        layer_1=jaxprop.dense(widths[1], jaxprop.tanh),
        layer_2=jaxprop.dense(widths[2], jaxprop.sigmoid),
        layer_3=jaxprop.dense(widths[3], jaxprop.tanh),
    )
    params = {
        f"layer_{k}": {"w": jnp.asarray(W[k].T), "b": jnp.asarray(b[k][:, 0])} for k in (1, 2, 3)
    }
    examples = [columns(x[[i]].T, y[[i]].T, W, b) for i in range(BATCH)]
    return Seed(examples, network, params, jnp.asarray(x), jnp.asarray(y))


def probed_cost(seed: Seed, penalty: Callable[[Any], jax.Array]) -> Callable[..., jax.Array]:
    """J in plain JAX as a function of (params, probes): a zero probe is added to each a_k, h_k.

    `jax.grad` in the probes gives dJ/da_k and dJ/dh_k; it shares no line with the rules.
    """
    f = {"layer_1": jnp.tanh, "layer_2": jax.nn.sigmoid, "layer_3": jnp.tanh}

    def J(params: Any, probes: Any) -> jax.Array:
        h = seed.x
        for name, activation in f.items():
            a = h @ params[name]["w"] + params[name]["b"] + probes[name]["a"]
            h = activation(a) + probes[name]["h"]
        return jnp.mean((h - seed.y) ** 2) + penalty(params)

    return J


def zero_probes(seed: Seed) -> Any:
    return {
        name: {q: np.zeros((BATCH, p["b"].size)) for q in ("a", "h")}
        for name, p in seed.params.items()
    }
