"""`scripts/benchmark.py`: what it writes, and what it says of bad input."""

import json
from pathlib import Path

import pytest

from jaxprop.benchmarking import command
from jaxprop.benchmarking.command import main
from jaxprop.benchmarking.timing import Contender, Entry


@pytest.mark.slow
def test_writes_table_json_markdown_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    arguments = ["--quick", "--only", "step-width*", "--out", str(out), "--markdown", str(page)]
    assert main(arguments) == 0
    assert "by hand" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert found["machine"]["jax"]
    by_hand = found["entries"]["step-width64-batch64"]["by hand"]
    assert by_hand["wrong"] == ""
    assert len(by_hand["samples"]) == by_hand["turns"] >= 3
    ratio = by_hand["ratios"]["automatic"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert by_hand["temp_bytes"] > 0
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert "scripts/benchmark.py --quick" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only must match one of step-width64"),
        (["--budget", "-1"], "--budget must be above 0"),
        (["--markdown", "no-such-folder/page.md"], "--markdown must be in a folder that exists"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_refuses_a_folder_with_files_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("x")
    assert main(["--quick", "--only", "step-*", "--out", str(tmp_path)]) == 1
    assert "new or empty folder" in capsys.readouterr().err


def test_lists_its_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = capsys.readouterr().out.split()
    assert "step-width2048-batch1024" in names
    assert "training-width256" in names


@pytest.mark.slow
def test_a_whole_training_run_reaches_the_accuracy_of_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["--quick", "--only", "training-*", "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())["entries"]["training-width64"]
    assert {name: t["wrong"] for name, t in found.items()} == dict.fromkeys(found, "")
    assert set(found["jaxprop float32"]["ratios"]) == {
        "MLPClassifier float64",
        "MLPClassifier float32",
    }


def test_a_wrong_contender_fails_the_command_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = Contender(lambda: 1.0), Contender(lambda: 1.0, "relative error 0.5")
    entry = Entry("e", ("a",), {"a": right, "b": wrong})
    monkeypatch.setattr(command, "_entries", lambda quick: [("e", lambda: entry)])
    assert main(["--quick", "--out", str(tmp_path / "out")]) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if "WRONG" in line)
    assert "relative error 0.5" in row
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["entries"]["e"]["b"]["seconds"] is None
