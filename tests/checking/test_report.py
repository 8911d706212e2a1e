"""A report as text, as data and as an exception."""

import json
import math

import pytest

from jaxprop.checking.report import Finding, Report

WRONG = Finding(
    "algebra", "g 0", "FAIL", "params['w']", "off", index=(1, 2), got=1.5, expected=3.0, ratio=0.5,
    ulps=1e15, automatic_ulps=0.5, off=3, size=12, hint="a factor 2 missing?", repro="f(x)",
)  # fmt: skip
DOUBT = Finding("edges", "zeros in x", "WARN", "x", "beyond the range given")
PASSED = Finding("algebra", "g 1", "PASS", "x")


def skipped(*places: str) -> list[Finding]:
    return [Finding("transforms", place, "SKIP", message="one device") for place in places]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [([PASSED], "PASS"), ([PASSED, DOUBT], "WARN"), ([DOUBT, WRONG], "FAIL"), ([], "PASS")],
)
def test_the_verdict_is_that_of_the_worst(outcomes: list[Finding], verdict: str) -> None:
    assert Report("f", 0, tuple(outcomes)).verdict == verdict


def test_findings_are_what_is_wrong_or_doubtful_the_wrong_first() -> None:
    report = Report("f", 0, (PASSED, DOUBT, *skipped("jit"), WRONG))
    assert report.findings == (WRONG, DOUBT)


def test_the_text_of_a_finding_has_all_that_it_knows() -> None:
    assert str(WRONG).splitlines() == [
        "FAIL  algebra, g 0: params['w']",
        "      off",
        "      at [1, 2]: got 1.5, expected 3, ratio 0.5; 1e+15 ulps (automatic 0.5); "
        "3 of 12 elements off",
        "      looks like: a factor 2 missing?",
        "      again: f(x)",
    ]


def test_the_text_of_a_report_counts_each_check_and_names_what_was_skipped() -> None:
    report = Report("f", 7, (PASSED, WRONG, *skipped(*"abcdef")), ("at a kink",), 1.25)
    lines = str(report).splitlines()
    assert lines[0] == "FAIL  f  (1.2 s, seed 7)"
    assert "  algebra             1 FAIL, 1 PASS" in lines
    assert "  transforms          skipped: a, b, c, d and 2 more (one device)" in lines
    assert lines[-1] == "NOTE  at a kink"


def test_the_same_finding_at_other_places_is_shown_once() -> None:
    report = Report("f", 0, (WRONG, Finding("algebra", "g 5", "FAIL", "params['w']")))
    assert str(report).count("FAIL  algebra") == 1


def test_only_a_failure_raises_and_its_text_is_the_report() -> None:
    Report("f", 0, (PASSED, DOUBT)).raise_if_failed()
    report = Report("f", 0, (WRONG,))
    with pytest.raises(AssertionError) as raised:
        report.raise_if_failed()
    assert str(raised.value) == str(report)


def test_data_are_strict_json_also_where_numbers_are_not_finite() -> None:
    wrong = Finding("edges", "zeros", "FAIL", "x", index=(0,), got=math.nan, ulps=math.inf)
    text = json.dumps(Report("f", 0, (wrong,), ("a note",)).as_dict(), allow_nan=False)
    read = json.loads(text)
    assert (read["verdict"], read["notes"]) == ("FAIL", ["a note"])
    (outcome,) = read["outcomes"]
    assert (outcome["got"], outcome["ulps"], outcome["index"]) == ("nan", "inf", [0])
