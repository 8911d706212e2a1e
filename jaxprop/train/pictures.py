"""The pictures of a run: learning curves, gradient flow, confusions or predictions, mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from jaxprop.train.data import Split

Records = Sequence[Mapping[str, Any]]
DPI = 120
MISTAKES = 20


def draw(folder: Path, records: Records, split: Split, guess: np.ndarray) -> list[Path]:
    """Write every picture that fits the data.

    Args:
        folder: where to.
        records: the lines of metrics.jsonl.
        split: the data.
        guess: a prediction for each held-out example.

    Returns:
        What was written.
    """
    dataset, truth = split.dataset, split.dataset.y[split.held_out]
    figures = {
        "curves.png": curves(records, dataset.unit),
        "gradient_flow.png": gradient_flow(records),
    }
    if dataset.kind == "regression":
        figures["predictions.png"] = predictions(truth, guess, dataset.unit)
    else:
        figures["confusion.png"] = confusion(truth, guess, dataset.classes)
    if dataset.are_images and dataset.classes and np.any(guess != truth):
        images = dataset.x[split.held_out]
        figures["mistakes.png"] = mistakes(images, truth, guess, dataset.classes)
    return _written(folder, figures)


def draw_text(folder: Path, records: Records) -> list[Path]:
    """Write the pictures of a run on text; returns what was written."""
    figures = {"curves.png": curves(records, ""), "gradient_flow.png": gradient_flow(records)}
    return _written(folder, figures)


def _written(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return [folder / name for name in figures]


def curves(records: Records, unit: str) -> Figure:
    """J and the held-out loss at the left, the held-out score at the right, by epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [r for r in records if "train_cost" in r]
    label = "training cost J, mean over the epoch"
    left.plot([r["epoch"] for r in trained], [r["train_cost"] for r in trained], label=label)
    epochs = [r["epoch"] for r in records]
    label = "held-out loss L, after the epoch"
    left.plot(epochs, [r["held_out_loss"] for r in records], label=label)
    log_scale(left)
    left.set_ylabel(f"cost, loss ({_per_what(records, unit)})")
    left.legend()
    _scores(right, epochs, records, unit)
    for axes in (left, right):
        epoch_axis(axes)
    return figure


def _per_what(records: Records, unit: str) -> str:
    if "held_out_bits_per_byte" in records[0]:
        return "nats per byte"
    return "targets standardised" if unit else "nats per example"


def gradient_flow(records: Records) -> Figure:
    """The norm of each layer's gradient: by epoch at the left, by depth at the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    epochs = [r["epoch"] for r in records]
    layers = list(records[0]["gradient_norms"])
    for layer in layers:
        left.plot(epochs, [r["gradient_norms"][layer] for r in records], label=layer)
    left.set_ylabel("norm of dJ/dtheta on one batch")
    left.set_title("by epoch")
    left.legend()
    epoch_axis(left)
    for r in _spread(records):
        norms = [r["gradient_norms"][layer] for layer in layers]
        right.plot(range(len(layers)), norms, marker="o", label=f"epoch {r['epoch']}")
    _name_ticks(right.xaxis, layers)
    right.set_xlabel("layer, from the input on")
    right.set_title("by depth")
    right.margins(x=0.1)
    log_scale(right)
    right.grid(alpha=0.3)
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def confusion(truth: np.ndarray, guess: np.ndarray, classes: Sequence[str]) -> Figure:
    """How many held-out examples of each class were taken for which."""
    size = len(classes)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (truth, guess), 1)
    width, height = max(5.5, 3 + 0.5 * size), max(4.0, 2.5 + 0.5 * size)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        if count:
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    _name_ticks(axes.xaxis, classes)
    axes.set_yticks(range(size), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"Held-out part: {np.trace(counts)} of {counts.sum()} right")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def mistakes(
    images: np.ndarray, truth: np.ndarray, guess: np.ndarray, classes: Sequence[str]
) -> Figure:
    """The first held-out images that were taken for another class."""
    wrong = np.flatnonzero(guess != truth)
    shown = wrong[:MISTAKES]
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(4.5, 2 * columns), 0.6 + 2.2 * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    top = images.max()
    for panel, index in zip(panels, shown, strict=False):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.imshow(images[index].squeeze() / top, cmap="gray_r", vmin=0, vmax=1)
        right, taken = classes[truth[index]], classes[guess[index]]
        panel.set_title(f"{right}\ntaken for {taken}", fontsize=9)
    figure.suptitle(f"{len(shown)} of {len(wrong)} mistakes on the held-out part")
    return figure


def predictions(truth: np.ndarray, guess: np.ndarray, unit: str) -> Figure:
    """The prediction for each held-out example against the truth."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    ends = [min(truth.min(), guess.min()), max(truth.max(), guess.max())]
    axes.plot(ends, ends, color="gray", linewidth=1, label="prediction = truth")
    axes.scatter(truth, guess, s=14, alpha=0.7)
    axes.set_xlabel(f"truth ({unit})")
    axes.set_ylabel(f"prediction ({unit})")
    axes.set_title("Held-out part")
    axes.legend()
    return figure


def _scores(axes: Any, epochs: Sequence[int], records: Records, unit: str) -> None:
    if "held_out_accuracy" in records[0]:
        shares = [100 * r["held_out_accuracy"] for r in records]
        # Without the guess before training, which would flatten what follows.
        axes.plot(epochs[1:], shares[1:], color="tab:green")
        axes.set_ylabel("held-out accuracy (%)")
        return
    if "held_out_bits_per_byte" in records[0]:
        axes.plot(epochs, [r["held_out_bits_per_byte"] for r in records], color="tab:green")
        axes.set_ylabel("held-out bits per byte")
        return
    axes.plot(epochs, [r["held_out_rmse"] for r in records], color="tab:green")
    axes.set_ylabel(f"held-out error, root mean square\n({unit})")


def epoch_axis(axes: Any) -> None:
    axes.set_xlabel("epoch (0: before training)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def log_scale(axes: Any) -> None:
    """A logarithmic y axis whose numbers are plain ones."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:g}")


def _name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Names along the x axis, slanted where they would run into each other."""
    crowded = sum(map(len, names)) > 40
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_ticks(range(len(names)), names, **slant)


def _spread(records: Records, most: int = 5) -> Records:
    """A few of the records, evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(records) - 1, most).round().astype(int))
    return [records[place] for place in places]
