"""A convnet's whole training step: by hand, automatic, and in other libraries.

One step of AdamW on one batch of images, jitted, the state donated.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.benchmarking.convolutional_peers import (
    Made,
    equinox_lenet,
    flax_lenet,
    flax_resnet,
    plain_lenet,
    plain_resnet,
)
from jaxprop.benchmarking.network_step import (
    Gradient,
    network_entry,
    truth_of,
)
from jaxprop.benchmarking.timing import Entry
from jaxprop.installing import PyTree
from jaxprop.models.lenet import LeNetConfig, lenet
from jaxprop.models.resnet import ResNetConfig, resnet

CLASSES = 10
BASELINES = ("plain", "Flax NNX")


@dataclass(frozen=True)
class Size:
    """A convnet and its batch: images are side x side, of so many colours; channels; windows."""

    side: int
    colours: int
    channels: tuple[int, ...]
    batch: int
    window: int = 5


def convolutional_network_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    small = Size(8, 1, (2, 3), 2), Size(8, 1, (2, 3, 4, 5), 2, window=3)
    lenets = (
        small[:1]
        if quick
        else (
            Size(28, 1, (6, 16), 128),
            Size(28, 1, (32, 64), 64),
            Size(28, 1, (32, 64), 64, window=3),
        )
    )
    resnets = small[1:] if quick else (Size(32, 3, (16, 32, 64, 128), 16, window=3),)
    for kind, make, sizes in (("lenet", lenet_entry, lenets), ("resnet18", resnet_entry, resnets)):
        for size in sizes:
            channels = ",".join(map(str, size.channels))
            image = f"{size.side}x{size.side}x{size.colours}"
            name = f"network-{kind}-{image}-K{size.window}-C{channels}-B{size.batch}"
            yield name, partial(make, name, size)


def lenet_entry(name: str, size: Size) -> Entry:
    """Every way on the same parameters and batch, held against the reference in float64."""
    image = size.side, size.side, size.colours
    model = lenet(LeNetConfig(image, CLASSES, size.channels, window=size.window))
    params = jax.jit(model.init)(jax.random.key(0))

    def reference(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        return model.cost.reference(params, _in_dtype_of(params, x), labels)

    peers = {"plain": plain_lenet, "Flax NNX": flax_lenet, "Equinox": equinox_lenet}
    by_hand = jaxprop.value_and_grad(model.cost)
    return _entry(name, size, params, reference, by_hand, peers)


def resnet_entry(name: str, size: Size) -> Entry:
    """The same for ResNet-18; the statistics of the batch norms are computed and dropped."""
    model = resnet(ResNetConfig(CLASSES, size.colours, size.channels, zero_gamma=False))
    params = jax.jit(model.init)(jax.random.key(0))
    gradient = jaxprop.value_and_grad(model.cost, has_aux=True)

    def reference(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        return model.cost.reference(params, _in_dtype_of(params, x), labels)[0]

    def by_hand(params: PyTree, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        (J, _), dparams = gradient(params, x, labels)
        return J, dparams

    peers = {"plain": plain_resnet, "Flax NNX": flax_resnet}
    return _entry(name, size, params, reference, by_hand, peers)


def _entry(
    name: str,
    size: Size,
    params: PyTree,
    reference: Callable[..., jax.Array],
    by_hand: Gradient,
    peers: Mapping[str, Callable[[PyTree], Made]],
) -> Entry:
    shape = (size.batch, size.side, size.side, size.colours)
    x = jax.random.normal(jax.random.key(1), shape)
    batch = x, jax.random.randint(jax.random.key(2), (size.batch,), 0, CLASSES)
    truth = truth_of(reference, params, batch)
    torch = "jaxprop.benchmarking.convolutional_torch", size
    ways = {"by hand": (params, by_hand)}
    return network_entry(name, BASELINES, ways, peers, torch, params, batch, truth)


def _in_dtype_of(params: Any, x: jax.Array) -> jax.Array:
    return x.astype(jnp.result_type(*jax.tree.leaves(params)))
