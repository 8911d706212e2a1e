"""Checkpoints of the GPT-2 and Llama families as Hugging Face has them, read and written.

A folder with config.json and safetensors files, in one or in shards, as `save_pretrained` makes it;
PyTorch is not needed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.installing import PyTree
from jaxprop.models.huggingface.adapters import load_adapters, save_adapters
from jaxprop.models.huggingface.errors import CheckpointError, library
from jaxprop.models.huggingface.files import Tensors, open_tensors, write_json, write_tensors
from jaxprop.models.huggingface.names import Place, expected_tensors, is_ignored, places
from jaxprop.models.huggingface.settings import model_of, settings_of
from jaxprop.models.language import LanguageModel

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "CheckpointError",
    "load",
    "load_adapters",
    "network",
    "save",
    "save_adapters",
    "tokenizer",
]

CONFIG = "config.json"


def load(
    folder: Path | str, dtype: jax.typing.DTypeLike | None = None
) -> tuple[LanguageModel, PyTree]:
    """Read a checkpoint: the model that its config.json describes, and its parameters.

    Args:
        folder: has config.json, and model.safetensors or model.safetensors.index.json with the
            shards that it names.
        dtype: what all parameters become, floating; None for that of the embedding in the file.
            Float64 is float32 unless jax_enable_x64 is set, as in all of JAX.

    Returns:
        (model, params). Matrices are (in, out), whichever way round the file has them, and the
        blocks' parameters are stacked. A last layer that is in the file although it is tied must
        be equal to the embedding.

    Raises:
        CheckpointError, a ValueError: where a file is absent, cut off or no safetensors; where a
            tensor is missing, unknown, of another shape or not floating, by its name; where
            config.json asks for what the networks here do not compute, by the setting's name;
            where dtype is not floating.
        ModuleNotFoundError: where safetensors is not installed.
    """
    folder = Path(folder)
    _check_dtype(dtype)
    model = network(folder)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with open_tensors(folder) as tensors:
        _check_names(tensors, model, shapes)
        chosen = jax.dtypes.canonicalize_dtype(
            tensors.dtype(_embedding(model, shapes)) if dtype is None else dtype
        )
        leaves = [
            _leaf(tensors, place, leaf.shape, chosen)
            for place, leaf in zip(places(model, shapes), jax.tree.leaves(shapes), strict=True)
        ]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        _check_tied_head(tensors, model, params)
    return model, params


def network(folder: Path | str) -> LanguageModel:
    """The model that the config.json in a folder describes, without its parameters.

    Raises CheckpointError as `load` does.
    """
    return model_of(_config(Path(folder)))


def save(
    folder: Path | str, model: LanguageModel, params: PyTree, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write a checkpoint that `load` and Hugging Face's `from_pretrained` read.

    What a network here does not have, such as the numbers of special tokens or the longest
    context, is not in config.json: `from_pretrained` takes its own defaults.

    Args:
        folder: new or empty: nothing that is there is overwritten.
        model: of `gpt2` or `llama`; a Llama with a window is written as Mistral, with biases of
            queries, keys and values as Qwen 2.
        params: the model's, of any floating dtype.
        max_shard_bytes: where the tensors are more, they are written in several files.

    Raises:
        CheckpointError: where the folder has something in it, params are not the model's or not
            floating, or the model's rotary scaling has no spelling in config.json.
        ModuleNotFoundError: where safetensors is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"save needs a new or an empty folder, got {folder}. Give another.")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    _check_params(params, shapes)
    settings = settings_of(model) | {"dtype": params["embedding"].dtype.name}
    tensors: dict[str, np.ndarray] = {}
    for place, leaf in zip(places(model, shapes), jax.tree.leaves(params), strict=True):
        array = np.asarray(leaf)
        for name, part in zip(place.names, array if place.stacked else [array], strict=True):
            tensors[name] = part.T if place.transposed else part
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, max_shard_bytes)
    write_json(folder / CONFIG, settings)  # the last: what is cut off before cannot be loaded


def tokenizer(folder: Path | str) -> "tokenizers.Tokenizer":
    """The tokenizer beside the weights, from tokenizer.json, of the library `tokenizers`.

    Raises CheckpointError where there is none or it cannot be read, ModuleNotFoundError where the
    library is not installed.
    """
    Tokenizer = library("tokenizers").Tokenizer
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} must be there, to turn text into tokens. Copy it there.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{path} is no tokenizer: {error}. Fetch it again.") from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} must be a folder with {CONFIG} and safetensors files, got no {path}. Give "
            "what save_pretrained made."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} must be JSON, got: {error}.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must be a JSON object, got {type(found).__name__}.")
    return found


def _check_names(tensors: Tensors, model: LanguageModel, shapes: PyTree) -> None:
    """Every tensor is there and of its shape, and there is no other."""
    expected = expected_tensors(model, shapes)
    for name, shape in expected.items():
        tensors.check(name, shape)
    head = "lm_head.weight" if "head" not in shapes else ""
    for name in tensors.names:
        if name not in expected and name != head and not is_ignored(name):
            raise CheckpointError(
                f"{tensors.where(name)}: the tensor {tensors.full(name)} is unknown to "
                f"{type(model.config).__name__}. The network here has no such parameter: check "
                f"{CONFIG}, or leave the tensor out."
            )


def _embedding(model: LanguageModel, shapes: PyTree) -> str:
    """The name of the tensor that embeds the tokens."""
    named = zip(jax.tree_util.tree_leaves_with_path(shapes), places(model, shapes), strict=True)
    return next(place.names[0] for (path, _), place in named if path[0].key == "embedding")


def _leaf(tensors: Tensors, place: Place, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """One leaf of params; of stacked ones tensor by tensor, so that one copy is held."""
    if not place.stacked:
        array = tensors.read(place.names[0])
        return jnp.asarray((array.T if place.transposed else array).astype(dtype))
    whole = np.empty(shape, dtype)
    for k, name in enumerate(place.names):
        array = tensors.read(name)
        whole[k] = array.T if place.transposed else array
    return jnp.asarray(whole)


def _check_tied_head(tensors: Tensors, model: LanguageModel, params: PyTree) -> None:
    if "head" in params or "lm_head.weight" not in tensors.names:
        return
    head = tensors.read("lm_head.weight").astype(params["embedding"].dtype)
    if not np.array_equal(head, params["embedding"]):
        raise CheckpointError(
            f"{tensors.where('lm_head.weight')}: the tensor lm_head.weight must equal the "
            f"embedding, as {CONFIG} says that they are tied, got another. Set "
            "tie_word_embeddings to false."
        )


def _check_dtype(dtype: jax.typing.DTypeLike | None) -> None:
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise CheckpointError(
            f"dtype must be floating, got {jnp.dtype(dtype).name}. Give float32 or bfloat16, or "
            "None for what the file has."
        )


def _check_params(params: PyTree, shapes: PyTree) -> None:
    wanted, got = str(jax.tree.structure(shapes)), str(jax.tree.structure(params))
    if got != wanted:
        raise CheckpointError(
            f"params must have the structure that the model's init gives, {wanted}, got {got}. "
            "Merge adapters first."
        )
    for (path, leaf), like in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shapes), strict=True
    ):
        if leaf.shape != like.shape:
            name = jax.tree_util.keystr(path)
            raise CheckpointError(f"params{name} must be {like.shape}, got {leaf.shape}.")
        _check_dtype(leaf.dtype)
