"""What the user sees while a run trains: a bar on a terminal, a line per epoch anywhere."""

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress bar over steps on stderr, where that is a terminal; lines on stdout."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, steps: int, total: int) -> None:
        """Show that `steps` of `total` are done."""
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=steps, unit=" steps", disable=quiet, leave=False)

    def advance(self, steps: int) -> None:
        """Move on by that many steps."""
        if self._bar is not None:
            self._bar.update(steps)

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Print an epoch's line."""
        width = len(str(self._epochs))
        tqdm.write(
            f"epoch {record['epoch']:>{width}}/{self._epochs}"
            f"  train cost {record['train_cost']:.4f}"
            f"  held-out loss {record['held_out_loss']:.4f}"
            f"  {score(record)}  {seconds:.3f} s"
        )


def score(record: Mapping[str, Any]) -> str:
    """The held-out score of an epoch, in words."""
    if "held_out_accuracy" in record:
        return f"accuracy {record['held_out_accuracy']:7.2%}"
    if "held_out_bits_per_byte" in record:
        return f"{record['held_out_bits_per_byte']:.3f} bits per byte"
    return f"R^2 {record['held_out_r2']:.4f}  root mean square error {record['held_out_rmse']:.4g}"
