"""Data files that the user fetched: found, checked, and read whole, or an error that says why.

Nothing is downloaded. A checksum table maps file names to the MD5 that their publisher
gives; a file whose name is in the table must match it.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxprop.train.errors import TrainingError


@dataclass(frozen=True)
class Source:
    """Where a dataset's files come from and how to tell that they are whole.

    name:      the dataset.
    home_page: where a person finds the files.
    md5:       by file name, the checksum that the publisher gives; files that are not in
               it are checked by their contents alone.
    """

    name: str
    home_page: str
    md5: Mapping[str, str]


def find(source: Source, folder: Path, names: tuple[str, ...]) -> Path:
    """The first of the files that is in the folder; they hold the same data."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise TrainingError(
        f"{source.name} needs the file {' or '.join(names)} in {folder}, and there is none. Fetch "
        f"it from {source.home_page} and put it there, or say where it is with --data-dir."
    )


def read(source: Source, path: Path) -> bytes:
    """The file's bytes, its checksum compared, decompressed where the name ends in .gz."""
    data = path.read_bytes()
    expected = source.md5.get(path.name)
    got = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if expected not in (None, got):
        raise corrupt(source, path, f"must have the MD5 checksum {expected}, got {got}")
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise corrupt(source, path, f"must be a whole gzip file, got: {error}") from None


def corrupt(source: Source, path: Path, problem: str) -> TrainingError:
    """The error for a file that is not what it should be."""
    return TrainingError(
        f"{source.name}: {path} {problem} ({path.stat().st_size} bytes). Fetch {path.name} again "
        f"from {source.home_page} and replace it."
    )
