"""An LSTM language model's whole training step: by hand, automatic, and in other libraries.

One step of AdamW on one batch, jitted, the state donated.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.benchmarking.network_step import Gradient, network_entry, truth_of
from jaxprop.benchmarking.recurrent_peers import equinox_lstm, flax_lstm, plain_lstms
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree
from jaxprop.models.inputs import Inputs
from jaxprop.models.recurrent import RecurrentConfig, recurrent

BASELINES = ("scan", "scan, inputs before", "scan, remat", "Flax NNX")


class Size(NamedTuple):
    """An LSTM and its batch: layers, width, tokens in a sequence, sequences, vocabulary."""

    depth: int
    width: int
    time: int
    batch: int
    vocabulary: int


def recurrent_network_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    sizes = [Size(2, 16, 32, 2, 65)] if quick else [Size(n, 128, 512, 8, 256) for n in (1, 2)]
    for size in sizes:
        name = "network-lstm-L{}-d{}-T{}-B{}-V{}".format(*size)
        yield name, partial(lstm_entry, name, size)


def lstm_entry(name: str, size: Size) -> Entry:
    """Every way on the same parameters and batch, held against the reference in float64."""
    config = RecurrentConfig(size.vocabulary, size.width, size.depth)
    model = recurrent(config)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (size.batch, size.time), 0, size.vocabulary)
    batch = tokens, jnp.roll(tokens, -1, axis=1)

    def reference(params: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return model.cost.reference(params, Inputs(tokens), labels)

    def by_hand(params: PyTree, tokens: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        return jaxprop.value_and_grad(model.cost)(params, Inputs(tokens), labels)

    truth = truth_of(reference, params, batch)
    ways: dict[str, tuple[PyTree, Gradient]] = {"by hand": (params, by_hand)}
    for kind, cost in plain_lstms().items():
        ways[kind] = params, jax.value_and_grad(cost)
    peers = {"Flax NNX": partial(flax_lstm, config), "Equinox": partial(equinox_lstm, config)}
    torch = "jaxprop.benchmarking.recurrent_torch", config
    return network_entry(name, BASELINES, ways, peers, torch, params, batch, truth)
