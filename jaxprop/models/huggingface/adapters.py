"""Low-rank adapters alone, in a folder by the names and the layout of the library PEFT."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.installing import PyTree
from jaxprop.models.adapters import adapters, merge
from jaxprop.models.gpt2 import Gpt2Config
from jaxprop.models.huggingface.errors import CheckpointError, library
from jaxprop.models.huggingface.files import write_json
from jaxprop.models.huggingface.names import places, with_prefix
from jaxprop.models.language import LanguageModel
from jaxprop.models.projections import Adapted
from jaxprop.precision import at_least_float32
from jaxprop.rules.penalties import path_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def save_adapters(folder: Path | str, model: LanguageModel, params: PyTree) -> None:
    """Write the adapters of a model, without the model.

    Args:
        folder: new or empty: nothing that is there is overwritten.
        model, params: of `gpt2` or `llama`, with adapters of one rank and one alpha.

    Raises:
        CheckpointError: where the folder has something in it, or there are no adapters, or they
            differ in rank or scale.
        ModuleNotFoundError: where safetensors is not installed.
    """
    folder, found = Path(folder), adapters(params)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"save_adapters needs a new or an empty folder, got {folder}. Give another."
        )
    kinds = {(place.a.shape[-1], place.scale) for place in found.values()}
    if len(kinds) != 1:
        raise CheckpointError(
            f"save_adapters needs adapters of one rank and one scale, got {sorted(kinds)}."
        )
    names, (rank, scale) = _names(model, params), kinds.pop()
    tensors: dict[str, np.ndarray] = {}
    for path, place in found.items():
        for name, a, b in zip(names[path], np.asarray(place.a), np.asarray(place.b), strict=True):
            tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": isinstance(model.config, Gpt2Config),
        "target_modules": sorted({".".join(names[path][0].split(".")[-2:]) for path in found}),
        "base_model_name_or_path": None,
    }
    library("safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    library("safetensors.numpy").save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, settings)


def load_adapters(folder: Path | str, model: LanguageModel, params: PyTree) -> PyTree:
    """Put adapters that `save_adapters` or PEFT wrote beside a model's matrices.

    Args:
        folder: has adapter_config.json and adapter_model.safetensors.
        model, params: of `gpt2` or `llama`; adapters that params have are merged first.

    Returns:
        params with an `Adapted` where every block has an adapter. a and b have the dtype of the
        embedding, float32 at least.

    Raises:
        CheckpointError: where a file is absent or cannot be read, a tensor is missing, unknown or
            of another shape, or adapter_config.json asks for what `lora_linear` does not compute.
        ModuleNotFoundError: where safetensors is not installed.
    """
    folder, params = Path(folder), merge(params)
    scale, tensors = _read(folder)
    dtype = at_least_float32(params["embedding"].dtype)
    left, names = set(tensors), _names(model, params)

    def put(path: tuple, w: jax.Array) -> jax.Array | Adapted:
        parts = [f"{PREFIX}{name}" for name in names[path_name(path)]]
        if f"{parts[0]}.lora_A.weight" not in tensors:
            return w
        stacked = []
        for letter in "AB":
            wanted = [f"{part}.lora_{letter}.weight" for part in parts]
            if missing := [name for name in wanted if name not in tensors]:
                raise CheckpointError(f"{folder / WEIGHTS}: the tensor {missing[0]} is missing.")
            left.difference_update(wanted)
            stacked.append(np.stack([tensors[name].T for name in wanted]))
        a, b = (jnp.asarray(x.astype(dtype)) for x in stacked)
        if (*a.shape[:2], *b.shape) != (*w.shape[:2], w.shape[0], a.shape[2], w.shape[2]):
            raise CheckpointError(
                f"{folder / WEIGHTS}: the adapters of {path_name(path)} must fit a matrix of "
                f"{w.shape[1:]}, got {a.shape[1:]} and {b.shape[1:]}."
            )
        return Adapted(w, a, b, scale)

    found = jax.tree_util.tree_map_with_path(put, params)
    if left:
        raise CheckpointError(
            f"{folder / WEIGHTS}: the tensor {min(left)} belongs to no matrix of "
            f"{type(model.config).__name__}. Give the model that it was made for."
        )
    return found


def _names(model: LanguageModel, params: PyTree) -> dict[str, list[str]]:
    """By the path of a leaf, the modules that hold it, one of each block."""
    shapes = jax.eval_shape(merge, params)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {
        path_name(path): [with_prefix(name).removesuffix(".weight") for name in place.names]
        for (path, _), place in zip(leaves, places(model, shapes), strict=True)
    }


def _read(folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The scale and the tensors, after a look at what is asked for."""
    safetensors = library("safetensors")
    try:
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        rank, alpha = settings["r"], settings["lora_alpha"]
        tensors = library("safetensors.numpy").load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{folder} must have {CONFIG} with r and lora_alpha, and {WEIGHTS}, got: {error!r}."
        ) from None
    for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save"):
        if settings.get(name):
            raise CheckpointError(
                f"{folder / CONFIG}: {name} must be left out, got {settings[name]!r}. The "
                "adapters here are of one rank and one scale, alpha / r."
            )
    return alpha / rank, tensors
