"""Training: it learns, it resumes to the same bits, it stops when asked, it survives a kill."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.train import loop
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment
from jaxprop.train.loop import Finished, fit
from jaxprop.train.run_folder import METRICS, TIMINGS, RunFolder, create
from tests.tolerances import assert_near, tolerance
from tests.train.small import Silent, experiment


def new_folder(path: Path, made: Experiment) -> RunFolder:
    return create(path, made.config)


@pytest.fixture(scope="module")
def made() -> Experiment:
    return experiment()


@pytest.fixture(scope="module")
def uninterrupted(made: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = new_folder(tmp_path_factory.mktemp("whole"), made)
    assert fit(made, folder, Silent()).stopped_by is None
    return folder


def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call runs one step."""
    monkeypatch.setattr(loop, "_Pace", partial(loop._Pace, 1))
    monkeypatch.setattr(loop, "CALL_SECONDS", 0.0)


def stop_after(calls: int) -> Callable[[], int | None]:
    """Asks to stop from the call after that many on."""
    left = [calls]

    def asked() -> int | None:
        left[0] -= 1
        return 2 if left[0] < 0 else None

    return asked


def assert_same_numbers(folder: RunFolder, truth: RunFolder) -> None:
    assert (folder.path / METRICS).read_bytes() == (truth.path / METRICS).read_bytes()
    timings = [json.loads(line) for line in (folder.path / TIMINGS).read_text().splitlines()]
    assert [line["epoch"] for line in timings] == [record["epoch"] for record in truth.records()]


def test_a_run_has_a_line_per_epoch_and_learns(uninterrupted: RunFolder) -> None:
    records = uninterrupted.records()
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert [record["steps"] for record in records] == [0, 4, 8, 12]
    assert records[-1]["train_cost"] < records[1]["train_cost"]
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    assert all(set(r["gradient_norms"]) == {"hidden_1", "hidden_2", "output"} for r in records)


def test_the_first_and_the_last_line_have_the_cross_check(uninterrupted: RunFolder) -> None:
    first, *middle, last = uninterrupted.records()
    assert all("cross_check" not in record for record in middle)
    for record in (first, last):
        assert 0 <= record["cross_check"]["error"] <= tolerance("float32", 16)


@pytest.mark.parametrize(("calls", "steps"), [(0, 0), (1, 1), (4, 4), (8, 7)])
def test_a_resumed_run_has_the_same_numbers_bit_for_bit(
    tmp_path: Path,
    made: Experiment,
    uninterrupted: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
    steps: int,
) -> None:
    step_by_step(monkeypatch)
    folder = new_folder(tmp_path / "run", made)
    stopped = fit(made, folder, Silent(), stop_after(calls))
    assert (stopped.stopped_by, stopped.steps) == (2, steps)
    finished = fit(made, folder, Silent())
    assert (finished.stopped_by, finished.steps) == (None, 12)
    assert_same_numbers(folder, uninterrupted)


@pytest.mark.slow
def test_a_run_stopped_again_and_again_ends_with_the_same_parameters(
    tmp_path: Path, made: Experiment, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_by_step(monkeypatch)
    folder = new_folder(tmp_path / "run", made)
    finished = fit(made, folder, Silent(), stop_after(3))
    for _ in range(20):
        if finished.stopped_by is None:
            break
        finished = fit(made, folder, Silent(), stop_after(3))
    assert finished.stopped_by is None
    assert_same_numbers(folder, uninterrupted)
    truth = fit(made, uninterrupted, Silent())
    for a, b in zip(jax.tree.leaves(finished), jax.tree.leaves(truth), strict=True):
        np.testing.assert_array_equal(a, b)


class KilledAfter(Silent):
    """Copies the run folder as it is at the end of an epoch, as a kill would leave it."""

    def __init__(self, epoch: int, folder: Path, copy: Path) -> None:
        super().__init__()
        self._epoch, self._folder, self._copy = epoch, folder, copy

    def epoch(self, record: Any, seconds: float) -> None:
        if record["epoch"] == self._epoch:
            shutil.copytree(self._folder, self._copy)


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0.0, 1000.0])
def test_a_killed_run_goes_on_from_its_newest_checkpoint(
    tmp_path: Path, made: Experiment, uninterrupted: RunFolder, save_every: float
) -> None:
    folder, left = new_folder(tmp_path / "run", made), RunFolder(tmp_path / "left")
    fit(made, folder, KilledAfter(2, folder.path, left.path), save_every=save_every)
    assert len(left.records()) == 3
    with (left.path / METRICS).open("a") as file:
        file.write('{"epoch": 3, "st')  # it was writing
    shutil.copytree(left.checkpoints / "0", left.checkpoints / "8.orbax-checkpoint-tmp")
    resumed = Silent()
    assert fit(made, left, resumed).stopped_by is None
    assert resumed.epochs == ([2, 3] if save_every == 0 else [1, 2, 3])
    assert_same_numbers(left, uninterrupted)


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    tmp_path: Path, made: Experiment, uninterrupted: RunFolder
) -> None:
    folder = new_folder(tmp_path / "run", made)
    (folder.path / METRICS).write_text('{"epoch": 0, "steps": 0}\n')
    fit(made, folder, Silent())
    assert_same_numbers(folder, uninterrupted)


def test_a_complete_run_resumed_is_left_as_it_is(
    made: Experiment, uninterrupted: RunFolder
) -> None:
    before = (uninterrupted.path / METRICS).read_bytes()
    again = Silent()
    finished = fit(made, uninterrupted, again)
    assert (finished.stopped_by, finished.steps, again.epochs) == (None, 12, [])
    assert (uninterrupted.path / METRICS).read_bytes() == before


def test_two_runs_have_the_same_numbers(
    tmp_path: Path, made: Experiment, uninterrupted: RunFolder
) -> None:
    folder = new_folder(tmp_path / "run", made)
    fit(made, folder, Silent())
    assert_same_numbers(folder, uninterrupted)


def run(path: Path, **changes: Any) -> tuple[Finished, list[dict[str, Any]]]:
    made = experiment(**changes)
    folder = new_folder(path, made)
    return fit(made, folder, Silent()), folder.records()


@pytest.mark.slow
def test_automatic_trains_to_the_same_losses(tmp_path: Path) -> None:
    changes = {"optimiser": "sgd", "schedule": "constant", "activity_penalty": "l2"}
    _, by_hand = run(tmp_path / "hand", **changes)
    _, by_jax = run(tmp_path / "jax", **changes, automatic=True)
    for name in ("train_cost", "held_out_loss"):
        ours, theirs = ([r[name] for r in records if name in r] for records in (by_hand, by_jax))
        assert_near(jnp.asarray(ours), jnp.asarray(theirs), reduced=12 * 16)


@pytest.mark.slow
def test_bfloat16_learns_and_its_parameters_stay_float32(tmp_path: Path) -> None:
    finished, records = run(tmp_path / "run", dtype="bfloat16")
    assert records[-1]["train_cost"] < records[1]["train_cost"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(finished.params)} == {"float32"}
    assert records[-1]["cross_check"]["error"] <= tolerance("bfloat16", 16)


def test_a_cost_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    made = experiment(learning_rate=1e30, optimiser="sgd", epochs=5)
    folder = new_folder(tmp_path / "run", made)
    says = r"J became (nan|inf) in epoch 1, step \d of 4.*--learning-rate"
    with pytest.raises(TrainingError, match=says):
        fit(made, folder, Silent())
    assert [record["epoch"] for record in folder.records()] == [0]
    assert (folder.checkpoints / "0").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "another network"])
def test_a_checkpoint_that_cannot_be_read_is_refused(
    tmp_path: Path, made: Experiment, uninterrupted: RunFolder, damage: str
) -> None:
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(uninterrupted.path, folder.path)
    if damage == "another network":
        made = experiment(layers=(7, 6))
    else:
        for file in (folder.checkpoints / "12").rglob("d/*"):
            file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(TrainingError, match=r"checkpoints.12 must be readable and of this network"):
        fit(made, folder, Silent())


@pytest.mark.slow
def test_metrics_that_lack_a_line_are_refused(tmp_path: Path) -> None:
    made = experiment(epochs=1)
    folder = new_folder(tmp_path / "run", made)
    fit(made, folder, Silent())
    (folder.path / METRICS).write_text("")
    with pytest.raises(TrainingError, match="must have a line for each epoch from 0 to 1, got 0"):
        fit(made, folder, Silent())
