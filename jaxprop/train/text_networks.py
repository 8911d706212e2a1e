"""The networks of runs on text, and the parameters that they start with."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.installing import PyTree
from jaxprop.models.adapters import adapt
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.language import LanguageModel
from jaxprop.models.llama import LlamaConfig, llama
from jaxprop.models.recurrent import RecurrentConfig, recurrent
from jaxprop.precision import at_least_float32
from jaxprop.train.config import Language, LanguageConfig
from jaxprop.train.errors import TrainingError
from jaxprop.train.tokens import BYTES


def network_config(language: Language) -> Any:
    """The configuration of the network over bytes that the settings ask for.

    Raises TrainingError where its sizes do not fit.
    """
    try:
        return _config(language)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def _config(language: Language) -> Any:
    shape: dict[str, Any] = {
        "vocabulary": BYTES.vocabulary,
        "width": language.width,
        "depth": language.depth,
    }
    if language.family == "lstm" or language.family == "gru":
        return RecurrentConfig(**shape, cell=language.family)
    shape["heads"] = language.heads
    if language.family == "gpt2":
        return Gpt2Config(**shape, context=language.context or language.length)
    # As much as GPT-2's four widths in two matrices: SwiGLU has three.
    hidden = max(1, 8 * language.width // 3)
    return LlamaConfig(**shape, hidden=hidden, key_heads=language.key_heads or None)


def make_model(network: Any, config: LanguageConfig) -> LanguageModel:
    """The network of that configuration, as the run computes it.

    Raises ValueError where its sizes do not fit.
    """
    network = replace(
        network,
        save=config.language.save or None,
        dtype=config.optimisation.dtype,
        frozen=config.tuning.freeze_blocks,
    )
    makers: dict[type, Any] = {Gpt2Config: gpt2, LlamaConfig: llama, RecurrentConfig: recurrent}
    return makers[type(network)](network)


def initial_params(
    config: LanguageConfig, model: LanguageModel, start: PyTree | None = None
) -> PyTree:
    """Copies of those it starts with, or those that the seed gives; with new adapters if asked for.

    Raises ValueError where the settings of adapters do not fit.
    """
    key = jax.random.fold_in(jax.random.key(config.optimisation.seed), 0)
    dtype, tuning = at_least_float32(config.optimisation.dtype), config.tuning
    if start is None:
        params = model.init(key, dtype)
    else:
        params = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), start)
    if not tuning.adapter_rank:
        return params
    if isinstance(model.config, RecurrentConfig):
        raise ValueError(f"adapters are for gpt2 and llama, got {model.config.cell}.")
    of_adapters = jax.random.fold_in(key, 1)
    return adapt(params, tuning.adapt, tuning.adapter_rank, tuning.adapter_alpha, of_adapters)
