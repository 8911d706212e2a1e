"""The catalogue before the checker: at a quick level by default, in full where slow tests run.

    CATALOGUE_THIRD=0 .venv/bin/python -m pytest -m slow tests/checking/test_catalogue.py

takes every third rule in full, from the first on; CI takes each third in its turn.
"""

import os

import pytest

import jaxprop
from jaxprop import Rule
from jaxprop.checking import check
from jaxprop.checking.check import by_options
from tests.rules.oracle import ids

QUICK = ("algebra", "linearity")
THIRD = os.environ.get("CATALOGUE_THIRD")
IN_FULL = jaxprop.CATALOGUE if THIRD is None else jaxprop.CATALOGUE[int(THIRD) :: 3]
# Transformations, meshes and purity are the installer's, and the same for every setting; second
# order takes too long for more than one. `scripts/check_vjps.py` checks all at all of them.
VALUES = ("contract", "algebra", "linearity", "numerics", "edges", "shapes", "residuals")


@pytest.mark.parametrize("rule", jaxprop.CATALOGUE, ids=ids)
def test_a_rule_is_right_at_its_first_case(rule: Rule) -> None:
    case = rule.cases()[0]
    report = check(rule.bind(**case.options), *case.args, checks=QUICK)
    assert report.verdict == "PASS", str(report)


@pytest.mark.slow
@pytest.mark.usefixtures("programs_dropped")
@pytest.mark.parametrize("rule", IN_FULL, ids=ids)
def test_no_rule_fails_anywhere(rule: Rule) -> None:
    """Everything at the first setting of its options, and at the others what hangs on them."""
    for setting, (options, cases) in enumerate(by_options(rule.cases())):
        ordinary = [case.args for case in cases if not case.edge] or [cases[0].args]
        report = check(
            rule.bind(**options),
            *ordinary[0],
            shapes=ordinary[1:],
            edges=[case.args for case in cases if case.edge],
            checks=VALUES if setting else None,
        )
        assert report.verdict != "FAIL", f"{options}: {report}"
