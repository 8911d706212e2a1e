"""The data of a run: loaded by name, split, standardised."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from jaxprop.train import bundled
from jaxprop.train.cifar import load_cifar10
from jaxprop.train.config import DatasetName
from jaxprop.train.dataset import Dataset
from jaxprop.train.errors import TrainingError
from jaxprop.train.idx import DIGITS, FASHION_MNIST, GARMENTS, MNIST, load_images

HELD_OUT = 0.2


@dataclass(frozen=True)
class Split:
    """A training part and a held-out part, ready for a network.

    dataset:            what was loaded.
    train, held_out:    which of its examples are in each part.
    x_mean, x_scale:    of the training part; one pair per feature, or per colour of images
                        (pixels share a scale, and some never vary).
    y_mean, y_scale:    of the training part's targets; 0 and 1 but for regression.
    """

    dataset: Dataset
    train: np.ndarray
    held_out: np.ndarray
    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: float
    y_scale: float

    def x(self, rows: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Those examples' inputs, standardised, a row for each: (N, features)."""
        x = self.standardised(rows, dtype)
        return x.reshape(len(x), -1)

    def standardised(self, rows: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Those examples' inputs, standardised, in their own shape."""
        x = self.dataset.x[rows].astype(dtype)
        return (x - self.x_mean.astype(dtype)) / self.x_scale.astype(dtype)

    def y(self, rows: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Those examples' labels (N,) int32; for one output unit (N, 1), targets standardised."""
        y = self.dataset.y[rows]
        if self.dataset.kind == "classes":
            return y
        return ((y - self.y_mean) / self.y_scale).astype(dtype)[:, None]


def load(name: DatasetName, folder: Path) -> Dataset:
    """Load a dataset; those that do not come with scikit-learn from files in `folder`.

    Raises TrainingError where a file is missing or corrupt.
    """
    match name:
        case "digits":
            return bundled.digits()
        case "breast_cancer":
            return bundled.breast_cancer()
        case "diabetes":
            return bundled.diabetes()
        case "mnist":
            return load_images(MNIST, folder, DIGITS)
        case "fashion_mnist":
            return load_images(FASHION_MNIST, folder, GARMENTS)
        case "cifar10":
            return load_cifar10(folder)


def split(dataset: Dataset, seed: int) -> Split:
    """Hold out the publisher's test part, or a fifth of the examples, and standardise.

    Args:
        dataset: as loaded.
        seed: fixes which fifth; each class has its share in it. No part in the choice where
            the publisher made it.

    Raises:
        TrainingError: where a number is not finite, or a class has fewer than 2 examples.
    """
    for what, values in (("inputs", dataset.x), ("targets", dataset.y)):
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise TrainingError(
                f"the {what} of {dataset.name} must be finite, got {bad} that are not, among "
                f"{values.size}. Mend or leave out those examples."
            )
    train, held_out = _parts(dataset, seed)
    x, y = dataset.x[train], dataset.y[train]
    axes = tuple(range(x.ndim - 1)) if dataset.are_images else 0
    y_mean, y_scale = (y.mean(), y.std() or 1.0) if dataset.kind == "regression" else (0.0, 1.0)
    x_scale = x.std(axis=axes, dtype=np.float64)
    return Split(
        dataset,
        train,
        held_out,
        x.mean(axis=axes, dtype=np.float64),
        np.where(x_scale == 0, 1.0, x_scale),  # what never varies becomes 0
        float(y_mean),
        float(y_scale),
    )


def _parts(dataset: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(dataset.x))
    if dataset.official_test:
        return rows[: -dataset.official_test], rows[-dataset.official_test :]
    classes = None if dataset.kind == "regression" else dataset.y
    try:
        train, held_out = train_test_split(
            rows, test_size=HELD_OUT, random_state=seed, stratify=classes
        )
    except ValueError as error:
        raise TrainingError(
            f"{dataset.name} must have enough examples of each class to hold a fifth out, got "
            f"{len(rows)} examples: {error}"
        ) from None
    return train, held_out
