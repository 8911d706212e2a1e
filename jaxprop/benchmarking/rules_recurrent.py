"""lstm and gru over whole sequences, against `lax.scan` under automatic differentiation."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxprop
from jaxprop.benchmarking.gradients import Way, gradient_entry
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree
from jaxprop.samples import normal


class Shape(NamedTuple):
    """Steps, examples, and the width of x and of the state."""

    steps: int
    batch: int
    width: int


def recurrent_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    shapes = [Shape(32, 4, 16)] if quick else [Shape(512, 8, 128), Shape(256, 32, 256)]
    for make in (lstm, gru):
        for shape in shapes:
            for dtype in ("float32", "bfloat16"):
                size = "T{}-B{}-C{}".format(*shape)
                name = f"rule-{make.__name__}-{dtype}-{size}"
                yield name, partial(make, name, dtype, shape)


def lstm(name: str, dtype: str, shape: Shape) -> Entry:
    def step(weights: tuple, state: tuple, x: jax.Array, inputs: Callable) -> tuple:
        (h, c), (_, w_h, _) = state, weights
        i, f, u, o = jnp.split(inputs(x) + h @ w_h, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    states = (_zeros(dtype, shape), _zeros(dtype, shape))
    ways = _ways(step, 2) | {"by hand": jaxprop.lstm}
    return gradient_entry(name, ways, (_x(dtype, shape), *states, *_weights(shape, 4)))


def gru(name: str, dtype: str, shape: Shape) -> Entry:
    def step(weights: tuple, h: jax.Array, x: jax.Array, inputs: Callable) -> tuple:
        _, w_h, _ = weights
        (a_r, a_z, a_n), (q_r, q_z, m) = _thirds(inputs(x)), _thirds(h @ w_h)
        z = jax.nn.sigmoid(a_z + q_z)
        n = jnp.tanh(a_n + jax.nn.sigmoid(a_r + q_r) * m)
        h = (1 - z) * n + z * h
        return h, h

    ways = _ways(step, 1) | {"by hand": jaxprop.gru}
    return gradient_entry(name, ways, (_x(dtype, shape), _zeros(dtype, shape), *_weights(shape, 3)))


def _thirds(x: jax.Array) -> list[jax.Array]:
    return jnp.split(x, 3, axis=-1)


def _ways(step: Callable, states: int) -> dict[str, Way]:
    """The scan under automatic differentiation: x @ w_x at each step, or of all steps before."""

    def plain(x: jax.Array, *others: jax.Array, hoisted: bool) -> PyTree:
        w_x, w_h, b = (weight.astype(x.dtype) for weight in others[states:])
        state = others[:states] if states > 1 else others[0]

        def inputs(x: jax.Array) -> jax.Array:
            return x @ w_x + b

        inside: Callable[[jax.Array], jax.Array] = (lambda a: a) if hoisted else inputs
        over = jnp.moveaxis(inputs(x) if hoisted else x, 1, 0)
        body = partial(step, (w_x, w_h, b), inputs=inside)
        last, hs = lax.scan(body, state, over)
        return jnp.moveaxis(hs, 0, 1), last

    return {
        "scan": partial(plain, hoisted=False),
        "scan, inputs before": partial(plain, hoisted=True),
    }


def _x(dtype: str, shape: Shape) -> jax.Array:
    return jnp.asarray(normal(0, shape.batch, shape.steps, shape.width), dtype)


def _zeros(dtype: str, shape: Shape) -> jax.Array:
    return jnp.zeros((shape.batch, shape.width), dtype)


def _weights(shape: Shape, gates: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32, whatever the data."""
    k, scale = gates * shape.width, shape.width**-0.5
    w_x, w_h = normal(1, shape.width, k) * scale, normal(2, shape.width, k) * scale
    return jnp.asarray(w_x), jnp.asarray(w_h), jnp.asarray(normal(3, k) / 10)
