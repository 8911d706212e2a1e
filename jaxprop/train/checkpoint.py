"""Checkpoints of a run: the state by the number of steps done, written whole or not at all."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxprop.train.errors import TrainingError
from jaxprop.train.step import State

KEPT = 2


class Checkpoints:
    """The checkpoints in one folder, the newest two kept.

    Orbax writes each under a temporary name and renames it when it is whole, so a process
    that is killed while it saves leaves the one before.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._folder = folder.resolve()
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self._manager.close()

    @property
    def newest(self) -> int | None:
        """How many steps the newest one has behind it; None where there is none."""
        return self._manager.latest_step()

    def save(self, steps: int, state: State) -> None:
        """Save the state after that many steps; nothing to do where that is saved already."""
        if self.newest != steps:
            self._manager.save(steps, args=ocp.args.StandardSave(state))

    def restore(self, like: State) -> State:
        """The newest state, with the structure, shapes and dtypes of `like`.

        Raises TrainingError where it has others, or cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _abandoned_reads_unreported():
            try:
                saved = _shapes(self._manager.item_metadata(self.newest).tree)
                if changed := _shapes(abstract).items() - saved.items():
                    name, shape = min(changed)
                    raise ValueError(f"{name} of shape {saved.get(name)} in place of {shape}")
                return self._manager.restore(self.newest, args=ocp.args.StandardRestore(abstract))
            except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
                reason = str(error).split("\n")[0][:200]
                time.sleep(0.2)  # until the other reads have ended
        raise TrainingError(
            f"the checkpoint {self._folder / str(self.newest)} must be readable and of this "
            f"network and data, got: {reason}. Restore what has changed, or remove that folder to "
            "resume from the one before."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@contextmanager
def _abandoned_reads_unreported() -> Iterator[None]:
    """Orbax reads arrays side by side; where one fails Python reports each of the others."""
    report = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = report
