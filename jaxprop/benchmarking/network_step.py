"""A network's whole training step as a contender: one step of AdamW, jitted, the state donated."""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.benchmarking.torch_process import RATE, start
from jaxprop.installing import PyTree

# How far the loss and the norm of the gradient may lie from float64's, relative.
TOLERANCE = 1e-4

Batch = tuple[jax.Array, jax.Array]
# (params, inputs, labels) -> J, and -> (J, dparams).
Cost = Callable[[PyTree, jax.Array, jax.Array], jax.Array]
Gradient = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class Truth(NamedTuple):
    loss: float
    gradient_norm: float


def truth_of(cost: Cost, params: PyTree, batch: Batch) -> Truth:
    """The loss and the norm of its gradient in float64, by automatic differentiation."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        loss, dparams = jax.jit(jax.value_and_grad(cost))(wide, *batch)
        return Truth(float(loss), float(optax.tree.norm(dparams)))


# Of parameters, a library's own and the cost over them; ImportError where it is not installed.
Make = Callable[[PyTree], tuple[PyTree, Cost]]


def network_entry(
    name: str,
    baselines: tuple[str, ...],
    ways: Mapping[str, tuple[PyTree, Gradient]],
    peers: Mapping[str, Make],
    torch: tuple[str, Any],
    params: PyTree,
    batch: Batch,
    truth: Truth,
) -> Entry:
    """The entry of a network: its ways in JAX, and those libraries that are installed.

    torch: the module that makes it in PyTorch, and the shape that it is given.
    """
    ways = dict(ways)
    for library, make in peers.items():
        try:
            theirs, cost = make(params)
        except ImportError:
            continue
        ways[library] = theirs, jax.value_and_grad(cost)
    contenders = {
        way: step_contender(gradient, theirs, batch, truth)
        for way, (theirs, gradient) in ways.items()
    }
    eager = torch_contender(*torch, params, batch, truth)
    if eager is not None:
        contenders["PyTorch eager"] = eager
    return Entry(name, baselines, contenders, settle=True)


def step_contender(
    gradient: Gradient,
    params: PyTree,
    batch: Batch,
    truth: Truth,
    optimiser: optax.GradientTransformation | None = None,
) -> Contender:
    """A gradient and an optimiser, AdamW if none is given, as one program; params are copied."""
    optimiser = optimiser or optax.adamw(RATE)
    loss, dparams = jax.jit(gradient)(params, *batch)
    error = _error(Truth(float(loss), float(optax.tree.norm(dparams))), truth)
    del dparams

    def step(state: tuple, inputs: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
        params, moments = state
        loss, dparams = gradient(params, inputs, labels)
        updates, moments = optimiser.update(dparams, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    state = jax.tree.map(jnp.copy, (params, optimiser.init(params)))
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, *batch).compile()
    seconds = time.perf_counter() - started
    held = [state]

    def run() -> None:
        held[0], loss = compiled(held[0], *batch)
        jax.block_until_ready(loss)

    return Contender(run, _wrong(error), seconds, result=f"error {error:.1e}", **memory(compiled))


def torch_contender(
    module: str, config: Any, params: PyTree, batch: Batch, truth: Truth
) -> Contender | None:
    """The same step in PyTorch, by a module that `torch_process` runs; None without PyTorch."""
    if find_spec("torch") is None:
        return None
    named = jax.tree_util.tree_leaves_with_path(params)
    arrays = {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in named}
    inputs, labels = map(np.asarray, batch)
    worker = start(module, config, arrays, {"inputs": inputs, "labels": labels})
    error = _error(Truth(worker.loss, worker.gradient_norm), truth)
    return Contender(worker.step, _wrong(error), result=f"error {error:.1e}")


def _error(found: Truth, truth: Truth) -> float:
    pairs = zip(found, truth, strict=True)
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in pairs)


def _wrong(error: float) -> str:
    return "" if error < TOLERANCE else f"relative error {error:.2g}"
