"""A GPT's whole training step: by hand, by automatic differentiation, and in other libraries.

One step of AdamW on one batch, jitted, the state donated. `by hand` saves all that the rules
ask for, `by hand, inputs` the blocks' inputs alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.benchmarking.gpt_peers import equinox_gpt, flax_gpt
from jaxprop.benchmarking.gpt_plain import plain_costs
from jaxprop.benchmarking.network_step import (
    Gradient,
    network_entry,
    truth_of,
)
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.inputs import Inputs

BASELINES = ("scan", "unrolled", "scan, remat", "Flax NNX")


class Size(NamedTuple):
    """A GPT and its batch: blocks, width, heads, tokens in a sequence, sequences, vocabulary."""

    depth: int
    width: int
    heads: int
    time: int
    batch: int
    vocabulary: int


def network_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    sizes = [Size(2, 32, 2, 32, 2, 65)] if quick else [Size(6, 256, 8, 256, 8, 256)]
    for size in sizes:
        name = "network-gpt-L{}-d{}-H{}-T{}-B{}-V{}".format(*size)
        yield name, partial(gpt_entry, name, size)


def gpt_entry(name: str, size: Size) -> Entry:
    """Every way on the same parameters and batch, held against the reference in float64."""
    depth, width, heads, length, sequences, vocabulary = size
    config = Gpt2Config(vocabulary, width, depth, heads, context=length)
    params = jax.jit(gpt2(config).init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (sequences, length), 0, vocabulary)
    batch = tokens, jnp.roll(tokens, -1, axis=1)

    def reference(params: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return gpt2(config).cost.reference(params, Inputs(tokens), labels)

    truth = truth_of(reference, params, batch)
    ways: dict[str, tuple[PyTree, Gradient]] = {
        "by hand": (params, _by_hand(config)),
        "by hand, inputs": (params, _by_hand(config, save=1)),
    }
    for kind, cost in plain_costs(config).items():
        ways[kind] = params, jax.value_and_grad(cost)
    peers = {"Flax NNX": partial(flax_gpt, config), "Equinox": partial(equinox_gpt, config)}
    torch = "jaxprop.benchmarking.gpt_torch", config
    return network_entry(name, BASELINES, ways, peers, torch, params, batch, truth)


def _by_hand(config: Gpt2Config, **options: Any) -> Gradient:
    settings = {**vars(config), **options}
    gradient = jaxprop.value_and_grad(gpt2(Gpt2Config(**settings)).cost)
    return lambda params, tokens, labels: gradient(params, Inputs(tokens), labels)
