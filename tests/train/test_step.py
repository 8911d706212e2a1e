"""The compiled steps against a plain loop, and cut anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop.train.experiment import Experiment
from jaxprop.train.step import State, epoch_cost, initial_state, make_run_steps
from tests.tolerances import assert_near
from tests.train.small import experiment

PLAIN = {"optimiser": "sgd", "schedule": "constant", "learning_rate": 0.1}


@pytest.fixture(scope="module")
def made() -> Experiment:
    return experiment()


def assert_identical(a: State, b: State) -> None:
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_epoch_is_gradient_descent_on_each_batch_the_rest_included() -> None:
    made = experiment(**PLAIN)
    state = make_run_steps(made)(initial_state(made), made.order(1), 0, made.steps_per_epoch)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), made.init())
        strength = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), made.strength)
        costs, by_jax = [], jax.jit(made.by_jax)
        for rows in np.split(np.asarray(made.order(1)), [16, 32, 48]):
            x, y = jnp.asarray(made.x[rows], jnp.float64), made.y[rows]
            J, dparams = by_jax(params, x, y, strength)
            params = jax.tree.map(lambda p, d: p - 0.1 * d, params, dparams)
            costs.append(J)
        assert_near(state.params, params, reduced=4 * 16)
        assert_near(state.costs, jnp.stack(costs), reduced=4 * 16)


@pytest.mark.parametrize("cuts", [(1,), (3,), (2, 3), (1, 2, 3)])
def test_where_an_epoch_is_cut_changes_no_bit(made: Experiment, cuts: tuple[int, ...]) -> None:
    run_steps, order = make_run_steps(made), made.order(1)
    whole = run_steps(initial_state(made), order, 0, 4)
    state = initial_state(made)
    for start, stop in zip((0, *cuts), (*cuts, 4), strict=True):
        state = run_steps(state, order, start, stop)
    assert_identical(state, whole)


def test_the_state_is_donated(made: Experiment) -> None:
    state = initial_state(made)
    make_run_steps(made)(state, made.order(1), 0, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_steps_compile_once() -> None:
    made = experiment()
    by_hand, traced = made.by_hand, []

    def counting(*args: object) -> object:
        traced.append(1)
        return by_hand(*args)

    object.__setattr__(made, "by_hand", counting)
    run_steps, state = make_run_steps(made), initial_state(made)
    for epoch in (1, 2, 3):
        for start in range(4):
            state = run_steps(state, made.order(epoch), start, start + 1)
    assert len(traced) == 2  # whole batches, and the rest


def test_a_batch_that_divides_the_data_has_no_rest() -> None:
    made = experiment(batch_size=20)
    assert made.steps_per_epoch == 3
    state = make_run_steps(made)(initial_state(made), made.order(1), 0, 3)
    assert np.all(np.asarray(state.costs) > 0)


def test_the_cost_of_an_epoch_weighs_steps_by_their_examples() -> None:
    costs = np.asarray([1.0, 2.0, 3.0, 10.0])
    truth = (16 * (1 + 2 + 3) + 12 * 10) / 60
    assert_near(jnp.asarray(epoch_cost(experiment(), costs)), jnp.asarray(truth))


@pytest.mark.slow
def test_the_optimiser_of_the_settings_is_the_one_that_runs() -> None:
    made = experiment(optimiser="adam", schedule="constant", learning_rate=0.01)
    state = make_run_steps(made)(initial_state(made), made.order(1), 0, 1)
    rows = made.order(1)[:16]
    args = (made.init(), made.x[rows], made.y[rows], made.strength)
    _, dparams = jax.jit(made.by_hand)(*args)
    adam = optax.adam(0.01)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = adam.update(dparams, adam.init(made.init()))
        truth = optax.apply_updates(made.init(), updates)
    assert_near(state.params, truth, reduced=16)
