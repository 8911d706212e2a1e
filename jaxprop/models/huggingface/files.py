"""Safetensors files, one or several: opened, looked into, written."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprop.models.huggingface.errors import CheckpointError, library
from jaxprop.models.huggingface.names import with_prefix, without_prefix

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{number:05d}-of-{count:05d}.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Found(NamedTuple):
    """Where a tensor is: the file, what is open of it, and its full name there."""

    path: Path
    file: Any
    name: str


class Tensors:
    """The tensors of a checkpoint, by names without a prefix; each is read when it is asked."""

    def __init__(self, folder: Path, found: Mapping[str, Found]) -> None:
        self._folder, self._found = folder, found

    @property
    def names(self) -> list[str]:
        return list(self._found)

    def where(self, name: str) -> Path:
        """The file that has it."""
        return self._found[name].path

    def full(self, name: str) -> str:
        """Its name in the file."""
        return self._found[name].name

    def dtype(self, name: str) -> str:
        """Its dtype; CheckpointError where that is not floating."""
        path, file, full = self._found[name]
        kind = str(file.get_slice(full).get_dtype())
        if kind not in DTYPES:
            raise CheckpointError(
                f"{path}: the tensor {full} must be floating, got {kind}. Give a checkpoint that "
                "is not quantised."
            )
        return DTYPES[kind]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """CheckpointError where there is no such tensor, or it has another shape."""
        if name not in self._found:
            raise CheckpointError(
                f"{self._folder}: the tensor {with_prefix(name)} is missing. Restore the file, or "
                "correct config.json."
            )
        path, file, full = self._found[name]
        got = tuple(file.get_slice(full).get_shape())
        if got != shape:
            raise CheckpointError(
                f"{path}: the tensor {full} must be {shape}, got {got}. Correct config.json, which "
                "says how large it is."
            )
        self.dtype(name)

    def read(self, name: str) -> np.ndarray:
        _, file, full = self._found[name]
        return file.get_tensor(full)


@contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """Open the one file, or every shard that the index names."""
    index = folder / INDEX
    with ExitStack() as stack:
        if index.is_file():
            yield Tensors(folder, _of_index(stack, folder, index))
        elif (folder / WHOLE).is_file():
            path = folder / WHOLE
            yield Tensors(folder, _found([(path, stack.enter_context(_opened(path)))]))
        else:
            raise CheckpointError(
                f"{folder} must have {WHOLE} or {INDEX}, got neither. Convert other formats with "
                "save_pretrained."
            )


def _of_index(stack: ExitStack, folder: Path, index: Path) -> dict[str, Found]:
    try:
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = {shard: folder / shard for shard in sorted(set(names.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} must have a weight_map, got: {error!r}.") from None
    files: dict[str, Any] = {}
    for shard, path in shards.items():
        inside = [name for name, file in names.items() if file == shard]
        if not path.is_file():
            raise CheckpointError(
                f"{path} must be there: it has the tensor {min(inside)}, says {INDEX}. Fetch it."
            )
        files[shard] = stack.enter_context(_opened(path))
        if missing := set(inside) - set(files[shard].keys()):
            raise CheckpointError(
                f"{path}: the tensor {min(missing)} is missing, which {INDEX} says it has. Fetch "
                "the file again."
            )
    return _found((shards[shard], file) for shard, file in files.items())


def _found(files: Iterable[tuple[Path, Any]]) -> dict[str, Found]:
    """Every tensor of every file, by its name without a prefix."""
    found: dict[str, Found] = {}
    for path, file in files:
        for full in file.keys():  # noqa: SIM118  (no mapping)
            name = without_prefix(full)
            if name in found:
                other = found[name]
                raise CheckpointError(
                    f"{path}: the tensor {full} must be there once, got it as {other.name} in "
                    f"{other.path} too. Leave one of them out."
                )
            found[name] = Found(path, file, full)
    return found


def _opened(path: Path) -> Any:
    safetensors = library("safetensors")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        what = f"is no safetensors: {error}"
        if cut := _first_cut_off(path):
            what = f"is cut off before the end of the tensor {cut}"
        raise CheckpointError(f"{path} {what}. Fetch it again.") from None


def _first_cut_off(path: Path) -> str:
    """The first tensor whose bytes the file does not have; empty where the header tells nothing."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        size = path.stat().st_size - 8 - length
        ends = {n: t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"}
        cut = [(end, name) for name, end in ends.items() if end > size]
    except (ValueError, OSError, MemoryError, OverflowError):
        return ""
    except (AttributeError, KeyError, TypeError, IndexError):  # JSON, but no such header
        return ""
    return min(cut)[1] if cut else ""


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write the tensors into one file, or into shards with an index; the index last."""
    save_file = library("safetensors.numpy").save_file
    shards = _shards(tensors, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        name = WHOLE if len(shards) == 1 else SHARD.format(number=number, count=len(shards))
        temporary = folder / f"{name}.tmp"
        # Copied here, one shard at a time: what is transposed is a view before.
        arrays = {with_prefix(each): np.ascontiguousarray(tensors[each]) for each in names}
        save_file(arrays, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / name)
        weight_map |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        total = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def _shards(tensors: Mapping[str, np.ndarray], most: int) -> list[list[str]]:
    """The names in groups of at most so many bytes, but for a tensor that is larger alone."""
    shards: list[list[str]] = []
    size = 0
    for name, array in tensors.items():
        if not shards or size + array.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += array.nbytes
    return shards
