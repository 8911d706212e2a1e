"""What a run trains, by its family: the parameters, the cost, and the network that evaluates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprop
from jaxprop.costs import Cost
from jaxprop.installing import PyTree
from jaxprop.layers import Layer
from jaxprop.models.batch_statistics import initial, measured_cost
from jaxprop.models.lenet import LeNetConfig, lenet
from jaxprop.models.mlp import MlpConfig, mlp
from jaxprop.models.resnet import ResNetConfig, resnet
from jaxprop.rule import Rule
from jaxprop.train.config import Config
from jaxprop.train.dataset import Dataset
from jaxprop.train.errors import TrainingError

# Images no larger than this get ResNet's small stem.
SMALL = 64


@dataclass(frozen=True, eq=False)
class Model:
    """What a run trains.

    J:        the cost, (params, x, y, strength) -> J, or (J, statistics) where it is `measured`.
    loss:     the loss in it, (y_hat, y) -> L.
    network:  what J trains; its init makes the parameters.
    evaluate: (params, running, x) -> y_hat.
    measured: whether J returns the statistics of its batch norms.
    """

    J: Rule
    loss: Rule
    network: Layer
    evaluate: Callable[[PyTree, PyTree, jax.Array], jax.Array]
    measured: bool

    def running(self, params: PyTree) -> PyTree:
        """The averages of the statistics before the first step; none where there are none."""
        return initial(params) if self.measured else {}


def make_model(config: Config, dataset: Dataset) -> Model:
    """What the settings and the data ask for.

    Raises TrainingError where they do not fit.
    """
    if config.network.family != "dense" and not dataset.are_images:
        raise TrainingError(
            f"--family {config.network.family} must have images, got {dataset.name}, which has "
            "none. Give another --dataset, or --family dense."
        )
    if config.network.family == "resnet18":
        return _residual(config, dataset)
    network = make_network(config, dataset)
    J = make_cost(config, network, dataset)
    return Model(J, J.loss, network, lambda params, running, x: network(params, x), False)


def make_network(config: Config, dataset: Dataset) -> Layer:
    """A chain: the notes' network, hidden_1, hidden_2, .. and output; or LeNet.

    The output layer has the identity as its activation, since the losses of classification take
    logits.
    """
    settings, units = config.network, output_units(dataset)
    activations = tuple(map(_activation, settings.activations))
    try:
        if settings.family == "lenet":
            (activation,), image = activations, dataset.x.shape[1:]
            channels = settings.channels or LeNetConfig.channels
            shape = LeNetConfig(image, units, channels, settings.layers, activation=activation)
            return lenet(shape).network
        features = int(np.prod(dataset.x.shape[1:]))
        return mlp(MlpConfig(features, settings.layers, units, activations)).network
    except ValueError as error:
        raise TrainingError(str(error)) from None


def _residual(config: Config, dataset: Dataset) -> Model:
    """ResNet-18, its J with the settings' penalty on the parameters."""
    if config.cost.activity_penalty != "none" or config.cost.reading != "separate":
        raise TrainingError(
            "--family resnet18 takes a penalty on the parameters, beside the loss, got "
            f"--activity-penalty {config.cost.activity_penalty} --reading {config.cost.reading}. "
            "Leave them out."
        )
    height, width, colours = dataset.x.shape[1:]
    stem = "small" if max(height, width) <= SMALL else "large"
    widths = config.network.channels or ResNetConfig.widths
    model = resnet(ResNetConfig(output_units(dataset), colours, widths, stem=stem))
    loss = _loss(dataset)
    J = measured_cost(model.network, loss, _penalty(config))
    return Model(J, loss, model.network, model.evaluate, True)


def output_units(dataset: Dataset) -> int:
    """The width of the output layer."""
    return len(dataset.classes) if dataset.kind == "classes" else 1


def make_cost(config: Config, network: Layer, dataset: Dataset) -> Cost:
    """J of a chain: the loss that the data asks for, and the settings' penalties."""
    settings, activity = config.cost, None
    if settings.activity_penalty != "none":
        activity = getattr(jaxprop, f"activity_{settings.activity_penalty}")
    return jaxprop.cost(network, _loss(dataset), _penalty(config), activity, settings.reading)


def _loss(dataset: Dataset) -> Rule:
    return {
        "classes": jaxprop.softmax_cross_entropy,
        "binary": jaxprop.sigmoid_binary_cross_entropy,
        "regression": jaxprop.mean_squared_error,
    }[dataset.kind]


def _penalty(config: Config) -> Rule | None:
    """That on the parameters, of the weights alone unless told; None where there is none."""
    if config.cost.penalty == "none":
        return None
    leaves = None if config.cost.penalise_biases else "*/w"
    return getattr(jaxprop, config.cost.penalty).bind(leaves=leaves)


def make_strength(config: Config, dtype: Any) -> PyTree:
    """The strength of J, arrays: changing one compiles nothing."""
    settings = config.cost
    strength = {}
    if settings.penalty != "none":
        strength["penalty"] = settings.strength
    if settings.penalty == "elastic_net":
        strength["l1_ratio"] = settings.l1_ratio
    if settings.activity_penalty != "none":
        strength["activity"] = settings.activity_strength
    return {name: jnp.asarray(value, dtype) for name, value in strength.items()} or None


def _activation(name: str) -> Rule:
    """A rule of one array that keeps its shape, by its public name; of gelu, by its form."""
    rules = {n: rule for n, rule in vars(jaxprop).items() if isinstance(rule, Rule)}
    rules["gelu_erf"] = jaxprop.gelu.bind(approximate=False)
    rules["gelu_tanh"] = jaxprop.gelu.bind(approximate=True)
    if name in rules and _keeps_shape(rules[name]):
        return rules[name]
    names = sorted(n for n, rule in rules.items() if _keeps_shape(rule))
    raise TrainingError(f"--activations must be among {', '.join(names)}, got {name!r}.")


def _keeps_shape(rule: Rule) -> bool:
    x = jax.ShapeDtypeStruct((2, 3), np.float32)
    try:
        y = jax.eval_shape(rule.reference, x)
    except (TypeError, ValueError, AttributeError):
        return False
    return isinstance(y, jax.ShapeDtypeStruct) and (y.shape, y.dtype) == (x.shape, x.dtype)
