"""A run with a slip planted in it beside the right one, as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxprop.train.data import Split
from jaxprop.train.pictures import DPI, Records, epoch_axis, log_scale
from jaxprop.train.planted import SLIPS

PICTURE = "slip.png"


def draw_beside(folder: Path, slip: str, planted: Records, right: Records, split: Split) -> Path:
    """Write the two runs' costs and held-out scores by epoch; return where."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, middle = figure.subplots(1, 2)
    for records, label, style in ((right, "right", "-"), (planted, f"with {slip}", "--")):
        trained = [r for r in records if "train_cost" in r]
        epochs = [r["epoch"] for r in trained]
        left.plot(epochs, [r["train_cost"] for r in trained], style, label=label)
        middle.plot(epochs, [_score(r) for r in trained], style, label=label)
    log_scale(left)
    left.set_ylabel("training cost J, mean over the epoch")
    unit = split.dataset.unit
    middle.set_ylabel(f"held-out error ({unit})" if unit else "held-out accuracy (%)")
    for axes in (left, middle):
        epoch_axis(axes)
        axes.legend()
    figure.suptitle(f"{slip}: {SLIPS[slip].says}")
    figure.savefig(folder / PICTURE, dpi=DPI)
    return folder / PICTURE


def _score(record: Any) -> float:
    if "held_out_accuracy" in record:
        return 100 * record["held_out_accuracy"]
    return record["held_out_rmse"]
