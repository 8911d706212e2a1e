"""CIFAR-10, from its binary version: the archive as published, or the six files in it.

A record is one byte of label and 3 x 32 x 32 bytes of image, colour by colour.
"""

import io
import tarfile
from pathlib import Path

import numpy as np

from jaxprop.train.dataset import Dataset
from jaxprop.train.files import Source, corrupt, find, read

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
CIFAR10 = Source(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    {ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
)
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
SIDE, COLOURS = 32, 3
RECORD = 1 + COLOURS * SIDE * SIDE


def load_cifar10(folder: Path, source: Source = CIFAR10) -> Dataset:
    """Read CIFAR-10; its test batch is the held-out part.

    Args:
        folder: holds the archive, or the folder that it unpacks to, or the six files
            themselves. Where there is an archive, it is the one that is read.
        source: the dataset; its checksum table covers the archive.

    Returns:
        A Dataset of images (N, 32, 32, 3).

    Raises:
        TrainingError: where a file is missing, the archive's checksum is wrong, a file's
            length is no whole number of records, or a label is not below 10.
    """
    names = (*TRAINING, TEST)
    if (folder / ARCHIVE).is_file():
        path = folder / ARCHIVE
        batches = [_records(source, path, *member) for member in _unpack(source, path).items()]
    else:
        paths = [find(source, folder, (f"{FOLDER}/{name}", name, ARCHIVE)) for name in names]
        batches = [_records(source, path, path.name, read(source, path)) for path in paths]
    records = np.concatenate(batches)
    images = records[:, 1:].reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels = records[:, 0].astype(np.int32)
    return Dataset(source.name, "classes", images, labels, CLASSES, official_test=len(batches[-1]))


def _unpack(source: Source, path: Path) -> dict[str, bytes]:
    """The archive's six files by name; nothing is written to disk."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(read(source, path))) as archive:
            for name in (*TRAINING, TEST):
                member = archive.extractfile(f"{FOLDER}/{name}")
                files[name] = member.read() if member else b""
    except (tarfile.TarError, KeyError) as error:
        raise corrupt(source, path, f"must hold {FOLDER}/*.bin, got: {error}") from None
    return files


def _records(source: Source, path: Path, name: str, data: bytes) -> np.ndarray:
    """The records of one file, (N, 3073) bytes."""
    if not data or len(data) % RECORD:
        problem = f"must have a whole number of {RECORD}-byte records in {name}, got {len(data)}"
        raise corrupt(source, path, f"{problem} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        problem = f"must hold labels below {len(CLASSES)}, got {records[:, 0].max()} in {name}"
        raise corrupt(source, path, problem)
    return records
