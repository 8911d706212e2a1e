"""The training loop: epochs of jitted steps, measured, recorded, saved, stopped when asked."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.installing import PyTree
from jaxprop.train.checkpoint import Checkpoints
from jaxprop.train.errors import TrainingError
from jaxprop.train.language import AnyExperiment
from jaxprop.train.measuring import (
    Measure,
    Measured,
    cross_check,
    make_measure,
    scores,
)
from jaxprop.train.optimisers import rate_at
from jaxprop.train.progress import Progress
from jaxprop.train.run_folder import RunFolder
from jaxprop.train.step import RunSteps, State, epoch_cost, initial_state, make_run_steps

CALL_SECONDS = 0.25  # how long one call into compiled steps lasts: what Ctrl-C waits for


class Finished(NamedTuple):
    """How a run ended.

    params:     the network's parameters.
    y_hat:      the outputs on the held-out part.
    steps:      how many steps the run has behind it.
    stopped_by: the signal that stopped it; None where it is complete.
    """

    params: PyTree
    y_hat: jax.Array
    steps: int
    stopped_by: int | None


@dataclass
class _Pace:
    """How many steps to run in one call, so that it lasts about CALL_SECONDS."""

    steps: int = 8

    def saw(self, seconds: float) -> None:
        if seconds < CALL_SECONDS / 2:
            self.steps *= 2
        elif seconds > 2 * CALL_SECONDS:
            self.steps = max(1, self.steps // 2)


class Measuring(NamedTuple):
    """What is measured of an experiment after an epoch, and what of that goes into its record."""

    make_measure: Callable[[Any], Measure]
    scores: Callable[[Any, Measured], dict[str, float]]


DENSE = Measuring(make_measure, lambda experiment, measured: scores(experiment, measured.y_hat))


@dataclass(frozen=True)
class _Session:
    """What the parts of the loop share."""

    experiment: AnyExperiment
    run_steps: RunSteps
    measure: Measure
    scores: Callable[[Any, Measured], dict[str, float]]
    progress: Progress
    stop_asked: Callable[[], int | None]
    pace: _Pace


def fit(
    experiment: AnyExperiment,
    folder: RunFolder,
    progress: Progress,
    stop_asked: Callable[[], int | None] = lambda: None,
    save_every: float = 5.0,
    measuring: Measuring = DENSE,
    after_epoch: Callable[[int, PyTree], None] = lambda epoch, params: None,
) -> Finished:
    """Train, from the newest checkpoint in the folder on if there is one.

    Args:
        experiment: what to train.
        folder: where metrics and checkpoints go.
        progress: what the user sees meanwhile.
        stop_asked: the signal to stop for, or None; asked after every call into compiled
            steps, which lasts about a quarter of a second.
        save_every: the seconds between checkpoints, which fall on the ends of epochs. There is
            one before the first step too, and one where the run stops.
        measuring: what is measured after an epoch, and the scores told of that.
        after_epoch: called with the epoch and the parameters, once its line is shown.

    Raises:
        TrainingError: where J or the held-out loss is no longer finite; nothing saved is lost.
    """
    measure, per_epoch = measuring.make_measure(experiment), experiment.steps_per_epoch
    session = _Session(
        experiment,
        make_run_steps(experiment),
        measure,
        measuring.scores,
        progress,
        stop_asked,
        _Pace(),
    )
    total = per_epoch * experiment.config.optimisation.epochs
    with Checkpoints(folder.checkpoints) as checkpoints:
        state, steps = _start(session, folder, checkpoints)
        progress.start(steps, total)
        saved = time.monotonic()
        while steps < total and stop_asked() is None:
            began = time.perf_counter()
            state, steps = _run_epoch(session, state, steps)
            if steps % per_epoch == 0:
                record = _record(session, measure(state.params, state.running), state, steps)
                seconds = time.perf_counter() - began
                folder.append(record, seconds)
                progress.epoch(record, seconds)
                after_epoch(record["epoch"], state.params)
            if steps % per_epoch == 0 and time.monotonic() - saved >= save_every:
                checkpoints.save(steps, state)
                saved = time.monotonic()
        checkpoints.save(steps, state)
    stopped_by = stop_asked() if steps < total else None
    y_hat = measure(state.params, state.running).y_hat
    return Finished(state.params, y_hat, steps, stopped_by)


def _start(session: _Session, folder: RunFolder, checkpoints: Checkpoints) -> tuple[State, int]:
    """The state to begin with, and the steps behind it; metrics.jsonl cut to that."""
    state, steps = initial_state(session.experiment), checkpoints.newest
    if steps is not None:
        folder.keep_epochs(steps // session.experiment.steps_per_epoch)
        return checkpoints.restore(state), steps
    folder.keep_epochs(-1)
    began = time.perf_counter()
    record = _record(session, session.measure(state.params, state.running), state, 0)
    folder.append(record, time.perf_counter() - began)
    checkpoints.save(0, state)
    return state, 0


def _run_epoch(session: _Session, state: State, steps: int) -> tuple[State, int]:
    """Run to the end of the epoch, or, after one call at least, until asked to stop."""
    experiment, pace = session.experiment, session.pace
    per_epoch = experiment.steps_per_epoch
    epoch, within = steps // per_epoch + 1, steps % per_epoch
    order = experiment.order(epoch)
    asked = None
    while within < per_epoch and asked is None:
        until, called = min(within + pace.steps, per_epoch), time.perf_counter()
        state = session.run_steps(state, order, within, until)
        costs = _fetch(state.costs)
        pace.saw(time.perf_counter() - called)
        _check_costs(experiment, epoch, costs[:until])
        session.progress.advance(until - within)
        within, asked = until, session.stop_asked()
    return state, (epoch - 1) * per_epoch + within


def _record(session: _Session, measured: Measured, state: State, steps: int) -> dict[str, Any]:
    """An epoch's line of metrics.jsonl."""
    experiment = session.experiment
    epoch, last = steps // experiment.steps_per_epoch, experiment.config.optimisation.epochs
    loss = float(measured.held_out_loss)
    if not math.isfinite(loss):
        raise _not_finite(experiment, f"the held-out loss became {loss} after epoch {epoch}")
    record: dict[str, Any] = {"epoch": epoch, "steps": steps}
    if epoch:
        record["learning_rate"] = rate_at(experiment.schedule, steps - 1)
        record["train_cost"] = epoch_cost(experiment, _fetch(state.costs))
    record["held_out_loss"] = loss
    record |= session.scores(experiment, measured)
    record["gradient_norms"] = {k: float(norm) for k, norm in measured.gradient_norms.items()}
    if epoch in (0, last):
        batch = experiment.batch_size
        rows = experiment.order(last)[-batch:] if epoch else experiment.order(1)[:batch]
        record["cross_check"] = cross_check(experiment, state.params, rows)._asdict()
    return record


def _fetch(costs: jax.Array) -> np.ndarray:
    """A copy on the host: the state's own buffers are donated to the next call."""
    return np.asarray(jnp.copy(costs))


def _check_costs(experiment: AnyExperiment, epoch: int, costs: np.ndarray) -> None:
    """Raise where J was not finite at one of these steps, from the epoch's first on."""
    bad = np.flatnonzero(~np.isfinite(costs))
    if len(bad):
        where = f"epoch {epoch}, step {bad[0] + 1} of {experiment.steps_per_epoch}"
        raise _not_finite(experiment, f"J became {costs[bad[0]]} in {where}")


def _not_finite(experiment: AnyExperiment, what: str) -> TrainingError:
    rate = experiment.config.optimisation.learning_rate
    return TrainingError(
        f"the cost must stay finite, got: {what}. What was saved before is kept; start a new run "
        f"with a --learning-rate below {rate:g}, or with smaller penalties."
    )
