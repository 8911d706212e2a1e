"""No right function may fail, whatever the seed.

    CHECK_SEEDS=20 .venv/bin/python -m pytest -m slow tests/checking/test_right.py

takes twenty seeds, as docs/checking.md reports them. CI leaves these out: an hour of a core.
"""

import os
from collections.abc import Sequence

import pytest

from jaxprop.checking import check
from tests.checking.making import Right
from tests.checking.right import RIGHT

SEEDS = range(int(os.environ.get("CHECK_SEEDS", "1")))
# Run by default.
QUICK = {"relu: a half at zero"}


def ids(right: Right) -> str:
    return right.name.replace(" ", "_")


def assert_right(right: Right, further_seeds: Sequence[int]) -> None:
    report = check(right.f, *right.args(), **right.options, further_seeds=further_seeds)
    assert report.verdict != "FAIL", str(report)


@pytest.mark.parametrize("right", [r for r in RIGHT if r.name in QUICK], ids=ids)
def test_a_right_function_does_not_fail(right: Right) -> None:
    assert_right(right, ())


@pytest.mark.slow
@pytest.mark.parametrize("right", RIGHT, ids=ids)
def test_a_right_function_fails_with_no_seed(right: Right) -> None:
    assert_right(right, SEEDS[1:])


def test_there_are_enough_of_them() -> None:
    names = [right.name for right in RIGHT]
    assert len(set(names)) == len(names) >= 45
    assert set(names) > QUICK
