"""A GPT's whole training step: by hand, by automatic differentiation, and in other libraries.

One step of AdamW on one batch, jitted, the state donated. `by hand` saves all that the rules
ask for, `by hand, inputs` the blocks' inputs alone.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.benchmarking.gpt_peers import equinox_gpt, flax_gpt
from jaxprop.benchmarking.gpt_plain import plain_costs
from jaxprop.benchmarking.gpt_torch import start
from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.inputs import Inputs

RATE = 1e-4
# How far the loss and the norm of the gradient may lie from float64's, relative.
TOLERANCE = 1e-4
BASELINES = ("scan", "unrolled", "scan, remat", "Flax NNX")

Gradient = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class Size(NamedTuple):
    """A GPT and its batch: blocks, width, heads, tokens in a sequence, sequences, vocabulary."""

    depth: int
    width: int
    heads: int
    time: int
    batch: int
    vocabulary: int


class Truth(NamedTuple):
    loss: float
    gradient_norm: float


def network_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    sizes = [Size(2, 32, 2, 32, 2, 65)] if quick else [Size(6, 256, 8, 256, 8, 256)]
    for size in sizes:
        name = "network-gpt-L{}-d{}-H{}-T{}-B{}-V{}".format(*size)
        yield name, partial(gpt_entry, name, size)


def gpt_entry(name: str, size: Size) -> Entry:
    """Every way on the same parameters and batch, held against the reference in float64."""
    depth, width, heads, length, batch, vocabulary = size
    config = Gpt2Config(vocabulary, width, depth, heads, context=length)
    params = jax.jit(gpt2(config).init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, vocabulary)
    labels = jnp.roll(tokens, -1, axis=1)
    truth = _truth(config, params, tokens, labels)
    ways: dict[str, tuple[PyTree, Gradient]] = {
        "by hand": (params, _by_hand(config)),
        "by hand, inputs": (params, _by_hand(config, save=1)),
    }
    for kind, cost in plain_costs(config).items():
        ways[kind] = params, jax.value_and_grad(cost)
    for library, make in {"Flax NNX": flax_gpt, "Equinox": equinox_gpt}.items():
        try:
            theirs, cost = make(config, params)
        except ImportError:
            continue
        ways[library] = theirs, jax.value_and_grad(cost)
    contenders = {
        way: _contender(gradient, theirs, (tokens, labels), truth)
        for way, (theirs, gradient) in ways.items()
    }
    if (torch := _torch(config, params, (tokens, labels), truth)) is not None:
        contenders["PyTorch eager"] = torch
    return Entry(name, BASELINES, contenders, settle=True)


def _by_hand(config: Gpt2Config, **options: Any) -> Gradient:
    settings = {**vars(config), **options}
    gradient = jaxprop.value_and_grad(gpt2(Gpt2Config(**settings)).cost)
    return lambda params, tokens, labels: gradient(params, Inputs(tokens), labels)


def _truth(config: Gpt2Config, params: PyTree, tokens: jax.Array, labels: jax.Array) -> Truth:
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        gradient = jax.jit(jax.value_and_grad(gpt2(config).cost.reference))
        loss, dparams = gradient(wide, Inputs(tokens), labels)
        return Truth(float(loss), float(optax.tree.norm(dparams)))


def _error(found: Truth, truth: Truth) -> float:
    pairs = zip(found, truth, strict=True)
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in pairs)


def _contender(
    gradient: Gradient, params: PyTree, batch: tuple[jax.Array, jax.Array], truth: Truth
) -> Contender:
    optimiser = optax.adamw(RATE)
    loss, dparams = jax.jit(gradient)(params, *batch)
    error = _error(Truth(float(loss), float(optax.tree.norm(dparams))), truth)
    del dparams

    def step(state: tuple, tokens: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
        params, moments = state
        loss, dparams = gradient(params, tokens, labels)
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

    return Contender(
        run,
        "" if error < TOLERANCE else f"relative error {error:.2g}",
        seconds,
        result=f"error {error:.1e}",
        **memory(compiled),
    )


def _torch(
    config: Gpt2Config, params: PyTree, batch: tuple[jax.Array, jax.Array], truth: Truth
) -> Contender | None:
    """None where PyTorch is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    named = jax.tree_util.tree_leaves_with_path(params)
    arrays = {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in named}
    tokens, labels = map(np.asarray, batch)
    worker = start(config, arrays, {"tokens": tokens, "labels": labels})
    error = _error(Truth(worker.loss, worker.gradient_norm), truth)
    wrong = "" if error < TOLERANCE else f"relative error {error:.2g}"
    return Contender(worker.step, wrong, result=f"error {error:.1e}")
