"""A whole run: data, experiment, folder, training, and what is said and drawn about it."""

import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxprop
from jaxprop.costs import Cost
from jaxprop.models.lenet import LeNetConfig
from jaxprop.models.resnet import ResNetConfig
from jaxprop.train.beside import draw_beside
from jaxprop.train.config import Config
from jaxprop.train.data import Split, load, split
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment, ValueAndGrad, prepare
from jaxprop.train.interruption import interruption
from jaxprop.train.loop import Finished, fit
from jaxprop.train.measuring import cross_check, predictions
from jaxprop.train.options import Files, Options
from jaxprop.train.pictures import draw
from jaxprop.train.planted import SLIPS, planted_value_and_grad
from jaxprop.train.progress import Progress, score
from jaxprop.train.run_folder import RunFolder, create, next_free, reopen, write_whole

RUNS = Path("runs")
# Where, in the folder of a run with a slip planted in it, the right run lies.
RIGHT = "right"
# Gradients that differ by no more, in units of the last place, are the same.
ROUNDING = 256


def run(options: Options) -> int:
    """Do what the options say; return the exit code.

    Raises TrainingError where it cannot be done.
    """
    config, files = options.config, options.files
    _check_family(config, files)
    with jax.enable_x64(config.optimisation.dtype == "float64"):
        data = split(load(config.network.dataset, files.data_dir), config.optimisation.seed)
        path = files.run or next_free(RUNS, config.network.dataset)
        code = _train(config, data, files, path, path)
        if code or config.optimisation.plant == "none":
            return code
        print("\nthe same run with the right gradient:")
        right = path / RIGHT
        unplanted = replace(config, optimisation=replace(config.optimisation, plant="none"))
        return _train(unplanted, data, files, right, path) or _compare(config, data, path, right)


def _check_family(config: Config, files: Files) -> None:
    """Raise where something is asked for that this family of networks does not have."""
    family, plant = config.network.family, config.optimisation.plant
    if plant != "none" and family != "dense":
        raise TrainingError(
            f"--plant is for the dense network of the notes, got {plant} with --family {family}. "
            "Leave it out."
        )
    if files.trace and family == "resnet18":
        raise TrainingError(
            "--trace is for chains, dense and lenet, got --family resnet18. Leave it out."
        )


def _train(config: Config, data: Split, files: Files, path: Path, resumable: Path) -> int:
    """Train in the folder `path`, on from where it stopped if that is asked for.

    Where it is interrupted, `resumable` is the folder that the whole command resumes with.
    """
    experiment = prepare(config, data, _by_hand(config))
    _check_slip(experiment)
    resumes = files.resume and (path == resumable or path.exists())
    folder = reopen(path, config) if resumes else create(path, config)
    print(_summary(experiment, folder), flush=True)
    if files.trace:
        _trace(experiment, folder)
    with interruption() as stop_asked, Progress(config.optimisation.epochs) as progress:
        finished = fit(experiment, folder, progress, stop_asked, files.save_every)
    if finished.stopped_by is not None:
        print(_how_to_resume(experiment, resumable, finished, files.data_dir))
        return 128 + finished.stopped_by
    return _report(experiment, folder, finished)


def _compare(config: Config, data: Split, path: Path, right: Path) -> int:
    """Draw and say how the run with the slip did beside the right one."""
    slip = config.optimisation.plant
    planted, unplanted = RunFolder(path).records(), RunFolder(right).records()
    picture = draw_beside(path, slip, planted, unplanted, data)
    print(f"\n{slip}: {SLIPS[slip].says}")
    print(f"  with the slip       held-out {score(planted[-1])}")
    print(f"  without             held-out {score(unplanted[-1])}")
    print(f"both as a picture: {picture.name} in {path}")
    return 0


def _by_hand(config: Config) -> Callable[[Cost], ValueAndGrad]:
    """What makes the hand-written gradient of J, right or with a slip planted in it."""
    slip = config.optimisation.plant
    if slip == "none":
        return jaxprop.value_and_grad
    if slip not in SLIPS:
        raise TrainingError(f"--plant must be one of {', '.join(SLIPS)}, got {slip!r}.")
    return lambda J: planted_value_and_grad(J, SLIPS[slip].lines)


def _check_slip(experiment: Experiment) -> None:
    """Raise where the planted slip leaves this network's gradient right.

    At random parameters: a slip in the biases does not show where they start, at zero.
    """
    slip = experiment.config.optimisation.plant
    if slip == "none":
        return
    leaves, structure = jax.tree.flatten(experiment.init())
    keys = jax.random.split(jax.random.key(experiment.config.optimisation.seed), len(leaves))
    drawn = [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)]
    rows = experiment.order(1)[: experiment.batch_size]
    error = cross_check(experiment, jax.tree.unflatten(structure, drawn), rows).error
    if error <= ROUNDING * float(jnp.finfo(experiment.x.dtype).eps):
        raise TrainingError(
            f"--plant {slip} must change the gradient, got a network whose gradient it leaves as "
            f"it is. It shows {SLIPS[slip].shows}."
        )


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
    network, inputs = experiment.config.network, experiment.x.shape[1:]
    first = " x ".join(map(str, inputs))
    if network.family == "resnet18":
        widths = network.channels or ResNetConfig.widths
        stages = [f"2 blocks of {width}" for width in widths]
        return " -> ".join([first, *stages, f"mean -> {experiment.units}"])
    convolutions: list[str] = []
    if network.family == "lenet":
        channels = network.channels or LeNetConfig.channels
        name = network.activations[0]
        convolutions = [f"5 x 5 convolution of {c} {name}, pooled" for c in channels]
    names = network.activations * (1 if len(network.activations) > 1 else len(network.layers))
    hidden = [f"{width} {name}" for width, name in zip(network.layers, names, strict=True)]
    return " -> ".join([first, *convolutions, *hidden, str(experiment.units)])


def _terms(experiment: Experiment) -> str:
    cost = experiment.config.cost
    terms = [experiment.model.loss.name]
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
    assert isinstance(experiment.J, Cost)
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


def _how_to_resume(experiment: Experiment, path: Path, finished: Finished, data_dir: Path) -> str:
    epochs, within = divmod(finished.steps, experiment.steps_per_epoch)
    arguments = ["--run", str(path), "--resume"]
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
    print(cross_checks(records))
    print(f"pictures: {' '.join(path.name for path in pictures)} in {folder.path}")
    return 0


def cross_checks(records: Sequence[Mapping[str, Any]]) -> str:
    """How far the two gradients were apart, in lines."""
    lines = ["gradient by hand against jax.grad, largest relative error over the parameters:"]
    for when, record in (("first", records[0]), ("last", records[-1])):
        lines.append(f"  {when} step: {_checked(record)}")
    return "\n".join(lines)


def _checked(record: Mapping[str, Any]) -> str:
    found = record["cross_check"]
    return f"{found['error']:.2g} at {found['where']}"
