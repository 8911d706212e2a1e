"""The script as a user runs it: in a process of its own, interrupted, killed, resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from jaxprop.train.command import main
from jaxprop.train.data import load, split
from jaxprop.train.run_folder import METRICS, RunFolder

ROOT = Path(__file__).parents[1]
# Long enough to be interrupted: some seconds after compilation.
LONG = ["--epochs", "400", "--batch-size", "4", "--layers", "16"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "train.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def after_epoch(process: subprocess.Popen, epoch: int) -> None:
    """Wait for the line of that epoch."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.split("/")[0].split() == ["epoch", str(epoch)]:
            return
    raise AssertionError(f"no line of epoch {epoch}: {process.stderr and process.stderr.read()}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "run"
    assert main([*LONG, "--run", str(path)]) == 0
    return (path / METRICS).read_bytes()


def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, "--learning-rate", "-1")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == (
        "train: the learning rate must be finite and above 0, got -1.0. Change --learning-rate.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_to_the_same_bits(
    tmp_path: Path, uninterrupted: bytes, number: signal.Signals
) -> None:
    process = start(tmp_path, *LONG, "--run", "run", "--save-every", "1000")
    after_epoch(process, 3)
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert (process.returncode, err) == (128 + number, "")
    assert f"stopped by {number.name} after" in out
    assert "python scripts/train.py --run run --resume" in out
    stopped = (tmp_path / "run" / METRICS).read_bytes()
    assert uninterrupted.startswith(stopped)
    assert len(stopped) < len(uninterrupted)
    assert main(["--run", str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / METRICS).read_bytes() == uninterrupted


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, uninterrupted: bytes) -> None:
    process = start(tmp_path, *LONG, "--run", "run", "--save-every", "0")
    after_epoch(process, 5)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert main(["--run", str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / METRICS).read_bytes() == uninterrupted


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "--run", "run")
    after_epoch(process, 1)
    # Two while it is in compiled steps; a third in case the first had been answered already.
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    f"ignore::{ConvergenceWarning.__module__}.{ConvergenceWarning.__name__}"
)
def test_the_default_run_is_as_accurate_as_scikit_learns_network(tmp_path: Path) -> None:
    """Held-out accuracy on digits, the mean over three seeds, same sizes and same splits."""
    ours, theirs = [], []
    for seed in range(3):
        path = tmp_path / str(seed)
        assert main(["--run", str(path), "--seed", str(seed)]) == 0
        ours.append(RunFolder(path).records()[-1]["held_out_accuracy"])
        data = split(load("digits", tmp_path), seed)
        parts = [
            (data.x(rows, np.float64), data.y(rows, np.float64))
            for rows in (data.train, data.held_out)
        ]
        theirs.append(MLPClassifier((64, 64), random_state=seed).fit(*parts[0]).score(*parts[1]))
    assert np.mean(ours) >= np.mean(theirs), (ours, theirs)
