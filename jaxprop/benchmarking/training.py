"""Whole training runs on digits: against scikit-learn's MLPClassifier, and PyTorch where it is.

The same split, widths, batch size, optimiser, penalty and number of epochs for all. The
seconds are those of making the initial parameters and of training; ours leave out
compilation, which is told apart.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprop.benchmarking.timing import Contender, Entry
from jaxprop.train.config import Config, Cost, Network, Optimisation
from jaxprop.train.data import Split, load, split
from jaxprop.train.experiment import Experiment, prepare
from jaxprop.train.measuring import make_measure, scores
from jaxprop.train.step import State, initial_state, make_run_steps

WIDTHS = (64, 256, 512, 1024)
# MLPClassifier's defaults; its alpha is divided by the batch size.
BATCH, RATE, ALPHA = 200, 1e-3, 1e-4
EPOCHS = 30
# A contender this far below the best held-out accuracy has not done the same work.
SLACK = 0.03
BASELINES = ("MLPClassifier float64", "MLPClassifier float32")  # as it comes; at equal dtype
OURS = "jaxprop float32"


class Trained(NamedTuple):
    """How long a run took, and the share of held-out examples it gets right."""

    seconds: float
    accuracy: float


Train = Callable[[], Trained]


def training_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    for width in WIDTHS[:1] if quick else WIDTHS:
        yield f"training-width{width}", partial(training_entry, width, EPOCHS)


def training_entry(width: int, epochs: int) -> Entry:
    """Train once with each, for its accuracy; the entry's turns train again."""
    config = Config(
        Network("digits", (width, width)),
        Cost(strength=ALPHA / BATCH),
        Optimisation(learning_rate=RATE, schedule="constant", batch_size=BATCH, epochs=epochs),
    )
    data = split(load("digits", Path("data")), config.optimisation.seed)
    experiment = prepare(config, data)
    compile_seconds = _compile_seconds(experiment)
    ways = dict(zip(BASELINES, _scikit_learn(data, width, epochs), strict=True))
    ways[OURS] = _jaxprop(experiment, epochs)
    torch = _torch(data, width, epochs)
    if torch is not None:
        ways["PyTorch float32"] = torch
    accuracies = {name: train().accuracy for name, train in ways.items()}
    best = max(accuracies.values())
    contenders = {
        name: Contender(
            partial(_seconds, train),
            _shortfall(accuracies[name], best),
            compile_seconds if name == OURS else None,
            result=f"accuracy {accuracies[name]:.1%}",
        )
        for name, train in ways.items()
    }
    return Entry(f"training-width{width}", BASELINES, contenders, warm_up=0, settle=True)


def _seconds(train: Train) -> float:
    return train().seconds


def _shortfall(accuracy: float, best: float) -> str:
    short = accuracy < best - SLACK
    return f"accuracy {accuracy:.1%}, another reached {best:.1%}" if short else ""


def _compile_seconds(experiment: Experiment) -> float:
    """What the first epoch takes over the second: the programs of a whole run are in it."""
    first, second = (_run_epochs(experiment, 1)[0] for _ in range(2))
    return first - second


def _run_epochs(experiment: Experiment, epochs: int) -> tuple[float, State]:
    """(seconds, state): as `scripts/train.py` does it, jitted stretches of steps, the data on
    the device."""
    run_steps = make_run_steps(experiment)
    started = time.perf_counter()
    state = initial_state(experiment)
    for epoch in range(1, epochs + 1):
        state = run_steps(state, experiment.order(epoch), 0, experiment.steps_per_epoch)
    jax.block_until_ready(state)
    return time.perf_counter() - started, state


def _jaxprop(experiment: Experiment, epochs: int) -> Train:
    measure = make_measure(experiment)

    def train() -> Trained:
        seconds, state = _run_epochs(experiment, epochs)
        y_hat = measure(state.params).y_hat
        return Trained(seconds, scores(experiment, y_hat)["held_out_accuracy"])

    return train


def _scikit_learn(data: Split, width: int, epochs: int) -> list[Train]:
    """MLPClassifier as it comes, in float64, and in float32."""
    return [_mlp_classifier(data, width, epochs, dtype) for dtype in (np.float64, np.float32)]


def _mlp_classifier(data: Split, width: int, epochs: int, dtype: Any) -> Train:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, held = (data.x(rows, dtype) for rows in (data.train, data.held_out))
    y, truth = data.dataset.y[data.train], data.dataset.y[data.held_out]

    def train() -> Trained:
        model = MLPClassifier(
            (width, width), max_iter=epochs, n_iter_no_change=epochs, tol=0.0, random_state=0
        )
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        seconds = time.perf_counter() - started
        return Trained(seconds, float(np.mean(model.predict(held) == truth)))

    return train


def _torch(data: Split, width: int, epochs: int) -> Train | None:
    """The usual eager loop; None where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    x, held = (torch.tensor(data.x(rows, np.float32)) for rows in (data.train, data.held_out))
    y = torch.tensor(data.dataset.y[data.train].astype(np.int64))
    truth = data.dataset.y[data.held_out]

    def train() -> Trained:
        torch.manual_seed(0)
        started = time.perf_counter()
        model = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, len(data.dataset.classes)),
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=ALPHA / BATCH)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            guess = model(held).argmax(dim=1).numpy()
        return Trained(seconds, float(np.mean(guess == truth)))

    return train
