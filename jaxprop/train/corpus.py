"""Text to train a language model on, as bytes: a file, a folder, or Python's own library."""

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprop.train.errors import TrainingError

# Of a folder, one file in so many is held out; of a file, so large a part, the last one.
HELD_OUT_FILES = 20
HELD_OUT_PART = 0.1
# Of the standard library what is no code that people read: tests, tables, others' packages.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}


class Corpus(NamedTuple):
    """Bytes, uint8: what is trained on, and what is held out; and what the text is called."""

    name: str
    train: np.ndarray
    held_out: np.ndarray


def load_corpus(text: str) -> Corpus:
    """Read a text.

    Args:
        text: the path of a file or of a folder; "" for the source of Python's standard library,
            without its tests and generated tables.

    Returns:
        A Corpus. Of a folder, which files are held out depends on their paths alone.

    Raises:
        TrainingError: where there is nothing there, or no text in it.
    """
    if text == "":
        folder = Path(sysconfig.get_paths()["stdlib"])
        return _of_files("the standard library", python_files(folder), folder)
    path = Path(text)
    if path.is_file():
        return _of_one(path)
    if not path.is_dir():
        raise TrainingError(
            f"--text must be a file or a folder, got {text!r}, which does not exist. Leave it out "
            "for the source of Python's standard library."
        )
    return _of_files(path.name, (file for file in path.rglob("*") if file.is_file()), path)


def python_files(folder: Path) -> Iterator[Path]:
    """The source files of a library, without its tests, generated tables and others' packages."""
    for path in folder.rglob("*.py"):
        if not LEFT_OUT & set(path.relative_to(folder).parts):
            yield path


def _of_one(path: Path) -> Corpus:
    content = path.read_bytes()
    if not _is_text(content):
        raise TrainingError(f"--text must be text in UTF-8, got {path}, which is not.")
    data = np.frombuffer(content, np.uint8)
    cut = len(data) - int(HELD_OUT_PART * len(data))
    return Corpus(path.name, data[:cut], data[cut:])


def _of_files(name: str, paths: Iterator[Path], folder: Path) -> Corpus:
    """The files that are text, in the order of their paths, each ending in a line break."""
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for path in sorted(paths):
        content = path.read_bytes()
        if content and _is_text(content):
            where = path.relative_to(folder).as_posix().encode()
            parts[zlib.crc32(where) % HELD_OUT_FILES == 0].append(content.rstrip(b"\n") + b"\n")
    if not parts[False] or not parts[True]:
        count = len(parts[False]) + len(parts[True])
        raise TrainingError(
            f"--text must be a folder with enough text files to hold one in {HELD_OUT_FILES} out, "
            f"got {count} in {folder}. Give a single file: its end is held out."
        )
    train, held_out = (np.frombuffer(b"".join(parts[held]), np.uint8) for held in (False, True))
    return Corpus(name, train, held_out)


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
