"""The run folder: settings, metrics, and where the rest lies.

config.json     the settings
metrics.jsonl   one line per epoch, the first (epoch 0) before training; the same bytes
                for the same settings on the same machine, resumed or not
timings.jsonl   the seconds of each epoch
checkpoints/    the newest states
*.png, trace.txt
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from jaxprop.train.config import AnyConfig, C, as_json, differences, from_json
from jaxprop.train.errors import TrainingError

METRICS, TIMINGS, SETTINGS = "metrics.jsonl", "timings.jsonl", "config.json"


@dataclass(frozen=True)
class RunFolder:
    """A folder that `create` or `reopen` checked."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def append(self, record: Mapping[str, Any], seconds: float) -> None:
        """Add an epoch's line to metrics.jsonl, its seconds to timings.jsonl."""
        timing = {"epoch": record["epoch"], "seconds": round(seconds, 4)}
        for name, line in ((METRICS, record), (TIMINGS, timing)):
            with (self.path / name).open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, as far as they are whole."""
        return [json.loads(line) for line in _whole_lines(self.path / METRICS)]

    def keep_epochs(self, epochs: int) -> None:
        """Drop the lines past that many epochs, which a checkpoint does not hold yet."""
        for name in (METRICS, TIMINGS):
            lines = _whole_lines(self.path / name)
            kept = [line for line in lines if json.loads(line)["epoch"] <= epochs]
            if [json.loads(line)["epoch"] for line in kept] != list(range(epochs + 1)):
                raise TrainingError(
                    f"{self.path / name} must have a line for each epoch from 0 to {epochs}, got "
                    f"{len(kept)} lines. Restore the file, or start a new run."
                )
            write_whole(self.path / name, "".join(line + "\n" for line in kept))


def create(path: Path, config: AnyConfig) -> RunFolder:
    """Make the folder of a new run and write its settings.

    Raises TrainingError where there is something in it already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise TrainingError(
            f"the run folder {path} must be a new or an empty folder, got one with files in it, or "
            "a file. Give another --run, or go on with that run: --resume."
        )
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / SETTINGS, json.dumps(as_json(config), indent=2) + "\n")
    return RunFolder(path)


def saved_config(path: Path, kind: type[C]) -> C:
    """The settings of the run in that folder, of that kind.

    Raises TrainingError where there is none.
    """
    try:
        text = (path / SETTINGS).read_text(encoding="ascii")
        return from_json(json.loads(text), kind)
    except FileNotFoundError:
        raise TrainingError(
            f"--resume needs a run in {path}, got no {path / SETTINGS}. Give the folder of the run "
            "with --run, or start one without --resume."
        ) from None
    except ValueError as error:
        raise TrainingError(f"{path / SETTINGS} must be JSON, got: {error}.") from None


def reopen(path: Path, config: AnyConfig) -> RunFolder:
    """The folder of a run to go on with.

    Raises TrainingError where there is none, or its settings are others than `config`.
    """
    changed = differences(saved_config(path, type(config)), config)
    if changed:
        raise TrainingError(
            f"a resumed run keeps its settings, got others for {path}: {'; '.join(changed)}. Leave "
            "them out, or start a new run."
        )
    return RunFolder(path)


def next_free(parent: Path, dataset: str) -> Path:
    """parent/dataset-001, or the first number after it that is not taken."""
    candidates = (parent / f"{dataset}-{number:03d}" for number in count(1))
    return next(path for path in candidates if not path.exists())


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a process killed meanwhile leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a newline; a process killed while writing leaves one that does not."""
    text = path.read_text(encoding="ascii") if path.exists() else ""
    return text.split("\n")[:-1]
