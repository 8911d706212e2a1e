"""ResNet-18 and its like: a stem, stages of basic blocks, the mean over places, the last layer.

The blocks are in `basic_block`: there is the text on how backpropagation goes through one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprop.composition import check_params
from jaxprop.installing import PyTree, Saved
from jaxprop.layers import Layer, Shape
from jaxprop.models.basic_block import block, stem
from jaxprop.models.batch_statistics import (
    check_running,
    evaluating_norm,
    measured_chain,
    measured_cost,
    merged,
    parted,
    training_norm,
)
from jaxprop.models.sizes import check_each, check_sizes
from jaxprop.rule import Rule
from jaxprop.rules.cross_entropy import softmax_cross_entropy
from jaxprop.rules.global_pooling import global_avg_pool
from jaxprop.rules.linear import linear

STEMS = ("small", "large")


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a network of basic blocks.

    classes:    units of the output layer.
    colours:    channels of an image.
    widths:     channels of each stage; from the second on, a stage begins with a stride of 2.
    depths:     how many blocks each stage has; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
    stem:       what comes before the stages: "small", 3 x 3, for images of 32 x 32 and less; or
                "large", 7 x 7 and max pooling, each with a stride of 2.
    eps:        of the norms.
    zero_gamma: whether a block starts as its shortcut alone: the gamma of its last norm is 0.
    """

    classes: int
    colours: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem: str = "small"
    eps: float = 1e-5
    zero_gamma: bool = True

    def __post_init__(self) -> None:
        check_sizes("ResNetConfig", classes=self.classes, colours=self.colours)
        check_each("ResNetConfig", widths=self.widths, depths=self.depths)
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(
                "ResNetConfig: widths and depths must have one number for each stage, got "
                f"{len(self.widths)} and {len(self.depths)}."
            )
        if self.stem not in STEMS:
            raise ValueError(f"ResNetConfig: stem must be one of {STEMS}, got {self.stem!r}.")


@dataclass(frozen=True, eq=False)
class ResNet:
    """A network of basic blocks: its parameters, its rules, and what it costs.

    init:     (key, dtype=float32) -> params.
    network:  the rule (params, x, key=None) -> (logits, statistics), which normalises by the batch;
              statistics are each batch norm's mean and biased variance, by its path.
    evaluate: the rule (params, running, x) -> logits, which normalises by averages of those.
    cost:     the rule J(params, x, labels, strength=None) -> (J, statistics), the mean of
              -log p(label) in nats. strength is None.

    A training step takes `value_and_grad(cost, has_aux=True)` and hands the statistics to
    `updated(running, statistics)`; `initial(params)` is the running averages before the first step,
    both of `jaxprop.models.batch_statistics`. Inside shard_map the batch is that of one device:
    average the statistics over devices there.
    """

    config: ResNetConfig
    init: Callable[..., PyTree]
    network: Layer
    evaluate: Rule
    cost: Rule


def resnet(config: ResNetConfig) -> ResNet:
    """Make a network of basic blocks: stem, stages, the mean over places, the last layer.

    Args:
        config: its shape.

    Returns:
        A ResNet over x (B, H, W, colours). Its params are

            stem:     conv w, norm gamma and beta
            stage_k:  block_1, block_2, ..: conv_1 w, norm_1, conv_2 w, norm_2; and where the block
                      changes the shape conv_shortcut w, norm_shortcut
            head:     w (C, classes), b (classes,)

        and statistics and running have {"mean": (C,), "var": (C,)} at the path of each norm.

    Source: He et al. (2016), Deep residual learning for image recognition; the start at 0, Goyal
        et al. (2017), Accurate, large minibatch SGD, section 5.1.
    """
    network, evaluating = (_network(config, make(config.eps)) for make in _NORMS)

    def init(key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
        return network.init(key, (1, 8, 8, config.colours), dtype)

    cost = measured_cost(network, softmax_cross_entropy)
    return ResNet(config, init, network, _evaluate(evaluating), cost)


_NORMS = (training_norm, evaluating_norm)


class NetworkResiduals(NamedTuple):
    body: Saved
    pool: Saved
    head: Saved


def _network(config: ResNetConfig, norm: Layer) -> Layer:
    """The network with one kind of norm, over (params, x) -> (logits, statistics).

    Forward    h, statistics = stem, then every block of every stage   (F1)
               p = the mean of h over its places           (B, C)      (F2)
               logits = p @ w + b                                      (F3)
    Backward   dp, dhead = from g                                      (B1) from F3
               dh = from dp                                            (B2) from F2
               dx, dparams = from dh and the statistics' cotangents,
                   block by block in reverse                           (B3) from F1
    """
    body = measured_chain(
        stem=stem(config.widths[0], config.stem == "large", norm), **_stages(config, norm)
    )
    parts = (*body.layers, "head")

    def reference(params: PyTree, x: jax.Array, key: jax.Array | None = None) -> tuple:
        check_params("resnet", parts, params)
        h, statistics = body.reference(_without_head(params), x)  # F1
        p = global_avg_pool.reference(h)  # F2
        return linear.reference(p, params["head"]["w"], params["head"]["b"]), statistics  # F3

    def forward(
        params: PyTree, x: jax.Array, key: jax.Array | None
    ) -> tuple[tuple, NetworkResiduals]:
        check_params("resnet", parts, params)
        (h, statistics), of_h = body.forward(_without_head(params), x)  # F1
        p, of_p = global_avg_pool.forward(h)  # F2
        logits, of_logits = linear.forward(p, params["head"]["w"], params["head"]["b"])  # F3
        return (logits, statistics), NetworkResiduals(of_h, of_p, of_logits)

    def backward(
        res: NetworkResiduals, g: tuple[jax.Array, PyTree]
    ) -> tuple[PyTree, jax.Array, None]:
        g_logits, g_statistics = g
        dp, dw, db = linear.backward(res.head, g_logits)  # B1
        dh = global_avg_pool.backward(res.pool, dp)[0]  # B2
        dparams, dx, _ = body.backward(res.body, (dh, g_statistics))  # B3
        return dparams | {"head": {"w": dw, "b": db}}, dx, None

    def init(key: jax.Array, x_shape: Shape, dtype: Any = jnp.float32) -> PyTree:
        of_body, of_head = jax.random.split(key)
        shape = (config.widths[-1], config.classes)
        w = jax.nn.initializers.glorot_uniform()(of_head, shape, dtype)
        head = {"w": w, "b": jnp.zeros(shape[1:], dtype)}
        return body.init(of_body, x_shape, dtype) | {"head": head}

    reference.__name__ = "resnet"
    reference.__doc__ = _network.__doc__
    return Layer(reference, forward, backward, init=init)


def _stages(config: ResNetConfig, norm: Layer) -> dict[str, Layer]:
    """The stages by name. Blocks are not looped over: two in a stage differ, and two are few."""
    stages, before = {}, config.widths[0]
    for k, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True), start=1):
        stride = 1 if k == 1 else 2
        first = block(width, stride, stride > 1 or width != before, norm, config.zero_gamma)
        others = [block(width, 1, False, norm, config.zero_gamma) for _ in range(depth - 1)]
        blocks = {f"block_{n}": each for n, each in enumerate([first, *others], start=1)}
        stages[f"stage_{k}"], before = measured_chain(**blocks), width
    return stages


def _without_head(params: PyTree) -> PyTree:
    return {name: part for name, part in params.items() if name != "head"}


def _evaluate(network: Layer) -> Rule:
    """The rule (params, running, x) -> logits, of the network whose norms find both in one tree."""

    def evaluate(params: PyTree, running: PyTree, x: jax.Array) -> jax.Array:
        check_running("resnet", params, running)
        return network.reference(merged(params, running), x)[0]

    def forward(params: PyTree, running: PyTree, x: jax.Array) -> tuple[jax.Array, Saved]:
        check_running("resnet", params, running)
        (logits, _), saved = network.forward(merged(params, running), x)
        return logits, saved

    def backward(res: Saved, g: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        dboth, dx, _ = network.backward(res, (g, None))
        return *parted(dboth), dx

    return Rule(evaluate, forward, backward)
