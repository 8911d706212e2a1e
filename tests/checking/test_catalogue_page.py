"""docs/catalogue.md: a row for every rule, with what was measured and no more."""

import json
from pathlib import Path

import pytest

import jaxprop
from jaxprop.checking.catalogue_page import HEADS, main, page, residuals, summary

CHECKED = {
    "command": "scripts/check_vjps.py relu --json out.json",
    "machine": {"jax": "0.0"},
    "rows": [
        {
            "name": "relu",
            "verdict": "WARN",
            "residual_bytes": {"custom": 0, "automatic": 60},
            "ulps": {
                "float32": {"custom": 0.25, "automatic": None},
                "bfloat16": {"custom": "inf", "automatic": 3.0},
            },
        }
    ],
}
TIMED = {
    "machine": {"jax": "0.0"},
    "entries": {
        "rule-relu-8x8": {"by hand": {"ratios": {"automatic": {"median": 0.5}}}},
        "rule-relu-9x9": {"by hand": {"ratios": {"scan": {"median": 1.25}, "x": {"median": 9.0}}}},
        "rule-relu6-8x8": {"by hand": {"ratios": {"automatic": {"median": 7.0}}}},
        "rule-relu-wrong": {"by hand": {"ratios": {}}},
    },
}


def rows(text: str) -> dict[str, list[str]]:
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].split("`")[1]: row for row in cells}


def test_every_rule_has_a_row_of_as_many_cells_as_there_are_heads() -> None:
    found = rows(page([CHECKED], [TIMED]))
    assert list(found) == [rule.name for rule in jaxprop.CATALOGUE]
    assert {len(row) for row in found.values()} == {len(HEADS)}


def test_a_row_has_what_was_measured_of_its_own_rule() -> None:
    row = rows(page([CHECKED], [TIMED]))["relu"]
    assert row[2] == "0 (60)"
    assert row[3] == "0.50 (8x8)<br>1.25 of scan (9x9)"
    assert row[4:] == ["0.25", "inf (3)", "WARN |"]


def test_what_was_not_measured_is_a_dash() -> None:
    row = rows(page([CHECKED], [TIMED]))["tanh"]
    assert row[2:] == ["-", "-", "-", "-", "not checked |"]


def test_of_several_files_the_last_one_wins() -> None:
    later = {**CHECKED, "rows": [{**CHECKED["rows"][0], "verdict": "PASS"}]}
    assert rows(page([CHECKED, later], []))["relu"][-1] == "PASS |"


@pytest.mark.parametrize("rule", jaxprop.CATALOGUE, ids=lambda rule: rule.name)
def test_every_docstring_says_what_the_rule_is_and_what_it_saves(rule: jaxprop.Rule) -> None:
    assert summary(rule).endswith(".")
    assert residuals(rule) != "-"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    checked, timed, out = (tmp_path / name for name in ("a.json", "b.json", "page.md"))
    checked.write_text(json.dumps(CHECKED))
    timed.write_text(json.dumps(TIMED))
    files = ["--conformance", str(checked), "--benchmark", str(timed), "--out", str(out)]
    assert main(files) == 0
    assert out.read_text() == page([CHECKED], [TIMED])


@pytest.mark.parametrize("text", ["not json", "[]", '{"rows": []}'])
def test_a_file_of_something_else_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "a.json"
    given.write_text(text)
    out = tmp_path / "page.md"
    assert main(["--conformance", str(given), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "a file is not what the commands write" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_file_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--conformance", str(tmp_path / "none.json")]) == 1
    assert "No such file" in capsys.readouterr().err
