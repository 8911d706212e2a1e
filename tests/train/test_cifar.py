"""CIFAR-10's binary files: from the folder, from the archive; every corruption is told."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxprop.train.cifar import ARCHIVE, CIFAR10, FOLDER, RECORD, TEST, TRAINING, load_cifar10
from jaxprop.train.errors import TrainingError

# The files that tests make are not the published ones: their table of checksums is empty.
SMALL = replace(CIFAR10, md5={})
PER_FILE = 3


def records() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    files = {}
    for name in (*TRAINING, TEST):
        files[name] = generator.integers(0, 256, (PER_FILE, RECORD)).astype(np.uint8)
        files[name][:, 0] %= 10
    return files


def contents(**changes: bytes) -> dict[str, bytes]:
    files = {name: made.tobytes() for name, made in records().items()}
    return {name: changes.get(name.removesuffix(".bin"), data) for name, data in files.items()}


def write(folder: Path, layout: str, **changes: bytes) -> None:
    files = contents(**changes)
    if layout == "archive":
        with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"{FOLDER}/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return
    place = folder / FOLDER if layout == "folder" else folder
    place.mkdir(exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)


@pytest.mark.parametrize("layout", ["archive", "folder", "files"])
def test_images_and_labels_come_back_the_test_batch_last(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    dataset, made = load_cifar10(tmp_path, SMALL), np.concatenate(list(records().values()))
    assert dataset.official_test == PER_FILE
    np.testing.assert_array_equal(dataset.y, made[:, 0])
    assert dataset.x.shape == (6 * PER_FILE, 32, 32, 3)
    row, column = 5, 7
    for colour in range(3):
        place = 1 + colour * 1024 + row * 32 + column
        np.testing.assert_array_equal(dataset.x[:, row, column, colour], made[:, place])


@pytest.mark.parametrize("layout", ["archive", "folder"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "whole number of 3073-byte records in data_batch_2.bin, got 0 bytes"),
        (bytes(RECORD + 1), "got 3074 bytes"),
        (b"\x0a" + bytes(RECORD - 1), "labels below 10, got 10 in data_batch_2.bin"),
    ],
)
def test_a_corrupt_file_is_named_with_its_problem(
    tmp_path: Path, layout: str, data: bytes, says: str
) -> None:
    write(tmp_path, layout, data_batch_2=data)
    with pytest.raises(TrainingError) as error:
        load_cifar10(tmp_path, SMALL)
    assert says in str(error.value)
    assert CIFAR10.home_page in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "folder")
    (tmp_path / FOLDER / TEST).unlink()
    names = f"{FOLDER}/{TEST} or {TEST} or {ARCHIVE}"
    with pytest.raises(TrainingError, match=f"needs the file {names}"):
        load_cifar10(tmp_path, SMALL)


def test_the_archive_must_match_the_published_checksum(tmp_path: Path) -> None:
    write(tmp_path, "archive")
    with pytest.raises(TrainingError, match=f"MD5 checksum {CIFAR10.md5[ARCHIVE]}"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("cut", [5, 200])
def test_a_cut_archive_is_an_error(tmp_path: Path, cut: int) -> None:
    write(tmp_path, "archive")
    path = tmp_path / ARCHIVE
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(TrainingError, match="must be a whole gzip file"):
        load_cifar10(tmp_path, SMALL)


def test_an_archive_of_something_else_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / ARCHIVE, "w:gz"):
        pass
    with pytest.raises(TrainingError, match="must hold cifar-10-batches-bin"):
        load_cifar10(tmp_path, SMALL)
