"""An experiment on text: bytes on the device, a language model, its gradient, its optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.installing import PyTree
from jaxprop.models.gpt2 import Gpt2Config, gpt2
from jaxprop.models.inputs import Inputs
from jaxprop.models.language import LanguageModel, matrices
from jaxprop.models.llama import LlamaConfig, llama
from jaxprop.models.recurrent import RecurrentConfig, recurrent
from jaxprop.precision import at_least_float32
from jaxprop.train.config import Language, LanguageConfig
from jaxprop.train.corpus import Corpus
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment
from jaxprop.train.optimisers import make_optimiser, make_schedule

VOCABULARY = 256
# The held-out loss is taken on so many bytes at most, evenly spread over that part.
HELD_OUT_BYTES = 65536

ValueAndGrad = Callable[..., tuple[jax.Array, PyTree]]


@dataclass(frozen=True, eq=False)
class LanguageExperiment:
    """Everything a training run on text needs, with the names that `Experiment` has for it.

    by_hand:  (params, inputs, labels, key) -> (J, dparams), without automatic differentiation.
    by_jax:   the same by jax.grad of the reference.
    tokens:   the training part, on the device, uint8.
    held:     (inputs, labels) of fixed windows of the held-out part, (batches, B, length).
    """

    config: LanguageConfig
    corpus: Corpus
    model: LanguageModel
    by_hand: ValueAndGrad
    by_jax: ValueAndGrad
    schedule: optax.Schedule
    optimiser: optax.GradientTransformation
    tokens: jax.Array
    held: tuple[Inputs, jax.Array]

    @property
    def step_gradient(self) -> ValueAndGrad:
        """The one that training uses."""
        return self.by_jax if self.config.optimisation.automatic else self.by_hand

    @property
    def batch_size(self) -> int:
        return self.config.optimisation.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.config.language.steps

    @property
    def examples(self) -> int:
        """How many an epoch has."""
        return self.steps_per_epoch * self.batch_size

    @property
    def data(self) -> jax.Array:
        """The array that a step's batch is taken from."""
        return self.tokens

    def order(self, epoch: int) -> jax.Array:
        """Where the sequences of an epoch (from 1 on) begin; it depends on that alone."""
        key = jax.random.fold_in(jax.random.key(self.config.optimisation.seed), epoch)
        last = len(self.tokens) - self.config.language.length
        return jax.random.randint(key, (self.examples,), 0, last)

    def batch(self, data: jax.Array, rows: jax.Array) -> tuple[Inputs, jax.Array, Any]:
        """What J takes after params, for the sequences that begin there.

        The key of dropout follows from where they begin.
        """
        places = rows[:, None] + jnp.arange(self.config.language.length + 1)
        tokens = data[places].astype(jnp.int32)
        rate = self.config.language.dropout
        if not rate:
            return Inputs(tokens[:, :-1]), tokens[:, 1:], None
        key = jax.random.fold_in(jax.random.key(self.config.optimisation.seed), jnp.sum(rows))
        inputs = Inputs(tokens[:, :-1], dropout=jnp.float32(rate))
        return inputs, tokens[:, 1:], key

    def init(self) -> PyTree:
        """The parameters that the seed gives."""
        key = jax.random.fold_in(jax.random.key(self.config.optimisation.seed), 0)
        return self.model.init(key, at_least_float32(self.config.optimisation.dtype))

    def running(self, params: PyTree) -> PyTree:
        """The averages of batch statistics: none."""
        return {}


AnyExperiment = Experiment | LanguageExperiment


def prepare_language(config: LanguageConfig, corpus: Corpus) -> LanguageExperiment:
    """Make an experiment on text.

    Run it, and what uses its result, under `jax.enable_x64(True)` for float64.

    Raises:
        TrainingError: where a name in the settings is unknown, sizes do not fit, or the text is
            too short.
    """
    language, optimisation = config.language, config.optimisation
    try:
        model = make_model(language, optimisation.dtype)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    schedule = make_schedule(optimisation, language.steps * optimisation.epochs)
    optimiser = make_optimiser(optimisation, schedule, decayed=matrices)
    if language.clip:
        optimiser = optax.chain(optax.clip_by_global_norm(language.clip), optimiser)
    for part, data in (("training", corpus.train), ("held-out", corpus.held_out)):
        if len(data) <= language.length + 1:
            raise TrainingError(
                f"the {part} part of the text must be longer than a sequence, {language.length} "
                f"bytes, got {len(data)} of {corpus.name}. Give more text, or a smaller --length."
            )
    return LanguageExperiment(
        config=config,
        corpus=corpus,
        model=model,
        by_hand=jaxprop.value_and_grad(model.cost),
        by_jax=jax.value_and_grad(model.cost.reference),
        schedule=schedule,
        optimiser=optimiser,
        tokens=jnp.asarray(corpus.train),
        held=_held(corpus.held_out, language.length, optimisation.batch_size),
    )


def make_model(language: Language, dtype: str) -> LanguageModel:
    """The network that the settings ask for.

    Raises ValueError where its sizes do not fit.
    """
    shape: dict[str, Any] = {
        "vocabulary": VOCABULARY,
        "width": language.width,
        "depth": language.depth,
        "save": language.save or None,
        "dtype": dtype,
    }
    if language.family == "lstm" or language.family == "gru":
        return recurrent(RecurrentConfig(**shape, cell=language.family))
    shape["heads"] = language.heads
    if language.family == "gpt2":
        return gpt2(Gpt2Config(**shape, context=language.length))
    # As much as GPT-2's four widths in two matrices: SwiGLU has three.
    hidden = max(1, 8 * language.width // 3)
    return llama(LlamaConfig(**shape, hidden=hidden, key_heads=language.key_heads or None))


def _held(text: np.ndarray, length: int, batch: int) -> tuple[Inputs, jax.Array]:
    """Windows spread evenly over the text, a batch at a time, the same for every run."""
    count = min(max(1, HELD_OUT_BYTES // length), max(1, (len(text) - 1) // length))
    batch = min(batch, count)
    starts = np.linspace(0, len(text) - length - 1, count - count % batch).astype(np.int64)
    windows = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    parts = jnp.asarray(windows.reshape(-1, batch, length + 1))
    return Inputs(parts[..., :-1]), parts[..., 1:]
