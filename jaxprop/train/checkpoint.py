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

from jaxprop.installing import PyTree
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
            self._manager.save(steps, args=ocp.args.StandardSave(_stored(state)))

    def restore(self, like: State) -> State:
        """The newest state, with the structure, shapes and dtypes of `like`.

        Raises TrainingError where it has others, or cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _stored(like))
        with self._readable():
            saved = _shapes(self._manager.item_metadata(self.newest).tree)
            if changed := _shapes(abstract).items() - saved.items():
                name, shape = min(changed)
                raise ValueError(f"{name} of shape {saved.get(name)} in place of {shape}")
            found = self._manager.restore(self.newest, args=ocp.args.StandardRestore(abstract))
            return like._replace(**found)

    def params(self, like: PyTree) -> PyTree:
        """The parameters of the newest state alone, with the structure and dtypes of `like`.

        Raises TrainingError where they have other paths or shapes, or cannot be read.
        """
        with self._readable():
            found = self._manager.restore(self.newest, args=ocp.args.StandardRestore())["params"]
            if changed := _shapes(like).items() ^ _shapes(found).items():
                raise ValueError("{} of shape {}, on one side alone".format(*min(changed)))
            by_path = _by_path(found)
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: by_path[_name(path)].astype(leaf.dtype), like
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What goes wrong while reading the newest checkpoint becomes a TrainingError."""
        with _abandoned_reads_unreported():
            try:
                yield
                return
            except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
                reason = str(error).split("\n")[0][:200]
                time.sleep(0.2)  # until the other reads have ended
        raise TrainingError(
            f"the checkpoint {self._folder / str(self.newest)} must be readable and of this "
            f"network and data, got: {reason}. Restore what has changed, or remove that folder to "
            "resume from the one before."
        )


def _stored(state: State) -> dict[str, Any]:
    """The parts of the state by name, those that hold something."""
    return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves by path."""
    return {name: tuple(leaf.shape) for name, leaf in _by_path(tree).items()}


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


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
