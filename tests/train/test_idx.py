"""MNIST-like files: read whole, compressed or not; every corruption is told."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxprop.train.errors import TrainingError
from jaxprop.train.files import Source
from jaxprop.train.idx import DIGITS, FASHION_MNIST, GARMENTS, MNIST, load_images, read_idx

# The files that tests make are not the published ones: their table of checksums is empty.
SMALL = Source("mnist", "https://example.org/mnist", {})
TRAIN, TEST = 12, 5


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    files = {}
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        files[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 4, 3))
        files[f"{part}-labels-idx1-ubyte"] = generator.integers(0, 10, (count,))
    return files


def write(folder: Path, compressed: bool = False, **changes: bytes) -> None:
    for name, array in arrays().items():
        data = changes.get(name.replace("-", "_"), idx(array))
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(data) if compressed else data)


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels_come_back_test_files_last(tmp_path: Path, compressed: bool) -> None:
    write(tmp_path, compressed)
    dataset, made = load_images(SMALL, tmp_path, DIGITS), arrays()
    assert dataset.x.shape == (TRAIN + TEST, 4, 3, 1)
    assert dataset.official_test == TEST
    for part, rows in (("train", slice(0, TRAIN)), ("t10k", slice(TRAIN, None))):
        np.testing.assert_array_equal(dataset.x[rows, ..., 0], made[f"{part}-images-idx3-ubyte"])
        np.testing.assert_array_equal(dataset.y[rows], made[f"{part}-labels-idx1-ubyte"])


CORRUPTIONS = {
    "empty": (b"", "magic number 00000803, got nothing"),
    "labels in the place of images": (idx(np.zeros(TRAIN)), "got 00000801"),
    "another element type": (b"\0\0\x0d\3" + bytes(200), "got 00000d03"),
    "only a magic number": (b"\0\0\x08\3" + bytes(3), "header of 16 bytes, got 7"),
    "cut short": (idx(np.zeros((TRAIN, 4, 3)))[:-1], "says 12 x 4 x 3, so it must have 160 bytes"),
    "too long": (idx(np.zeros((TRAIN, 4, 3))) + b"x", "got 161"),
    "no images": (idx(np.zeros((0, 4, 3))), "says 0 x 4 x 3"),
    "fewer images than labels": (idx(np.zeros((TRAIN - 1, 4, 3))), "one label per image"),
    "other sizes in the test images": (
        idx(np.zeros((TRAIN, 3, 3))),
        "images of (3, 3), got (4, 3)",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_corrupt_file_is_named_with_its_problem(
    tmp_path: Path, name: str, compressed: bool
) -> None:
    data, says = CORRUPTIONS[name]
    write(tmp_path, compressed, train_images_idx3_ubyte=data)
    with pytest.raises(TrainingError) as error:
        load_images(SMALL, tmp_path, DIGITS)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "https://example.org/mnist" in str(error.value)


def test_a_label_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, t10k_labels_idx1_ubyte=idx(np.full(TEST, 10)))
    with pytest.raises(TrainingError, match="labels below 10, got 10"):
        load_images(SMALL, tmp_path, DIGITS)


def test_a_missing_file_is_named_with_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(TrainingError) as error:
        load_images(SMALL, tmp_path, DIGITS)
    assert "t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_cut_gzip_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrainingError, match="must be a whole gzip file"):
        load_images(SMALL, tmp_path, DIGITS)


def test_a_file_in_the_checksum_table_must_match_it(tmp_path: Path) -> None:
    write(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert read_idx(replace(SMALL, md5={path.name: md5}), path, 3).shape == (TRAIN, 4, 3)
    for source in (MNIST, FASHION_MNIST):
        with pytest.raises(TrainingError, match=f"MD5 checksum {source.md5[path.name]}, got {md5}"):
            load_images(source, tmp_path, GARMENTS)


def test_the_published_tables_name_the_compressed_files() -> None:
    names = {f"{name}.gz" for name in arrays()}
    for source in (MNIST, FASHION_MNIST):
        assert set(source.md5) == names
        assert all(len(md5) == 32 for md5 in source.md5.values())
