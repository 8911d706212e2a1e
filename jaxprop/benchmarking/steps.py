"""The seed network's training step: hand-written gradients against `jax.grad` of the same code."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.costs import Cost
from jaxprop.installing import PyTree
from jaxprop.train.optimisers import update

FEATURES, CLASSES = 64, 10
WIDTHS = (64, 256, 512, 1024, 2048)
BATCHES = (64, 256, 1024)
STRENGTH = 1e-3
# How far float32 gradients may lie from float64, of each parameter's largest.
TOLERANCE = 1e-4

Gradient = Callable[..., tuple[jax.Array, PyTree]]


def step_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    for width in WIDTHS[:1] if quick else WIDTHS:
        for batch in BATCHES[:1] if quick else BATCHES:
            yield f"step-width{width}-batch{batch}", partial(step_entry, width, batch)


def step_entry(width: int, batch: int) -> Entry:
    """One jitted step with donated state, Adam, both ways."""
    J = _cost(width)
    params = J.network.init(jax.random.key(0), (batch, FEATURES))
    x = jax.random.normal(jax.random.key(1), (batch, FEATURES))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, CLASSES)
    truth = _truth(J, params, x, y)
    ways = {"automatic": _automatic(J), "by hand": jaxprop.value_and_grad(J)}
    return Entry(
        f"step-width{width}-batch{batch}",
        "automatic",
        {name: _contender(way, params, x, y, truth) for name, way in ways.items()},
    )


def _cost(width: int) -> Cost:
    network = jaxprop.chain(
        hidden_1=jaxprop.dense(width, jaxprop.relu),
        hidden_2=jaxprop.dense(width, jaxprop.relu),
        output=jaxprop.dense(CLASSES),
    )
    return jaxprop.cost(network, jaxprop.softmax_cross_entropy, jaxprop.l2.bind(leaves="*/w"))


def _automatic(J: Cost) -> Gradient:
    """`jax.grad` of the references."""

    def run(*args: PyTree) -> tuple[jax.Array, PyTree]:
        with jaxprop.automatic():
            return jax.value_and_grad(J)(*args)

    return run


def _truth(J: Cost, params: PyTree, x: jax.Array, y: jax.Array) -> PyTree:
    """The gradient in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        _, dparams = _automatic(J)(wide, x.astype(jnp.float64), y, STRENGTH)
        return jax.tree.map(np.asarray, dparams)


def relative_error(dparams: PyTree, truth: PyTree) -> float:
    """The largest error of any parameter, over that parameter's largest gradient."""
    errors = jax.tree.map(
        lambda d, t: float(np.max(np.abs(np.asarray(d, np.float64) - t)) / np.max(np.abs(t))),
        dparams,
        truth,
    )
    return max(jax.tree.leaves(errors))


def _contender(
    way: Gradient, params: PyTree, x: jax.Array, y: jax.Array, truth: PyTree
) -> Contender:
    optimiser, strength = optax.adam(1e-3), jnp.float32(STRENGTH)
    _, dparams = jax.jit(way)(params, x, y, strength)
    error = relative_error(dparams, truth)

    def step(state: PyTree, x: jax.Array, y: jax.Array) -> tuple[PyTree, jax.Array]:
        params, moments = state
        value, dparams = way(params, x, y, strength)
        return update(optimiser, dparams, moments, params), value

    state = jax.tree.map(jnp.copy, (params, optimiser.init(params)))
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, x, y).compile()
    seconds = time.perf_counter() - started
    wrong = f"relative error {error:.2g}" if not error < TOLERANCE else ""
    return Contender(
        _repeated(compiled, state, x, y),
        wrong,
        seconds,
        result=f"error {error:.1e}",
        **memory(compiled),
    )


def _repeated(compiled: Callable, state: PyTree, x: jax.Array, y: jax.Array) -> Callable[[], None]:
    """Each call does one step, from where the last one ended."""
    box: list[Any] = [state]

    def run() -> None:
        box[0], _ = jax.block_until_ready(compiled(box[0], x, y))

    return run
