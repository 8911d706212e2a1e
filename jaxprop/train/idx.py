"""MNIST and Fashion-MNIST, from IDX files.

An IDX file is a magic number (two zero bytes, a byte for the element type, a byte for the
number of axes), the length of each axis as a big-endian 32-bit integer, and the elements.
"""

import math
import struct
from pathlib import Path

import numpy as np

from jaxprop.train.dataset import Dataset
from jaxprop.train.files import Source, corrupt, find, read

UNSIGNED_BYTE = 0x08

MNIST = Source(
    "mnist",
    "http://yann.lecun.com/exdb/mnist/",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION_MNIST = Source(
    "fashion_mnist",
    "https://github.com/zalandoresearch/fashion-mnist",
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)
DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_images(source: Source, folder: Path, classes: tuple[str, ...]) -> Dataset:
    """Read the four files of an MNIST-like dataset, compressed or not; the test files last.

    Args:
        source: the dataset; its checksum table covers the compressed files.
        folder: the folder they are in.
        classes: the names of the classes, by label.

    Returns:
        A Dataset of images (N, height, width, 1) whose held-out part is the test files.

    Raises:
        TrainingError: where a file is missing, or its checksum, magic number, dimensions or
            length are wrong; where images and labels do not fit each other.
    """
    parts = [_load_part(source, folder, part, len(classes)) for part in ("train", "t10k")]
    (x, y), (x_test, y_test) = parts
    if x.shape[1:] != x_test.shape[1:]:
        path = find(source, folder, _names("t10k-images-idx3-ubyte"))
        raise corrupt(source, path, f"must hold images of {x.shape[1:]}, got {x_test.shape[1:]}")
    return Dataset(
        source.name,
        "classes",
        np.concatenate([x, x_test])[..., None],
        np.concatenate([y, y_test]).astype(np.int32),
        classes,
        official_test=len(y_test),
    )


def read_idx(source: Source, path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of one IDX file with that many axes."""
    data = read(source, path)
    magic = bytes([0, 0, UNSIGNED_BYTE, axes])
    if data[:4] != magic:
        problem = (
            f"must start with the magic number {magic.hex()}, got {data[:4].hex() or 'nothing'}"
        )
        raise corrupt(source, path, problem)
    header = 4 + 4 * axes
    if len(data) < header:
        raise corrupt(source, path, f"must have a header of {header} bytes, got {len(data)}")
    shape = struct.unpack(f">{axes}I", data[4:header])
    expected = header + math.prod(shape)
    if min(shape) < 1 or len(data) != expected:
        dimensions = " x ".join(map(str, shape))
        problem = f"says {dimensions}, so it must have {expected} bytes, got {len(data)}"
        raise corrupt(source, path, problem)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _load_part(
    source: Source, folder: Path, part: str, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    images_path = find(source, folder, _names(f"{part}-images-idx3-ubyte"))
    labels_path = find(source, folder, _names(f"{part}-labels-idx1-ubyte"))
    images, labels = read_idx(source, images_path, 3), read_idx(source, labels_path, 1)
    if len(images) != len(labels):
        problem = f"must have one label per image of {images_path.name}, {len(images)}, got"
        raise corrupt(source, labels_path, f"{problem} {len(labels)}")
    if labels.max() >= classes:
        problem = f"must hold labels below {classes}, got {labels.max()}"
        raise corrupt(source, labels_path, problem)
    return images, labels


def _names(stem: str) -> tuple[str, str]:
    return f"{stem}.gz", stem
