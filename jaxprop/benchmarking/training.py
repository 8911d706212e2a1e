"""Whole training runs on digits: against scikit-learn's MLPClassifier, and PyTorch where it is.

The same split, widths, batch size, optimiser, penalty and number of epochs for all. The
seconds are those of training alone; ours leave out compilation, which is told apart.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprop.benchmarking.timing import Contender, Entry
from jaxprop.train.config import Config, Cost, Network, Optimisation
from jaxprop.train.data import Split, load, split
from jaxprop.train.experiment import Experiment, prepare
from jaxprop.train.measuring import make_measure, scores
from jaxprop.train.step import initial_state, make_run_steps

WIDTHS = (64, 256, 512, 1024)
# MLPClassifier's defaults; its alpha is divided by the batch size.
BATCH, RATE, ALPHA = 200, 1e-3, 1e-4
EPOCHS = 30
# A contender this far below the best held-out accuracy has not done the same work.
SLACK = 0.03
BASELINE = "MLPClassifier float64"

Train = Callable[[], tuple[float, float]]  # seconds, held-out accuracy


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
    ways: dict[str, Train] = {
        BASELINE: _scikit_learn(data, width, epochs, np.float64),
        "MLPClassifier float32": _scikit_learn(data, width, epochs, np.float32),
        "jaxprop float32": _jaxprop(prepare(config, data), epochs),
    }
    torch = _torch(data, width, epochs)
    if torch is not None:
        ways["PyTorch float32"] = torch
    first = {name: _timed(train) for name, train in ways.items()}
    best = max(accuracy for _, accuracy, _ in first.values())
    return Entry(
        f"training-width{width}",
        BASELINE,
        {name: _contender(name, ways[name], *first[name], best) for name in ways},
    )


def _timed(train: Train) -> tuple[float, float, float]:
    """(seconds, accuracy, wall-clock seconds) of the first run, which compiles."""
    started = time.perf_counter()
    seconds, accuracy = train()
    return seconds, accuracy, time.perf_counter() - started


def _contender(
    name: str, train: Train, seconds: float, accuracy: float, wall: float, best: float
) -> Contender:
    short = accuracy < best - SLACK
    again, _ = train() if name.startswith("jaxprop") else (wall, accuracy)
    return Contender(
        lambda: train()[0],
        f"accuracy {accuracy:.1%}, another reached {best:.1%}" if short else "",
        compile_seconds=seconds - again if name.startswith("jaxprop") else None,
        result=f"accuracy {accuracy:.1%}",
    )


def _jaxprop(experiment: Experiment, epochs: int) -> Train:
    """As `scripts/train.py` does it: jitted stretches of steps, the data on the device."""
    run_steps, measure = make_run_steps(experiment), make_measure(experiment)

    def train() -> tuple[float, float]:
        state = jax.block_until_ready(initial_state(experiment))
        started = time.perf_counter()
        for epoch in range(1, epochs + 1):
            state = run_steps(state, experiment.order(epoch), 0, experiment.steps_per_epoch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        y_hat = measure(state.params).y_hat
        return seconds, scores(experiment, y_hat)["held_out_accuracy"]

    return train


def _scikit_learn(data: Split, width: int, epochs: int, dtype: Any) -> Train:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, held = (data.x(rows, dtype) for rows in (data.train, data.held_out))
    y, truth = data.dataset.y[data.train], data.dataset.y[data.held_out]

    def train() -> tuple[float, float]:
        model = MLPClassifier(
            (width, width), max_iter=epochs, n_iter_no_change=epochs, tol=0.0, random_state=0
        )
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        return time.perf_counter() - started, float(np.mean(model.predict(held) == truth))

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

    def train() -> tuple[float, float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, len(data.dataset.classes)),
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=ALPHA / BATCH)
        started = time.perf_counter()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            guess = model(held).argmax(dim=1).numpy()
        return seconds, float(np.mean(guess == truth))

    return train
