"""The jitted training steps: many in one call, the state donated, the data on the device."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.models.batch_statistics import updated
from jaxprop.train.language import AnyExperiment
from jaxprop.train.optimisers import update


class State(NamedTuple):
    """What a step changes.

    params:    the network's parameters.
    optimiser: the optimiser's state.
    costs:     J at each step of the current epoch so far, before its update.
    running:   the averages of batch statistics, which evaluation takes; {} where there are none.
    """

    params: PyTree
    optimiser: PyTree
    costs: jax.Array
    running: PyTree


RunSteps = Callable[[State, jax.Array, int, int], State]


def initial_state(experiment: AnyExperiment) -> State:
    """The state before the first step."""
    params = experiment.init()
    costs = jnp.zeros((experiment.steps_per_epoch,), jax.tree.leaves(params)[0].dtype)
    return State(params, experiment.optimiser.init(params), costs, experiment.running(params))


@lru_cache(maxsize=1)  # so an experiment that is fitted again is not compiled again
def make_run_steps(experiment: AnyExperiment) -> RunSteps:
    """Make the function (state, order, start, stop) -> state that runs those steps of an epoch.

    Steps are counted within the epoch; step k takes the examples
    order[k * batch_size : (k + 1) * batch_size], the last one what is left. The bounds of the
    loop are arguments, so any stretch of an epoch runs through one compiled program, and
    where an epoch is cut does not change its numbers.
    """
    batch = experiment.batch_size
    full, rest = divmod(experiment.examples, batch)

    def step(data: PyTree, state: State, rows: jax.Array, index: jax.Array) -> State:
        value, dparams = experiment.step_gradient(state.params, *experiment.batch(data, rows))
        J, running = _averaged(value, state.running)
        params, optimiser = update(experiment.optimiser, dparams, state.optimiser, state.params)
        return State(params, optimiser, state.costs.at[index].set(J), running)

    @partial(jax.jit, donate_argnums=0)
    def whole(
        state: State, data: PyTree, order: jax.Array, start: jax.Array, stop: jax.Array
    ) -> State:
        def body(index: jax.Array, state: State) -> State:
            rows = lax.dynamic_slice_in_dim(order, index * batch, batch)
            return step(data, state, rows, index)

        return lax.fori_loop(start, stop, body, state)

    @partial(jax.jit, donate_argnums=0)
    def last(state: State, data: PyTree, order: jax.Array) -> State:
        return step(data, state, order[full * batch :], jnp.int32(full))

    data = experiment.data

    def run_steps(state: State, order: jax.Array, start: int, stop: int) -> State:
        if start < full:
            bounds = jnp.int32(start), jnp.int32(min(stop, full))
            state = whole(state, data, order, *bounds)
        return last(state, data, order) if rest and stop > full else state

    return run_steps


def _averaged(value: PyTree, running: PyTree) -> tuple[jax.Array, PyTree]:
    """(J, the averages with this step's statistics in them) of J, or of (J, statistics)."""
    if not isinstance(value, tuple):
        return value, running
    J, statistics = value
    return J, updated(running, statistics)


def epoch_cost(experiment: AnyExperiment, costs: np.ndarray) -> float:
    """The mean of J over the examples of an epoch, each at the step that saw it."""
    batch, examples = experiment.batch_size, experiment.examples
    sizes = np.minimum(batch, examples - batch * np.arange(len(costs)))
    return float(np.average(costs.astype(np.float64), weights=sizes))
