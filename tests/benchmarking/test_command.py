"""`scripts/benchmark.py`: what it writes, and what it says of bad input."""

import json
from pathlib import Path

import pytest

from jaxprop.benchmarking.command import main


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_writes_table_json_markdown_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    arguments = ["--quick", "--only", "step-*", "--out", str(out), "--markdown", str(page)]
    assert main(arguments) == 0
    assert "by hand" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert found["machine"]["jax"]
    by_hand = found["entries"]["step-width64-batch64"]["by hand"]
    assert by_hand["wrong"] == ""
    assert len(by_hand["samples"]) == by_hand["turns"] >= 3
    assert by_hand["temp_bytes"] > 0
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert "scripts/benchmark.py --quick" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only must match one of step-width64"),
        (["--budget", "-1"], "--budget must be above 0"),
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
    assert found["jaxprop float32"]["wrong"] == ""
    assert found["MLPClassifier float64"]["wrong"] == ""
