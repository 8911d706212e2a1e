"""Rules compose through .reference, .forward and .backward only: none calls a rule."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jaxprop
from jaxprop import Case, Rule
from tests.rules.oracle import by_options
from tests.subjects import STRAINING


@pytest.fixture
def calls_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_at_call(rule: Rule, *args: object, **options: object) -> None:
        raise AssertionError(f"{rule.name} was called")

    monkeypatch.setattr(Rule, "__call__", raise_at_call)


@pytest.mark.usefixtures("calls_raise")
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=rule.name, marks=() if rule in STRAINING else pytest.mark.slow)
        for rule in jaxprop.CATALOGUE
    ],
)
def test_no_reference_forward_or_backward_calls_a_rule(rule: Rule) -> None:
    def all_three(case: Case) -> tuple:
        y, saved = rule.forward(*case.args, **case.options)
        g = jax.tree.map(jnp.ones_like, y)
        return rule.reference(*case.args, **case.options), rule.backward(saved, g)

    for case in by_options(rule):
        jax.eval_shape(partial(all_three, case))


@pytest.mark.usefixtures("calls_raise")
def test_a_rule_that_calls_one_is_noticed() -> None:
    def calls_reference(x):
        return jaxprop.relu(x)

    rule = Rule(calls_reference, lambda x: (x, ()), lambda res, g: (g,))
    with pytest.raises(AssertionError, match="relu was called"):
        rule.reference(jnp.ones(3))
