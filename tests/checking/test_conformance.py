"""The rows of the conformance table: what they count, and where each level checks."""

import json
import math

import pytest

import jaxprop
from jaxprop.checking import conformance
from jaxprop.checking.conformance import Residuals, Row, Transforms, Ulps, cells, columns, conform
from jaxprop.checking.report import Finding, Report
from jaxprop.checking.targets import Target
from tests.checking import theirs

IN_FLOAT32 = ("float32",)


def row(*outcomes: Finding, residuals: Residuals | None = None) -> Row:
    return Row("f", 1, Report("f", 0, outcomes), residuals)


def test_errors_are_the_worst_of_each_dtype_beside_the_worst_of_automatic() -> None:
    found = row(
        Finding("numerics", "float32", "PASS", "x", ulps=1.0, automatic_ulps=4.0),
        Finding("numerics", "float32, axis=0", "PASS", "w", ulps=3.0, automatic_ulps=2.0),
        Finding("numerics", "bfloat16", "PASS", "x", ulps=0.5),
        Finding("edges", "zeros in x, float32", "PASS", "x", ulps=100.0, automatic_ulps=1.0),
        Finding("algebra", "g 0", "PASS", "x", ulps=7.0),
        Finding("algebra", "g 1", "PASS", "x", "another subgradient of a kink"),
    )
    assert found.ulps("float32") == Ulps(3.0, 4.0)
    assert found.ulps("bfloat16") == Ulps(0.5, None)
    assert found.ulps("float64") == Ulps(7.0, None)
    assert found.ulps("float16") is None


def test_a_transformation_passes_where_all_of_its_arguments_do() -> None:
    found = row(
        Finding("transforms", "jit", "PASS", "x"),
        Finding("transforms", "jit", "FAIL", "w"),
        Finding("transforms", "scan", "PASS", "x"),
        Finding("transforms", "Explicit mesh", "WARN"),
        Finding("transforms", "Auto mesh", "SKIP", message="one device"),
        Finding("algebra", "g 0", "FAIL", "x"),
    )
    assert found.transforms == Transforms(passed=1, run=3, skipped=1)


def test_a_row_as_text_says_what_was_not_measured() -> None:
    found = row(
        Finding("numerics", "float32", "FAIL", "x", ulps=math.inf, automatic_ulps=0.25),
        residuals=Residuals(123456, None),
    )
    heads = columns(("float32", "bfloat16"))
    text = dict(zip(heads, cells(found, ("float32", "bfloat16")), strict=True))
    assert text["float32"] == "inf (0.25)"
    assert text["float64"] == text["bfloat16"] == text["transforms"] == "-"
    assert text["bytes"] == "123456"
    assert text["verdict"] == "FAIL"


def test_a_row_is_strict_json_where_numbers_are_not_finite() -> None:
    found = row(
        Finding("numerics", "float32", "FAIL", "x", index=(1, 2), got=math.nan, ulps=math.inf)
    )
    text = json.dumps(found.as_dict(IN_FLOAT32), allow_nan=False)
    (outcome,) = json.loads(text)["report"]["outcomes"]
    assert (outcome["got"], outcome["ulps"], outcome["index"]) == ("nan", "inf", [1, 2])
    assert json.loads(text)["ulps"]["float64"] is None


def test_quick_checks_the_first_case_of_each_setting_and_the_algebra_of_the_others() -> None:
    found = conform(Target("cube", theirs.cube), "quick", IN_FLOAT32, seed=0)
    assert found.report.verdict == "PASS"
    assert found.cases == 4
    checked = {(o.check, o.transform.rpartition(", ")[2]) for o in found.report.outcomes}
    in_full = {"contract", "algebra", "linearity", "numerics", "transforms"}
    assert checked == {
        *((check, "case 'vector'") for check in in_full),
        *((check, "case 'scaled'") for check in in_full),
        ("algebra", "case 'batch of one'"),
    }


def test_quick_finds_a_rule_that_is_wrong_for_other_options_and_names_the_case() -> None:
    target = Target("cube", theirs.cube_wrong_when_scaled)
    found = conform(target, "quick", IN_FLOAT32, seed=0)
    assert found.report.verdict == "FAIL"
    wrong = {(f.transform.rpartition(", ")[2], f.argument) for f in found.report.findings}
    assert wrong == {("case 'scaled'", "x")}


def test_quick_finds_a_function_that_is_wrong_at_its_second_arguments() -> None:
    both = (theirs.vector(), theirs.vector_of_one())
    found = conform(Target("f", theirs.batch_of_one_wrong, both), "quick", IN_FLOAT32, seed=0)
    assert {(f.check, f.transform.rpartition(", ")[2]) for f in found.report.findings} == {
        ("algebra", "arguments 1")
    }


def test_full_is_the_report_of_check(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(f: object, *args: object, **options: object) -> Report:
        asked.append((f, len(args), options))
        return Report("f", 0, ())

    monkeypatch.setattr(conformance, "check", check)
    conform(Target("cube", theirs.cube), "full", IN_FLOAT32, seed=5)
    both = (theirs.vector(), theirs.vector_of_one())
    conform(Target("sine", theirs.sine, both), "full", IN_FLOAT32, seed=5)
    assert asked[0] == (theirs.cube, 0, {"dtypes": IN_FLOAT32, "seed": 5, "reference": None})
    f, count, options = asked[1]
    assert (f, count, len(options["shapes"])) == (theirs.sine, 1, 1)


def test_what_cannot_be_checked_is_a_row_that_fails_and_says_why() -> None:
    found = conform(Target("sine", theirs.sine, (theirs.integers(),)), "full", IN_FLOAT32, seed=0)
    assert found.report.verdict == "FAIL"
    assert "must have a floating argument" in str(found.report)


def test_the_bytes_are_those_saved_beyond_arguments_and_output() -> None:
    saved = {
        name: conform(Target(name, f, (args,)), "quick", (), seed=0).residuals
        for name, f, args in (
            ("softmax", jaxprop.softmax, (theirs.vector())),
            ("sine", theirs.sine, theirs.vector()),
        )
    }
    assert saved["sine"] == Residuals(0, 16)  # cos(x), four float32
    assert saved["softmax"].custom == 0 < saved["softmax"].automatic
