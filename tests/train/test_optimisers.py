"""Optimisers and schedules by name, and the errors for what is none."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxprop.train.config import Optimisation
from jaxprop.train.errors import TrainingError
from jaxprop.train.optimisers import (
    make_optimiser,
    make_schedule,
    optimiser_names,
    rate_at,
    schedule_names,
    update,
)
from tests.tolerances import assert_near

STEPS = 100


def make(**changes: object) -> optax.GradientTransformation:
    config = Optimisation(**changes)
    return make_optimiser(config, make_schedule(config, STEPS))


@pytest.mark.slow
def test_the_names_are_those_of_optax_and_each_takes_a_step() -> None:
    names = optimiser_names()
    assert {"adam", "adamw", "sgd", "rmsprop", "lion", "nadam", "adagrad"} <= set(names)
    assert not {"lbfgs", "scale_by_learning_rate", "rprop"} & set(names)
    params = {"w": jnp.ones((2, 3))}
    for name in names:
        optimiser = make(optimiser=name)
        new, _ = update(optimiser, params, optimiser.init(params), params)
        assert jnp.all(new["w"] != params["w"]), name


def test_options_reach_the_optimiser() -> None:
    params, gradients = {"w": jnp.ones(3)}, {"w": jnp.full(3, 2.0)}
    config = {"optimiser": "sgd", "schedule": "constant", "learning_rate": 0.1}
    ours = make(**config, optimiser_options=("momentum=0.5", "nesterov=True"))
    theirs = optax.sgd(0.1, momentum=0.5, nesterov=True)
    with jax.numpy_dtype_promotion("standard"):
        truth, _ = theirs.update(gradients, theirs.init(params), params)
    new, _ = update(ours, gradients, ours.init(params), params)
    assert_near(new["w"], params["w"] + truth["w"])


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("constant", 0.5, 0.5),
        ("cosine", 0.5, 0.0),
        ("cosine_decay_schedule", 0.5, 0.0),
        ("linear", 0.5, 0.0),
        ("exponential", 0.5, 0.005),
        ("warmup_cosine", 0.0, 0.0),
        ("warmup_constant", 0.0, 0.5),
    ],
)
def test_a_schedule_spans_the_run(name: str, first: float, last: float) -> None:
    schedule = make_schedule(Optimisation(schedule=name, learning_rate=0.5), STEPS)
    rates = [rate_at(schedule, step) for step in range(STEPS + 1)]
    got, truth = jnp.asarray([rates[0], rates[-1], max(rates)]), jnp.asarray([first, last, 0.5])
    assert_near(got, truth)


def test_schedule_options_reach_the_schedule() -> None:
    config = Optimisation(schedule="polynomial", schedule_options=("power=2",), learning_rate=0.4)
    assert_near(jnp.asarray(rate_at(make_schedule(config, STEPS), STEPS // 2)), 0.1)


def test_every_schedule_that_is_named_can_be_made() -> None:
    names = schedule_names()
    assert {"constant_schedule", "cosine_decay_schedule", "exponential_decay"} <= set(names)
    for name in names:
        assert rate_at(make_schedule(Optimisation(schedule=name), STEPS), 3) >= 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimiser": "adan2"}, "--optimiser must be one of adabelief, "),
        ({"optimiser": "apply_updates"}, "got 'apply_updates'"),
        ({"optimiser": "lbfgs"}, "cannot be used here"),
        ({"optimiser": "optimistic_adam"}, "deprecated"),
        ({"optimiser_options": ("momentun=0.9",)}, "--optimiser takes (learning_rate, b1, "),
        ({"schedule": "cosin"}, "--schedule must be one of constant_schedule, "),
        ({"schedule": "join"}, "got 'join'"),
        ({"schedule": "polynomial"}, "power"),
    ],
)
def test_what_is_none_is_refused_with_the_good_names(changes: dict, says: str) -> None:
    with pytest.raises(TrainingError) as error:
        make(**changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
