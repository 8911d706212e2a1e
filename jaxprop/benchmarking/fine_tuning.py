"""A step of fine-tuning: of a GPT everything is trained, the last blocks, the head, or adapters.

One step of AdamW on one batch, jitted, the state donated; the optimiser's state is of what is
trained alone. `jax.grad` is automatic differentiation of the references.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxprop
from jaxprop.benchmarking.network_step import step_contender, truth_of
from jaxprop.benchmarking.networks import Size
from jaxprop.benchmarking.timing import Contender, Entry
from jaxprop.benchmarking.torch_process import RATE
from jaxprop.installing import PyTree
from jaxprop.models.adapters import adapt, other_than_adapters
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.inputs import Inputs
from jaxprop.rule import Rule
from jaxprop.rules.penalties import Filter
from jaxprop.train.trained import of_trained, trained_part

RANK = 8
BELOW = ("embedding", "positions")
BASELINES = ("everything", "everything, jax.grad")


def fine_tuning_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    size = Size(2, 32, 2, 32, 2, 65) if quick else Size(6, 256, 8, 256, 8, 256)
    name = "fine-tuning-gpt-L{}-d{}-H{}-T{}-B{}-V{}".format(*size)
    yield name, partial(fine_tuning_entry, name, size)


def fine_tuning_entry(name: str, size: Size) -> Entry:
    """Every part on the same parameters and batch, held against its reference in float64."""
    depth, width, heads, length, sequences, vocabulary = size
    config = Gpt2Config(vocabulary, width, depth, heads, context=length, tied=False)
    params = jax.jit(gpt2(config).init)(jax.random.key(0))
    low = adapt(params, None, RANK, 2 * RANK, jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (sequences, length), 0, vocabulary)
    batch = tokens, jnp.roll(tokens, -1, axis=1)
    below = depth * 2 // 3
    contenders = {}
    for what, theirs, patterns, blocks in (
        ("everything", params, None, 0),
        (f"{depth - below} of {depth} blocks", params, BELOW, below),
        ("norm and head", params, BELOW, depth),
        (f"adapters of rank {RANK}", low, other_than_adapters, 0),
    ):
        made = gpt2(replace(config, frozen=blocks)).cost
        J = made if patterns is None else jaxprop.freeze(made, patterns)
        for way, by_hand in ((what, True), (f"{what}, jax.grad", False)):
            contenders[way] = _contender(J, by_hand, theirs, batch, (patterns, blocks))
    return Entry(name, BASELINES, contenders)


def _contender(
    J: Rule, by_hand: bool, params: PyTree, batch: tuple, frozen: tuple[Filter, int]
) -> Contender:
    def cost(params: PyTree, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        return J.reference(params, Inputs(tokens), labels)

    def gradient(params: PyTree, tokens: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        return jaxprop.value_and_grad(J)(params, Inputs(tokens), labels)

    def part(tree: PyTree) -> PyTree:
        return trained_part(tree, *frozen)

    way = gradient if by_hand else jax.value_and_grad(cost)
    optimiser = of_trained(optax.adamw(RATE), part)
    return step_contender(way, params, batch, truth_of(cost, params, batch), optimiser)
