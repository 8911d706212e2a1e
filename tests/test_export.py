"""Lowering for CPU, CUDA and TPU on a machine that need have none but a CPU."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax

import jaxprop
from jaxprop import Rule
from jaxprop.train.step import initial_state, make_run_steps
from tests.rules.oracle import by_options, pick
from tests.subjects import slow_unless_default
from tests.tolerances import assert_near
from tests.train.small import experiment

EVERY = [
    pytest.param(rule, id=rule.name, marks=slow_unless_default(rule)) for rule in jaxprop.CATALOGUE
]
PLATFORMS = ("cpu", "cuda", "tpu")


def exported(function: Any, *args: Any) -> export.Exported:
    return export.export(jax.jit(function), platforms=PLATFORMS)(*args)


@pytest.mark.parametrize("rule", EVERY)
def test_every_rule_lowers_for_every_platform(rule: Rule) -> None:
    """The forward and the gradient, at each setting of the options and each kind of argument."""
    for case in by_options(rule):
        function, some = pick(case, rule)

        def both(*some, function=function):
            y, pullback = jax.vjp(function, *some)
            return y, pullback(jax.tree.map(jnp.ones_like, y))

        assert exported(both, *some).platforms == PLATFORMS


def test_what_has_no_lowering_for_a_platform_is_noticed() -> None:
    with pytest.raises(NotImplementedError, match="tpu"):
        exported(lambda x: lax.linalg.schur(x)[0], jnp.eye(2))


@pytest.mark.slow
def test_the_train_step_lowers_for_every_platform_and_gives_the_same_numbers() -> None:
    """The steps that training runs, one epoch of them."""
    made = experiment()
    run_steps, order = make_run_steps(made), made.order(1)

    def epoch(state, order):
        return run_steps(state, order, 0, made.steps_per_epoch)

    program = exported(epoch, initial_state(made), order)
    assert program.platforms == PLATFORMS
    here, truth = program.call(initial_state(made), order), epoch(initial_state(made), order)
    for part in ("params", "costs"):
        got, want = getattr(here, part), getattr(truth, part)
        assert_near(got, want, reduced=made.steps_per_epoch * made.batch_size, what=part)
