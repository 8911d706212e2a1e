"""Loading by name, the split, standardising."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxprop.train.data import load, split
from jaxprop.train.dataset import Dataset
from jaxprop.train.errors import TrainingError
from tests.tolerances import assert_near
from tests.train.small import made_up


@pytest.mark.parametrize(
    ("name", "kind", "shape", "classes"),
    [
        ("digits", "classes", (1797, 8, 8, 1), 10),
        ("breast_cancer", "binary", (569, 30), 2),
        ("diabetes", "regression", (442, 10), 0),
    ],
)
def test_the_bundled_datasets(
    tmp_path: Path, name: str, kind: str, shape: tuple[int, ...], classes: int
) -> None:
    dataset = load(name, tmp_path)
    assert (dataset.kind, dataset.x.shape, len(dataset.classes)) == (kind, shape, classes)
    assert (dataset.unit != "") == (kind == "regression")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_others_are_looked_for_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name} needs the file .* in {tmp_path}"):
        load(name, tmp_path)


def test_a_fifth_is_held_out_with_each_class_in_proportion() -> None:
    dataset = load("digits", Path())
    data = split(dataset, 3)
    assert sorted([*data.train, *data.held_out]) == list(range(len(dataset.x)))
    assert len(data.held_out) == 360
    shares = np.bincount(dataset.y[data.held_out]) / np.bincount(dataset.y)
    assert np.all(np.round(shares, 1) == 0.2)


def test_the_seed_fixes_the_split() -> None:
    dataset = made_up()
    same, other = split(dataset, 1), split(dataset, 2)
    np.testing.assert_array_equal(split(dataset, 1).train, same.train)
    assert list(same.train) != list(other.train)


def test_the_publishers_test_part_is_the_held_out_part() -> None:
    dataset = replace(made_up(), official_test=10)
    for seed in (0, 1):
        assert list(split(dataset, seed).held_out) == list(range(65, 75))


def test_inputs_are_standardised_by_the_training_part_alone() -> None:
    dataset = made_up()
    data = split(dataset, 0)
    x = data.x(data.train, np.float64)
    assert_near(x.mean(axis=0) + 1, np.ones(5))
    assert_near(x.std(axis=0), np.ones(5))
    changed = dataset.x.copy()
    changed[data.held_out] += 1000.0
    again = split(replace(dataset, x=changed), 0)
    np.testing.assert_array_equal(again.x(data.train, np.float64), x)


def test_the_pixels_of_a_colour_share_one_scale() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    images[:, 0, 0] = 0
    data = split(Dataset("made_up", "classes", images, np.arange(20) % 2, ("a", "b")), 0)
    assert data.x_mean.shape == data.x_scale.shape == (3,)
    x = data.x(data.train, np.float64).reshape(-1, 3)
    assert_near(x.mean(axis=0) + 1, np.ones(3), reduced=x.size)
    assert_near(x.std(axis=0), np.ones(3), reduced=x.size)


def test_a_feature_that_never_varies_becomes_zero() -> None:
    dataset = made_up()
    dataset.x[:, 2] = 7.0
    data = split(dataset, 0)
    assert np.all(data.x(data.train, np.float32)[:, 2] == 0)


def test_regression_targets_are_standardised_and_have_one_column() -> None:
    data = split(made_up("regression"), 0)
    y = data.y(data.train, np.float64)
    assert y.shape == (60, 1)
    assert_near(y.std(), np.ones(()))
    assert_near(y * data.y_scale + data.y_mean, data.dataset.y[data.train][:, None])


@pytest.mark.parametrize("what", ["inputs", "targets"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(what: str, bad: float) -> None:
    dataset = made_up("regression")
    array = dataset.x if what == "inputs" else dataset.y
    array[3] = bad
    with pytest.raises(TrainingError, match=f"the {what} of made_up must be finite"):
        split(dataset, 0)


def test_too_few_examples_of_a_class_are_refused() -> None:
    dataset = made_up(examples=7)
    dataset.y[:] = [0, 0, 0, 0, 0, 0, 1]
    with pytest.raises(TrainingError, match="enough examples of each class"):
        split(dataset, 0)
