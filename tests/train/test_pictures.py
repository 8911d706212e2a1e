"""The pictures of a run: which are drawn for which data, and what is in them."""

from pathlib import Path

import numpy as np
import pytest

from jaxprop.train.data import split
from jaxprop.train.dataset import Dataset
from jaxprop.train.pictures import confusion, curves, draw, gradient_flow, mistakes, predictions
from tests.train.small import made_up

RECORDS = [
    {
        "epoch": epoch,
        "train_cost": 1.0 / (1 + epoch),
        "held_out_loss": 2.0 / (1 + epoch),
        "held_out_accuracy": 0.5 + 0.1 * epoch,
        "held_out_r2": 0.1 * epoch,
        "held_out_rmse": 5.0 - epoch,
        "gradient_norms": {"hidden_1": 0.1, "output": 1.0 / (1 + epoch)},
    }
    for epoch in range(4)
]
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
PHOTOS = Dataset("photos", "classes", IMAGES, np.arange(30, dtype=np.int32) % 3, ("a", "b", "c"))
ALWAYS = {"curves.png", "gradient_flow.png"}


@pytest.mark.parametrize(
    ("dataset", "more"),
    [
        (PHOTOS, {"confusion.png", "mistakes.png"}),
        (made_up("binary"), {"confusion.png"}),
        (made_up("regression"), {"predictions.png"}),
    ],
)
def test_what_is_drawn_follows_from_the_data(
    tmp_path: Path, dataset: Dataset, more: set[str]
) -> None:
    data = split(dataset, 0)
    guess = np.zeros(len(data.held_out), np.int32)
    paths = draw(tmp_path, RECORDS, data, guess)
    assert {path.name for path in paths} == ALWAYS | more
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_no_mistakes_no_picture_of_them(tmp_path: Path) -> None:
    data = split(PHOTOS, 0)
    paths = draw(tmp_path, RECORDS, data, data.dataset.y[data.held_out])
    assert "mistakes.png" not in {path.name for path in paths}


def test_confusion_counts_truth_by_row() -> None:
    figure = confusion(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), ("a", "b"))
    axes = figure.axes[0]
    found = {text.get_position(): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "1", (1, 0): "2", (1, 1): "1"}
    assert "2 of 4 right" in axes.get_title()


def test_mistakes_are_titled_with_truth_and_guess() -> None:
    figure = mistakes(IMAGES[:3], np.array([0, 1, 2]), np.array([0, 2, 1]), ("a", "b", "c"))
    assert [axes.get_title() for axes in figure.axes] == ["b\ntaken for c", "c\ntaken for b"]


def test_curves_leave_the_cost_out_where_there_is_none() -> None:
    untrained = {name: value for name, value in RECORDS[0].items() if name != "train_cost"}
    left, _ = curves([untrained, *RECORDS[1:]], "").axes
    cost, loss = left.lines
    assert list(cost.get_xdata()) == [1, 2, 3]
    assert list(loss.get_xdata()) == [0, 1, 2, 3]


def test_regression_is_drawn_in_its_unit() -> None:
    records = [{k: v for k, v in r.items() if k != "held_out_accuracy"} for r in RECORDS]
    _, right = curves(records, "metres").axes
    assert "metres" in right.get_ylabel()
    truth = np.array([1.0, 2.0])
    assert predictions(truth, truth + 1, "metres").axes[0].get_xlabel() == "truth (metres)"


def test_gradient_flow_is_by_epoch_and_by_depth() -> None:
    by_epoch, by_depth = gradient_flow(RECORDS).axes
    assert [line.get_label() for line in by_epoch.lines] == ["hidden_1", "output"]
    assert list(by_depth.lines[0].get_ydata()) == [0.1, 1.0]
    assert len(by_depth.lines) == len(RECORDS)
