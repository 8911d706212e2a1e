"""What is wrong with a checkpoint, and what reading one needs."""

from importlib import import_module
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which file and tensor."""

    def __init__(self, message: str) -> None:
        super().__init__(f"huggingface: {message}")


def library(name: str) -> Any:
    """The module of a library that jaxprop itself does without."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"huggingface: needs {error.name}, which is not installed. Install the extra `models`, "
            "as in pip install -e '.[models]'.",
            name=error.name,
        ) from None
