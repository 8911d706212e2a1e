"""An experiment: the data on the device, the network, its cost, its gradient, its optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxprop
from jaxprop.installing import PyTree
from jaxprop.precision import at_least_float32
from jaxprop.rule import Rule
from jaxprop.train.config import Config
from jaxprop.train.data import Split
from jaxprop.train.errors import TrainingError
from jaxprop.train.networks import Model, make_model, make_strength, output_units
from jaxprop.train.optimisers import make_optimiser, make_schedule

ValueAndGrad = Callable[..., tuple[PyTree, PyTree]]


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a training run needs, made of a Config and a Split.

    model:          the cost J, and the network and the loss in it.
    strength:       J's strength.
    by_hand:        (params, x, y, strength) -> (J, dparams), without automatic differentiation;
                    ((J, statistics), dparams) where the model is measured.
    by_jax:         the same by jax.grad of the references.
    x, y:           the training part, on the device; x are rows for a dense network, else images.
    x_held, y_held: the held-out part, on the device.
    """

    config: Config
    split: Split
    model: Model
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
    def J(self) -> Rule:
        """The cost."""
        return self.model.J

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
        return self.model.network.init(key, (1, *self.x.shape[1:]), dtype)

    def running(self, params: PyTree) -> PyTree:
        """The averages of batch statistics before the first step; none where there are none."""
        return self.model.running(params)


def prepare(
    config: Config,
    split: Split,
    by_hand: Callable[..., ValueAndGrad] = jaxprop.value_and_grad,
) -> Experiment:
    """Make an experiment.

    Run it, and what uses its result, under `jax.enable_x64(True)` for float64.

    Args:
        config: the settings.
        split: the data of `config.network.dataset`.
        by_hand: makes of J the function (params, x, y, strength) -> (J, dparams); another
            than jaxprop's own for a gradient with a slip in it, say. Where J returns statistics
            too it is called with has_aux=True.

    Raises:
        TrainingError: where a name in the settings is unknown, the network does not fit the data,
            or float64 is not enabled.
    """
    dtype = jnp.dtype(config.optimisation.dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TrainingError("float64 must be enabled, got 32 bits. Use jax.enable_x64(True).")
    compute = at_least_float32(dtype)
    model = make_model(config, split.dataset)
    x = split.x if config.network.family == "dense" else split.standardised
    steps = steps_per_epoch(config, len(split.train)) * config.optimisation.epochs
    schedule = make_schedule(config.optimisation, steps)
    arrays = {
        f"{name}{part}": jnp.asarray(make(rows, compute))
        for part, rows in (("", split.train), ("_held", split.held_out))
        for name, make in (("x", x), ("y", split.y))
    }
    for name in ("x", "x_held"):
        arrays[name] = arrays[name].astype(dtype)
    return Experiment(
        config=config,
        split=split,
        model=model,
        strength=make_strength(config, compute),
        by_hand=_made(by_hand, model),
        by_jax=_by_jax(model),
        schedule=schedule,
        optimiser=make_optimiser(config.optimisation, schedule),
        **arrays,
    )


def steps_per_epoch(config: Config, examples: int) -> int:
    """Whole batches, and one more step for what is left."""
    return -(-examples // config.optimisation.batch_size)


@partial(jax.jit, static_argnames="examples")
def _permutation(seed: int, epoch: int, examples: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples)


def _made(by_hand: Callable[..., ValueAndGrad], model: Model) -> ValueAndGrad:
    try:
        return by_hand(model.J, has_aux=True) if model.measured else by_hand(model.J)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def _by_jax(model: Model) -> ValueAndGrad:
    def run(params: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        with jaxprop.automatic():
            return jax.value_and_grad(model.J, has_aux=model.measured)(params, *args)

    return run
