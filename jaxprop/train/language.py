"""An experiment on text: bytes on the device, a language model, its gradient, its optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.installing import PyTree
from jaxprop.models.inputs import Inputs
from jaxprop.models.language import LanguageModel, matrices
from jaxprop.rules.penalties import Filter
from jaxprop.train.config import LanguageConfig
from jaxprop.train.corpus import Corpus
from jaxprop.train.errors import TrainingError
from jaxprop.train.experiment import Experiment
from jaxprop.train.optimisers import make_optimiser, make_schedule
from jaxprop.train.starting import Start
from jaxprop.train.text_networks import initial_params, make_model, network_config
from jaxprop.train.tokens import BYTES, Tokens
from jaxprop.train.trained import frozen_patterns, of_trained, trained_part

# The held-out loss is taken on so many tokens at most, evenly spread over that part.
HELD_OUT_TOKENS = 65536

ValueAndGrad = Callable[..., tuple[jax.Array, PyTree]]


@dataclass(frozen=True, eq=False)
class LanguageExperiment:
    """Everything a training run on text needs, with the names that `Experiment` has for it.

    by_hand:  (params, inputs, labels, key) -> (J, dparams), without automatic differentiation.
    by_jax:   the same by jax.grad of the reference.
    text:     how text becomes tokens and back.
    start:    the parameters to start with, on the host, without new adapters; None for random ones.
    frozen:   which parameters are not trained, as a filter; None where there are none.
    tokens:   the training part, on the device, integers.
    held:     (inputs, labels) of fixed windows of the held-out part, (batches, B, length).
    tokens_per_byte: of the held-out part.
    """

    config: LanguageConfig
    corpus: Corpus
    model: LanguageModel
    by_hand: ValueAndGrad
    by_jax: ValueAndGrad
    schedule: optax.Schedule
    optimiser: optax.GradientTransformation
    text: Tokens
    start: PyTree | None
    frozen: Filter
    tokens: jax.Array
    held: tuple[Inputs, jax.Array]
    tokens_per_byte: float

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
        """The parameters before the first step."""
        return initial_params(self.config, self.model, self.start)

    @property
    def shapes(self) -> PyTree:
        """Of the parameters."""
        return jax.eval_shape(lambda: initial_params(self.config, self.model))

    @property
    def trained_shapes(self) -> PyTree:
        """Of those that are trained."""
        return jax.eval_shape(self.trained, self.shapes)

    def trained(self, params: PyTree) -> PyTree:
        """What is trained of a tree like params."""
        return trained_part(params, self.frozen, self.config.tuning.freeze_blocks)

    def running(self, params: PyTree) -> PyTree:
        """The averages of batch statistics: none."""
        return {}


AnyExperiment = Experiment | LanguageExperiment


def prepare_language(
    config: LanguageConfig, corpus: Corpus, start: Start | None = None
) -> LanguageExperiment:
    """Make an experiment on text.

    Run it, and what uses its result, under `jax.enable_x64(True)` for float64.

    Args:
        config: the settings.
        corpus: the text.
        start: what it starts from; None for a network of the settings' shape over bytes.

    Raises:
        TrainingError: where a name in the settings is unknown, sizes do not fit, a pattern matches
            no parameter, or the text is too short.
    """
    language, optimisation, tuning = config.language, config.optimisation, config.tuning
    try:
        network, text, params = start or Start(network_config(language), BYTES, None)
        model = make_model(network, config)
        shapes = jax.eval_shape(lambda: initial_params(config, model))
        patterns = frozen_patterns(tuning, shapes)
        part = partial(trained_part, patterns=patterns, blocks=tuning.freeze_blocks)
        if not jax.tree.leaves(jax.eval_shape(part, shapes)):
            raise ValueError("some parameter must be trained, got all of them frozen.")
    except ValueError as error:
        raise TrainingError(str(error)) from None
    schedule = make_schedule(optimisation, language.steps * optimisation.epochs)
    optimiser = make_optimiser(optimisation, schedule, decayed=matrices)
    if language.clip:
        optimiser = optax.chain(optax.clip_by_global_norm(language.clip), optimiser)
    train, held_out = text.read(corpus.train), text.read(corpus.held_out)
    for name, data in (("training", train), ("held-out", held_out)):
        if len(data) <= language.length + 1:
            raise TrainingError(
                f"the {name} part of the text must be longer than a sequence, {language.length} "
                f"{text.unit}s, got {len(data)} of {corpus.name}. Give more text, or a smaller "
                "--length."
            )
    J = model.cost if patterns is None else jaxprop.freeze(model.cost, patterns)
    return LanguageExperiment(
        config=config,
        corpus=corpus,
        model=model,
        by_hand=jaxprop.value_and_grad(J),
        by_jax=jax.value_and_grad(J.reference),
        schedule=schedule,
        optimiser=of_trained(optimiser, part),
        text=text,
        start=params,
        frozen=patterns,
        tokens=jnp.asarray(train),
        held=_held(held_out, language.length, optimisation.batch_size),
        tokens_per_byte=len(held_out) / len(corpus.held_out),
    )


def _held(text: np.ndarray, length: int, batch: int) -> tuple[Inputs, jax.Array]:
    """Windows spread evenly over the text, a batch at a time, the same for every run."""
    count = min(max(1, HELD_OUT_TOKENS // length), max(1, (len(text) - 1) // length))
    batch = min(batch, count)
    starts = np.linspace(0, len(text) - length - 1, count - count % batch).astype(np.int64)
    windows = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    parts = jnp.asarray(windows.reshape(-1, batch, length + 1))
    return Inputs(parts[..., :-1]), parts[..., 1:]
