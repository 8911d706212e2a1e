"""The call: what it takes, what it refuses, and where the outcomes of a rule's cases are filed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxprop
from jaxprop import Case, Rule
from jaxprop.checking.check import CHECKS, by_options
from tests.checking.making import normal, vjp

sine = vjp(jnp.sin, lambda res, g: (g * jnp.cos(res[0]),))
twice = vjp(jnp.sin, lambda res, g: (2 * g * jnp.cos(res[0]),))


def scaled_reference(x: jax.Array, *, times: float = 1.0) -> jax.Array:
    return times * x


def scaled_forward(x: jax.Array, *, times: float) -> tuple[jax.Array, tuple[jax.Array]]:
    return times * x, (jnp.full((), times, x.dtype),)


def scaled_backward(res: tuple[jax.Array], g: jax.Array) -> tuple[jax.Array]:
    return (0 * g if g.shape == (3,) else res[0] * g,)  # wrong for vectors of three


def scaled_cases() -> list[Case]:
    return [
        Case("four", (normal(4),)),
        Case("three", (normal(3),)),
        Case("ones", (jnp.ones(3),), edge=True),
        Case("as a float", (normal(5),), {"times": 2.0}),
        Case("as an integer", (normal(5),), {"times": 2}),
    ]


scaled = Rule(scaled_reference, scaled_forward, scaled_backward, scaled_cases)


def test_a_right_function_passes_and_a_wrong_one_names_its_argument() -> None:
    assert jaxprop.check(sine, normal(4), checks=["algebra"]).verdict == "PASS"
    report = jaxprop.check(twice, normal(4), checks=["algebra"])
    assert report.verdict == "FAIL"
    assert {finding.argument for finding in report.findings} == {"x"}


def test_what_is_wrong_outside_of_jit_alone_is_found_by_the_transformations() -> None:
    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        return (g * jnp.cos(x) * (1 if isinstance(g, jax.core.Tracer) else 2),)

    doubled = vjp(jnp.sin, backward, lambda x: (jnp.sin(x), x))
    checks = ("algebra", "transforms")
    report = jaxprop.check(doubled, normal(6), checks=checks)
    wrong = {finding.check for finding in report.findings if finding.verdict == "FAIL"}
    assert wrong == {"transforms"}


def test_only_the_checks_asked_for_are_run() -> None:
    report = jaxprop.check(sine, normal(4), checks=["linearity", "contract"])
    assert {outcome.check for outcome in report.outcomes} == {"linearity", "contract"}


def test_further_seeds_are_named_and_draw_other_numbers() -> None:
    report = jaxprop.check(twice, normal(4), further_seeds=(3, 5), checks=["algebra", "purity"])
    drawn = {o.transform: o.got for o in report.outcomes if o.check == "algebra"}
    assert len({drawn[place] for place in ("g 0", "g 0, seed 3", "g 0, seed 5")}) == 3
    assert not any("seed" in o.transform for o in report.outcomes if o.check == "purity")


def test_outcomes_of_a_rule_lie_at_its_cases_by_name_and_with_their_options() -> None:
    report = jaxprop.check(scaled, checks=["shapes", "edges"])
    wrong = {finding.transform for finding in report.findings}
    assert {"case 'three'", "case 'ones'"} <= wrong
    assert any(o.transform.endswith(", times=2.0") for o in report.outcomes)
    assert any(o.transform.endswith(", times=2") for o in report.outcomes)


def test_options_that_are_equal_but_of_two_types_are_two_settings() -> None:
    settings = [options for options, _ in by_options(scaled.cases())]
    assert [repr(options) for options in settings] == ["{}", "{'times': 2.0}", "{'times': 2}"]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: jaxprop.check(3, normal(4)), TypeError, "check: f must be callable, got int"),
        (lambda: jaxprop.check(sine), TypeError, "needs arguments to be checked at, got none"),
        (
            lambda: jaxprop.check(sine, normal(4), checks=["algbra"]),
            ValueError,
            "check: checks must be among contract, algebra",
        ),
        (
            lambda: jaxprop.check(lambda i: i, jnp.arange(3)),
            ValueError,
            "must have a floating argument to differentiate in, got none",
        ),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_every_check_has_a_name_that_the_guide_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checking.md").read_text()
    missing = [name for name in CHECKS if name != "meshes" and f"| {name} |" not in page]
    assert missing == []
