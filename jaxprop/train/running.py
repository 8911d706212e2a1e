"""A whole run: data, experiment, folder, training, and what is said and drawn about it."""

import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

import jaxprop
from jaxprop.costs import Cost
from jaxprop.train.config import Config
from jaxprop.train.data import load, split
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment, ValueAndGrad, prepare
from jaxprop.train.interruption import interruption
from jaxprop.train.loop import Finished, fit
from jaxprop.train.measuring import predictions
from jaxprop.train.options import Options
from jaxprop.train.pictures import draw
from jaxprop.train.planted import SLIPS, planted_value_and_grad
from jaxprop.train.progress import Progress, score
from jaxprop.train.run_folder import RunFolder, create, next_free, reopen, write_whole

RUNS = Path("runs")


def run(options: Options) -> int:
    """Do what the options say; return the exit code.

    Raises TrainingError where it cannot be done.
    """
    config, files = options.config, options.files
    with jax.enable_x64(config.optimisation.dtype == "float64"):
        data = split(load(config.network.dataset, files.data_dir), config.optimisation.seed)
        experiment = prepare(config, data, _by_hand(config))
        path = files.run or next_free(RUNS, config.network.dataset)
        folder = reopen(path, config) if files.resume else create(path, config)
        print(_summary(experiment, folder), flush=True)
        if files.trace:
            _trace(experiment, folder)
        with interruption() as stop_asked, Progress(config.optimisation.epochs) as progress:
            finished = fit(experiment, folder, progress, stop_asked, files.save_every)
        if finished.stopped_by is not None:
            print(_how_to_resume(experiment, folder, finished, files.data_dir))
            return 128 + finished.stopped_by
        return _report(experiment, folder, finished)


def _by_hand(config: Config) -> Callable[[Cost], ValueAndGrad]:
    """What makes the hand-written gradient of J, right or with a slip planted in it."""
    slip = config.optimisation.plant
    if slip == "none":
        return jaxprop.value_and_grad
    if slip not in SLIPS:
        raise TrainingError(f"--plant must be one of {', '.join(SLIPS)}, got {slip!r}.")
    return lambda J: planted_value_and_grad(J, SLIPS[slip].lines)


def _summary(experiment: Experiment, folder: RunFolder) -> str:
    """What is about to be trained."""
    config, data, optimisation = experiment.config, experiment.split, experiment.config.optimisation
    return "\n".join(
        [
            f"{data.dataset.name}: {len(data.train)} training and {len(data.held_out)} held-out "
            "examples",
            f"network: {_shape(experiment)}, {optimisation.dtype}",
            f"J = {_terms(experiment)}, by {_gradient(config)}",
            f"{optimisation.optimiser}, {optimisation.schedule} schedule, learning rate "
            f"{optimisation.learning_rate:g}, {optimisation.epochs} epochs of "
            f"{experiment.steps_per_epoch} steps",
            f"run folder: {folder.path}",
        ]
    )


def _shape(experiment: Experiment) -> str:
    network = experiment.config.network
    names = network.activations * (1 if len(network.activations) > 1 else len(network.layers))
    hidden = [f"{width} {name}" for width, name in zip(network.layers, names, strict=True)]
    return " -> ".join([str(experiment.x.shape[1]), *hidden, str(experiment.units)])


def _terms(experiment: Experiment) -> str:
    cost = experiment.config.cost
    terms = [experiment.J.loss.name]
    if cost.penalty != "none":
        terms.append(f"{cost.strength:g} {cost.penalty}")
    if cost.activity_penalty != "none":
        terms.append(f"{cost.activity_strength:g} activity_{cost.activity_penalty}")
    return " + ".join(terms)


def _gradient(config: Config) -> str:
    optimisation = config.optimisation
    if optimisation.automatic:
        return "jax.grad of the references"
    if optimisation.plant == "none":
        return "hand-written backward passes"
    slip = SLIPS[optimisation.plant]
    return (
        f"a backward pass with the slip {optimisation.plant} in it: {slip.says} (it shows "
        f"{slip.shows})"
    )


def _trace(experiment: Experiment, folder: RunFolder) -> None:
    """Print and write the trace of the first batch, before its step."""
    rows = experiment.order(1)[: experiment.batch_size]
    trace = jaxprop.trace(
        experiment.J,
        experiment.init(),
        experiment.x[rows],
        experiment.y[rows],
        experiment.strength,
    )
    print(f"\n{trace}\n")
    write_whole(folder.path / "trace.txt", f"{trace}\n")
    trace.plot(folder.path / "trace.png")


def _how_to_resume(
    experiment: Experiment, folder: RunFolder, finished: Finished, data_dir: Path
) -> str:
    epochs, within = divmod(finished.steps, experiment.steps_per_epoch)
    arguments = ["--run", str(folder.path), "--resume"]
    if experiment.split.dataset.official_test:
        arguments += ["--data-dir", str(data_dir)]
    name = signal.Signals(finished.stopped_by or 0).name
    return (
        f"stopped by {name} after {epochs} epochs and {within} steps, saved. To go on:\n"
        f"  python scripts/train.py {shlex.join(arguments)}"
    )


def _report(experiment: Experiment, folder: RunFolder, finished: Finished) -> int:
    """Say and draw how it ended."""
    records = folder.records()
    pictures = draw(folder.path, records, experiment.split, predictions(experiment, finished.y_hat))
    unit = experiment.split.dataset.unit
    print(f"held-out {score(records[-1])} {unit}".rstrip())
    print("gradient by hand against jax.grad, largest relative error over the parameters:")
    for when, record in (("first", records[0]), ("last", records[-1])):
        print(f"  {when} step: {_checked(record)}")
    print(f"pictures: {' '.join(path.name for path in pictures)} in {folder.path}")
    return 0


def _checked(record: Mapping[str, Any]) -> str:
    found = record["cross_check"]
    return f"{found['error']:.2g} at {found['where']}"
