"""Small things to train in tests: data that is made up, settings that take a second."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxprop.train.config import Config, Cost, Network, Optimisation
from jaxprop.train.data import Split, split
from jaxprop.train.dataset import Dataset
from jaxprop.train.experiment import Experiment, prepare
from jaxprop.train.progress import Progress


def made_up(kind: str = "classes", examples: int = 75, features: int = 5) -> Dataset:
    """Data that a small network can learn: three clusters, two, or a plane."""
    generator = np.random.default_rng(0)
    x = generator.normal(3.0, 2.0, (examples, features))
    if kind == "regression":
        y = x @ generator.normal(size=features) + 100.0
        return Dataset("made_up", "regression", x, y, unit="metres")
    count = {"classes": 3, "binary": 2}[kind]
    y = np.arange(examples, dtype=np.int32) % count
    x[:, 0] += 5.0 * y
    return Dataset("made_up", kind, x, y, classes=tuple("abc"[:count]))


def settings(**changes: Any) -> Config:
    """Settings of a short run; changes go to the group that has the field."""
    base = Config(
        Network(layers=(6, 6), activations=("tanh",)),
        Cost(),
        Optimisation(epochs=3, batch_size=16),
    )
    groups = {}
    for name, group in vars(base).items():
        mine = {field: value for field, value in changes.items() if hasattr(group, field)}
        groups[name] = replace(group, **mine)
    return Config(**groups)


def experiment(kind: str = "classes", data: Split | None = None, **changes: Any) -> Experiment:
    """An experiment on made-up data: 60 training examples, so 4 steps an epoch, the last of 12."""
    config = settings(**changes)
    return prepare(config, data or split(made_up(kind), config.optimisation.seed))


class Silent(Progress):
    """Progress that shows nothing and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(0)
        self.epochs: list[int] = []

    def start(self, steps: int, total: int) -> None:
        pass

    def epoch(self, record: Any, seconds: float) -> None:
        self.epochs.append(record["epoch"])
