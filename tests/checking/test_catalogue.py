"""The catalogue before the checker: at a quick level by default, in full where slow tests run."""

from collections.abc import Iterator

import jax
import pytest

import jaxprop
from jaxprop import Rule
from jaxprop.checking import check
from tests.rules.oracle import ids

QUICK = ("algebra", "linearity")


@pytest.fixture
def programs_dropped() -> Iterator[None]:
    """A full check compiles hundreds of programs that no other test runs."""
    yield
    jax.clear_caches()


@pytest.mark.parametrize("rule", jaxprop.CATALOGUE, ids=ids)
def test_a_rule_is_right_at_its_first_case(rule: Rule) -> None:
    case = rule.cases()[0]
    report = check(rule.bind(**case.options), *case.args, checks=QUICK)
    assert report.verdict == "PASS", str(report)


@pytest.mark.slow
@pytest.mark.usefixtures("programs_dropped")
@pytest.mark.parametrize("rule", jaxprop.CATALOGUE, ids=ids)
def test_no_rule_fails_anywhere(rule: Rule) -> None:
    report = check(rule)
    assert report.verdict != "FAIL", str(report)
