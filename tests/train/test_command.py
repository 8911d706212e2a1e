"""The command in this process: exit codes, one line for what is wrong, the run folder."""

import builtins
import contextlib
import io
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxprop.train.command import main
from jaxprop.train.config import Cost, Network, Optimisation, as_json
from jaxprop.train.options import Files, parse
from jaxprop.train.run_folder import METRICS
from tests.train.test_idx import idx

QUICK = ["--layers", "8", "--epochs", "2", "--batch-size", "128"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def failure(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line that the command leaves on stderr."""
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("train: ")
    assert said.count("train: ") == said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "digts"], "invalid choice 'digts' for argument '--dataset'"),
        (["--layers", "0"], "at least 1 unit, got 0"),
        (["--layers", "8", "-3"], "at least 1 unit, got -3"),
        (["--layers", "8", "--activations", "relu", "tanh"], "got 2 (relu tanh)"),
        (["--activations", "relo"], "--activations must be among"),
        (["--learning-rate", "-1"], "got -1.0. Change --learning-rate"),
        (["--epochs", "ten"], "--epochs"),
        (["--lyers", "3"], "--lyers"),
        (["--optimiser", "adom"], "--optimiser must be one of"),
        (["--schedule", "cosin"], "--schedule must be one of"),
        (["--plant", "E6"], "--plant must be one of E1, E2"),
        pytest.param(
            ["--plant", "E9"],
            "It shows where there is a penalty on the biases too",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--plant", "E3", "--layers", "9", "7"],
            "--plant E3 must change the gradient",
            marks=pytest.mark.slow,
        ),
        (["--plant", "E5", "--activity-penalty", "l2"], "without an activity penalty"),
        (["--dataset", "mnist"], "mnist needs the file train-images-idx3-ubyte.gz or"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "in nowhere, and there is none"),
        (["--resume"], "Add --run DIR"),
        (["--resume", "--run", "nowhere"], "got no nowhere/config.json"),
        (["--run", "/dev/null/run"], "this machine could not do it"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert says in failure(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


class Done(NamedTuple):
    """A complete run that tests look at and do not change."""

    path: Path
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    path = tmp_path_factory.mktemp("done") / "run"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*QUICK, "--penalise-biases", "--trace", "--run", str(path)]) == 0
    return Done(path, said.getvalue())


def test_a_run_says_what_it_does(done: Done) -> None:
    for line in (
        "digits: 1437 training and 360 held-out examples",
        "network: 64 -> 8 relu -> 10, float32",
        "J = softmax_cross_entropy + 0.001 l2, by hand-written backward passes",
        "Algorithm 6.4, backward",
        "epoch 1/2  train cost ",
        "epoch 2/2  train cost ",
        "held-out accuracy ",
        "  first step: ",
        "  last step: ",
    ):
        assert line in done.said


def test_a_run_leaves_its_files(done: Done) -> None:
    assert {path.name for path in done.path.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "timings.jsonl",
        "checkpoints",
        "curves.png",
        "gradient_flow.png",
        "confusion.png",
        "mistakes.png",
        "trace.txt",
        "trace.png",
    }


@pytest.mark.slow
def test_the_same_command_again_has_the_same_numbers_in_the_next_free_folder(
    done: Done, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "digits-001").mkdir(parents=True)
    assert main([*QUICK, "--penalise-biases"]) == 0
    again = tmp_path / "runs" / "digits-002" / METRICS
    assert again.read_bytes() == (done.path / METRICS).read_bytes()


def test_a_complete_run_resumed_trains_no_more(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(done.path, tmp_path / "run")
    assert main(["--run", "run", "--resume"]) == 0
    assert "\nepoch" not in capsys.readouterr().out
    assert (tmp_path / "run" / METRICS).read_bytes() == (done.path / METRICS).read_bytes()


def test_a_run_is_not_written_over(done: Done, capsys: pytest.CaptureFixture) -> None:
    said = failure(capsys, *QUICK, "--run", str(done.path))
    assert "must be a new or an empty folder" in said


def test_a_run_is_not_resumed_with_other_settings(
    done: Done, capsys: pytest.CaptureFixture
) -> None:
    said = failure(capsys, "--run", str(done.path), "--resume", "--layers", "9", "--seed", "3")
    assert "--layers: saved 8, now 9; --seed: saved 0, now 3" in said


def test_a_resumed_run_takes_its_own_settings_where_none_are_given(done: Done) -> None:
    options = parse(["--run", str(done.path), "--resume"])
    assert as_json(options.config) == json.loads((done.path / "config.json").read_text())
    assert options.cost.penalise_biases
    assert options.network.layers == (8,)


def test_a_cost_that_becomes_nan_is_one_line(capsys: pytest.CaptureFixture) -> None:
    said = failure(capsys, *QUICK, "--optimiser", "sgd", "--learning-rate", "1e30")
    assert "the cost must stay finite, got: J became" in said


@pytest.mark.slow
def test_a_planted_slip_is_trained_beside_the_right_run(
    done: Done, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main([*QUICK, "--penalise-biases", "--plant", "E7"]) == 0
    said = capsys.readouterr().out
    assert "with the slip E7 in it" in said
    assert re.search(r"with the slip +held-out accuracy .*\n +without +held-out", said)
    folder = tmp_path / "runs" / "digits-001"
    lines = (folder / METRICS).read_text().splitlines()
    assert json.loads(lines[0])["cross_check"]["error"] > 0.1
    assert (folder / "right" / METRICS).read_bytes() == (done.path / METRICS).read_bytes()
    assert (folder / "slip.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_planted_run_resumed_goes_on_to_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*QUICK, "--plant", "E7", "--run", "run"]) == 0
    shutil.rmtree(tmp_path / "run" / "right")
    (tmp_path / "run" / "slip.png").unlink()
    capsys.readouterr()
    assert main(["--run", "run", "--resume"]) == 0
    assert "epoch 1/" in capsys.readouterr().out
    assert (tmp_path / "run" / "slip.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "score"),
    [("breast_cancer", "held-out accuracy"), ("diabetes", "held-out R^2")],
)
def test_the_other_bundled_datasets(
    capsys: pytest.CaptureFixture, dataset: str, score: str
) -> None:
    assert main([*QUICK, "--dataset", dataset]) == 0
    assert score in capsys.readouterr().out


@pytest.mark.slow
def test_mnist_from_files_that_are_not_compressed(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    assert main([*QUICK, "--dataset", "mnist", "--data-dir", "."]) == 0
    assert "mnist: 200 training and 40 held-out examples" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["tyro", "orbax.checkpoint", "sklearn"])
def test_a_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "jaxprop.train.options":
            raise ModuleNotFoundError(f"No module named {extra!r}", name=extra)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    said = failure(capsys)
    assert f"needs {extra}, which is not installed: pip install -e '.[train]'" in said


def test_help_says_every_option_with_its_default(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    said = capsys.readouterr().out
    for group in ("network", "cost", "optimisation", "files"):
        assert f"{group} options" in said
    for option in ("--dataset", "--layers", "--strength", "--plant", "--save-every"):
        assert option in said
    groups = (Network, Cost, Optimisation, Files)
    assert said.count("(default: ") == sum(len(fields(group)) for group in groups)
