"""Where a run on text starts: from nothing, from another run, or from others' weights."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprop.installing import PyTree
from jaxprop.models.adapters import merge
from jaxprop.models.gpt2 import Gpt2Config
from jaxprop.models.huggingface import CheckpointError, load, network, tokenizer
from jaxprop.models.llama import LlamaConfig
from jaxprop.train.config import LanguageConfig
from jaxprop.train.errors import TrainingError
from jaxprop.train.run_folder import SETTINGS, RunFolder, saved_config
from jaxprop.train.text_networks import initial_params, make_model, network_config
from jaxprop.train.tokens import BYTES, Tokens, of_tokenizer

# Of a network that others made, a run keeps what says its shape and its tokens.
NETWORK, KEPT = "network", ("config.json", "tokenizer.json")


class Start(NamedTuple):
    """What a run starts from.

    network: the configuration of the model, of which a run chooses `save`, `dtype` and `frozen`.
    tokens:  how it reads text.
    params:  its parameters, on the host; None for random ones.
    """

    network: Any
    tokens: Tokens
    params: PyTree | None


def start_of(config: LanguageConfig) -> Start:
    """What a new run with these settings starts from.

    Raises TrainingError where --start is neither a run nor a folder of weights, or cannot be read.
    """
    if not config.tuning.start:
        return Start(network_config(config.language), BYTES, None)
    path = Path(config.tuning.start)
    try:
        if _is_run(path):
            return _of_run(path)
        return _of_folder(path)._replace(params=_on_host(load(path)[1]))
    except CheckpointError as error:
        raise TrainingError(f"--start {path}: {error}") from None


def start_kept(folder: Path, config: LanguageConfig) -> Start:
    """The same of a run that is there already, whose parameters are in its checkpoints."""
    if (folder / NETWORK).is_dir():
        return _of_folder(folder / NETWORK)
    return Start(network_config(config.language), BYTES, None)


def keep(start: str, folder: Path) -> None:
    """Copy what says the shape of others' network into the folder of a run that starts from it."""
    path = Path(start)
    source = path / NETWORK if _is_run(path) else path
    if not start or not source.is_dir():
        return
    (folder / NETWORK).mkdir()
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / NETWORK / name)


def shape_of(start: str) -> dict[str, Any]:
    """The fields of `Language` that follow from where a run starts."""
    path = Path(start)
    if _is_run(path):
        saved = saved_config(path, LanguageConfig)
        found = start_kept(path, saved).network
    else:
        try:
            found = network(path).config
        except CheckpointError as error:
            raise TrainingError(f"--start {path}: {error}") from None
    shape = {"width": found.width, "depth": found.depth}
    if isinstance(found, Gpt2Config):
        return shape | {"family": "gpt2", "heads": found.heads, "context": found.context}
    if isinstance(found, LlamaConfig):
        key_heads = found.key_heads or 0
        return shape | {"family": "llama", "heads": found.heads, "key_heads": key_heads}
    return shape | {"family": found.cell}


def run_params(folder: Path, config: LanguageConfig, start: Start) -> PyTree:
    """The parameters in the newest checkpoint of a run, adapters among them.

    Raises TrainingError where there is none.
    """
    from jaxprop.train.checkpoint import Checkpoints

    model = make_model(start.network, config)
    with Checkpoints(RunFolder(folder).checkpoints) as checkpoints:
        if checkpoints.newest is None:
            raise TrainingError(f"{folder} must have a checkpoint, got none. Train first.")
        return checkpoints.params(jax.eval_shape(lambda: initial_params(config, model)))


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() and (path / SETTINGS).is_file()


def _of_run(path: Path) -> Start:
    """A run, the adapters of which are merged."""
    saved = saved_config(path, LanguageConfig)
    start = start_kept(path, saved)
    with jax.enable_x64(saved.optimisation.dtype == "float64"):
        params = _on_host(merge(run_params(path, saved, start)))
    return start._replace(params=params)


def _of_folder(path: Path) -> Start:
    """The network of a folder with config.json, its tokens those of tokenizer.json if there is one.

    Where there is none, they are bytes, if the network has as many tokens.
    """
    found = network(path).config
    if not (path / "tokenizer.json").is_file() and found.vocabulary == BYTES.vocabulary:
        return Start(found, BYTES, None)
    tokens = of_tokenizer(tokenizer(path))
    if tokens.vocabulary > found.vocabulary:
        raise TrainingError(
            f"--start {path}: tokenizer.json must have no more tokens than config.json, "
            f"{found.vocabulary}, got {tokens.vocabulary}. Give the one that belongs to "
            "the weights."
        )
    return Start(found, tokens, None)


def _on_host(params: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, params)
