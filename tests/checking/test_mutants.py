"""Every wrong function must be found, by the right check, under the right name."""

import pytest

from jaxprop.checking import check
from tests.checking.making import Mutant
from tests.checking.mutants import MUTANTS

# One of each class by default; slow ones run in CI.
QUICK = {
    "g absolute",
    "abs: nan at zero",
    "residual cut from second order",
    "wrong in bfloat16 only",
}
# The checks that file findings under another name than their own.
RUN_FOR = {"transforms": ("transforms", "meshes"), "finite differences": ("algebra",)}
CASES = [
    pytest.param(
        mutant,
        marks=() if mutant.name in QUICK else pytest.mark.slow,
        id=mutant.name.replace(" ", "_"),
    )
    for mutant in MUTANTS
]


@pytest.mark.usefixtures("programs_dropped")
@pytest.mark.parametrize("mutant", CASES)
def test_a_mutant_is_found_and_named(mutant: Mutant) -> None:
    """By the checks that should see it, which are run alone; `comparing` runs all of them."""
    checks = {run for name in mutant.checks for run in RUN_FOR.get(name, (name,))}
    report = check(mutant.f, *mutant.args(), **{"checks": sorted(checks)} | mutant.options)
    assert report.verdict in (mutant.verdict, "FAIL"), str(report)
    named = [
        (f.check, f.argument)
        for f in report.findings
        if f.verdict == mutant.verdict
        and f.check in mutant.checks
        and mutant.argument in f.argument
    ]
    assert named, f"none of {mutant.checks} names {mutant.argument!r}:\n{report}"


def test_there_are_enough_of_them() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60
    assert set(names) > QUICK
