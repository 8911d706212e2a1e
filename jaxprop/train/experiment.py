"""An experiment: the data on the device, the network, its cost, its gradient, its optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.costs import Cost
from jaxprop.installing import PyTree
from jaxprop.layers import Layer
from jaxprop.precision import at_least_float32
from jaxprop.rule import Rule
from jaxprop.train.config import Config
from jaxprop.train.data import Split
from jaxprop.train.dataset import Dataset
from jaxprop.train.errors import TrainingError
from jaxprop.train.optimisers import make_optimiser, make_schedule

ValueAndGrad = Callable[..., tuple[jax.Array, PyTree]]


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a training run needs, made of a Config and a Split.

    J:              the cost, and in it the network and the loss.
    strength:       J's strength.
    by_hand:        (params, x, y, strength) -> (J, dparams), without automatic differentiation.
    by_jax:         the same by jax.grad of the references.
    x, y:           the training part, on the device.
    x_held, y_held: the held-out part, on the device.
    """

    config: Config
    split: Split
    J: Cost
    strength: PyTree
    by_hand: ValueAndGrad
    by_jax: ValueAndGrad
    schedule: optax.Schedule
    optimiser: optax.GradientTransformation
    x: jax.Array
    y: jax.Array
    x_held: jax.Array
    y_held: jax.Array

    @property
    def step_gradient(self) -> ValueAndGrad:
        """The one that training uses."""
        return self.by_jax if self.config.optimisation.automatic else self.by_hand

    @property
    def examples(self) -> int:
        """How many an epoch has."""
        return len(self.x)

    @property
    def batch_size(self) -> int:
        return min(self.config.optimisation.batch_size, self.examples)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.config, self.examples)

    @property
    def data(self) -> PyTree:
        """The arrays that a step's batch is taken from."""
        return self.x, self.y, self.strength

    @staticmethod
    def batch(data: PyTree, rows: jax.Array) -> tuple[PyTree, ...]:
        """What J takes after params, for those examples."""
        x, y, strength = data
        return x[rows], y[rows], strength

    @property
    def units(self) -> int:
        return output_units(self.split.dataset)

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch (from 1 on); it depends on that alone."""
        return _permutation(self.config.optimisation.seed, epoch, len(self.x))

    def init(self) -> PyTree:
        """The parameters that the seed gives."""
        key = jax.random.fold_in(jax.random.key(self.config.optimisation.seed), 0)
        dtype = at_least_float32(self.x.dtype)
        return self.J.network.init(key, (1, self.x.shape[1]), dtype)


def prepare(
    config: Config,
    split: Split,
    by_hand: Callable[[Cost], ValueAndGrad] = jaxprop.value_and_grad,
) -> Experiment:
    """Make an experiment.

    Run it, and what uses its result, under `jax.enable_x64(True)` for float64.

    Args:
        config: the settings.
        split: the data of `config.network.dataset`.
        by_hand: makes of J the function (params, x, y, strength) -> (J, dparams); another
            than jaxprop's own for a gradient with a slip in it, say.

    Raises:
        TrainingError: where a name in the settings is unknown, or float64 is not enabled.
    """
    dtype = jnp.dtype(config.optimisation.dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TrainingError("float64 must be enabled, got 32 bits. Use jax.enable_x64(True).")
    compute = at_least_float32(dtype)
    J = make_cost(config, make_network(config, split.dataset), split.dataset)
    steps = steps_per_epoch(config, len(split.train)) * config.optimisation.epochs
    schedule = make_schedule(config.optimisation, steps)
    arrays = {
        f"{name}{part}": jnp.asarray(make(rows, compute))
        for part, rows in (("", split.train), ("_held", split.held_out))
        for name, make in (("x", split.x), ("y", split.y))
    }
    for name in ("x", "x_held"):
        arrays[name] = arrays[name].astype(dtype)
    return Experiment(
        config=config,
        split=split,
        J=J,
        strength=make_strength(config, compute),
        by_hand=_made(by_hand, J),
        by_jax=_by_jax(J),
        schedule=schedule,
        optimiser=make_optimiser(config.optimisation, schedule),
        **arrays,
    )


def make_network(config: Config, dataset: Dataset) -> Layer:
    """The notes' network: hidden_1, hidden_2, .. and output, all dense.

    The output layer has the identity as its activation, since the losses of
    classification take logits.
    """
    widths, names = config.network.layers, config.network.activations
    activations = [_activation(name) for name in names]
    if len(activations) == 1:
        activations *= len(widths)
    layers = {
        f"hidden_{k}": jaxprop.dense(width, activation)
        for k, (width, activation) in enumerate(zip(widths, activations, strict=True), start=1)
    }
    return jaxprop.chain(**layers, output=jaxprop.dense(output_units(dataset)))


def output_units(dataset: Dataset) -> int:
    """The width of the output layer."""
    return len(dataset.classes) if dataset.kind == "classes" else 1


def make_cost(config: Config, network: Layer, dataset: Dataset) -> Cost:
    """J of the network: the loss that the data asks for, and the settings' penalties."""
    loss = {
        "classes": jaxprop.softmax_cross_entropy,
        "binary": jaxprop.sigmoid_binary_cross_entropy,
        "regression": jaxprop.mean_squared_error,
    }[dataset.kind]
    settings = config.cost
    penalty = activity = None
    if settings.penalty != "none":
        leaves = None if settings.penalise_biases else "*/w"
        penalty = getattr(jaxprop, settings.penalty).bind(leaves=leaves)
    if settings.activity_penalty != "none":
        activity = getattr(jaxprop, f"activity_{settings.activity_penalty}")
    return jaxprop.cost(network, loss, penalty, activity, settings.reading)


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


def steps_per_epoch(config: Config, examples: int) -> int:
    """Whole batches, and one more step for what is left."""
    return -(-examples // config.optimisation.batch_size)


@partial(jax.jit, static_argnames="examples")
def _permutation(seed: int, epoch: int, examples: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples)


def _made(by_hand: Callable[[Cost], ValueAndGrad], J: Cost) -> ValueAndGrad:
    try:
        return by_hand(J)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def _by_jax(J: Rule) -> ValueAndGrad:
    def run(params: PyTree, *args: PyTree) -> tuple[jax.Array, PyTree]:
        with jaxprop.automatic():
            return jax.value_and_grad(J)(params, *args)

    return run


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
