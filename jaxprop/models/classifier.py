"""What classifiers made of a chain share: parameters, the network, the cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.costs import Cost, cost
from jaxprop.installing import PyTree
from jaxprop.layers import Layer, Shape
from jaxprop.rules.cross_entropy import softmax_cross_entropy


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network over examples: its parameters, its rules, and what it costs.

    init:    (key, dtype=float32) -> params.
    network: the rule (params, x, key=None) -> logits (B, classes), a chain.
    cost:    the rule J(params, x, labels), the mean of -log p(label) in nats.
    """

    config: Any
    init: Callable[..., PyTree]
    network: Layer
    cost: Cost


def classifier(config: Any, network: Layer, example: Shape) -> Classifier:
    """Make a classifier of a chain that ends in logits; `example` is the shape of one example."""

    def init(key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
        return network.init(key, (1, *example), dtype)

    return Classifier(config, init, network, cost(network, softmax_cross_entropy))
