"""What a run measures beside training: the held-out part, gradient norms, the cross-check."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprop.installing import PyTree
from jaxprop.precision import up
from jaxprop.train.experiment import Experiment
from jaxprop.train.language import AnyExperiment, LanguageExperiment


class Measured(NamedTuple):
    """held_out_loss: L there, without penalties. y_hat: the network's outputs there; None for text.

    gradient_norms: by layer, the norm of dJ/dtheta_k on one fixed batch of the training part.
    """

    held_out_loss: jax.Array
    y_hat: Any
    gradient_norms: dict[str, jax.Array]


# So many windows of text, the norms of whose gradient are followed.
PROBED = 4

# (params, the averages of batch statistics where there are such) -> what is measured of them.
Measure = Callable[..., Measured]
# Images are evaluated so many at a time: what a convolution computes of them all may be too large.
IMAGES = 256


class CrossCheck(NamedTuple):
    """How far the hand-written gradient lies from the automatic one on a batch.

    error: the largest over the parameters of max |by hand - automatic| / max |automatic|.
    where: the parameter it was found at.
    """

    error: float
    where: str


def make_language_measure(experiment: LanguageExperiment) -> Measure:
    """The same for text: the loss on fixed windows of the held-out part, a batch at a time."""
    held, probe = experiment.held, experiment.batch(experiment.data, experiment.order(1)[:PROBED])

    @jax.jit
    def measure(params: PyTree, held: PyTree, batch: PyTree) -> Measured:
        losses = lax.map(lambda part: experiment.model.cost(params, *part), held)
        _, dparams = experiment.step_gradient(params, *batch)
        norms = {k: _norm(d) for k, d in dparams.items() if jax.tree.leaves(d)}
        return Measured(jnp.mean(losses), None, norms)

    return lambda params, running=None: measure(params, held, probe)


def language_scores(experiment: LanguageExperiment, measured: Measured) -> dict[str, float]:
    """{"held_out_bits_per_byte"}: how many bits a byte of the held-out text costs on average."""
    bits = float(measured.held_out_loss) / math.log(2)
    return {"held_out_bits_per_byte": bits * experiment.tokens_per_byte}


@lru_cache(maxsize=1)  # so an experiment that is fitted again is not compiled again
def make_measure(experiment: Experiment) -> Measure:
    """Make the jitted function of the parameters that measures them."""
    model, probe = experiment.model, slice(0, experiment.batch_size)

    @jax.jit
    def measure(params: PyTree, running: PyTree, held: PyTree, batch: PyTree) -> Measured:
        x, y = held
        y_hat = _by_parts(lambda part: model.evaluate(params, running, part), x)
        _, dparams = experiment.step_gradient(params, *batch)
        norms = {k: _norm(d) for k, d in dparams.items() if jax.tree.leaves(d)}
        return Measured(model.loss(y_hat, y), up(y_hat), norms)

    held = (experiment.x_held, experiment.y_held)
    batch = (experiment.x[probe], experiment.y[probe], experiment.strength)
    return lambda params, running=None: measure(params, running, held, batch)


def _by_parts(evaluate: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """evaluate(x); of images, some at a time."""
    full, rest = divmod(len(x), IMAGES)
    if x.ndim < 4 or not full:
        return evaluate(x)
    whole = x[: full * IMAGES].reshape(full, IMAGES, *x.shape[1:])
    y = lax.map(evaluate, whole).reshape(full * IMAGES, -1)
    return jnp.concatenate([y, evaluate(x[full * IMAGES :])]) if rest else y


def scores(experiment: Experiment, y_hat: jax.Array) -> dict[str, float]:
    """What a person wants to know of the held-out outputs.

    Returns:
        For classes, {"held_out_accuracy"}, a share of 1. For regression, {"held_out_r2",
        "held_out_rmse"}, the share of the variance explained, and the root of the mean
        squared error in the targets' own unit.
    """
    split = experiment.split
    truth = split.dataset.y[split.held_out]
    guess = predictions(experiment, y_hat)
    if split.dataset.kind != "regression":
        return {"held_out_accuracy": float(np.mean(guess == truth))}
    squared = np.mean((guess - truth) ** 2)
    return {
        "held_out_r2": float(1 - squared / np.var(truth)),
        "held_out_rmse": float(np.sqrt(squared)),
    }


def predictions(experiment: Experiment, y_hat: jax.Array) -> np.ndarray:
    """Labels, or targets in their own unit, one per example."""
    split, outputs = experiment.split, np.asarray(y_hat, np.float64)
    if split.dataset.kind == "classes":
        return outputs.argmax(axis=1)
    if split.dataset.kind == "binary":
        return (outputs[:, 0] > 0).astype(np.int32)
    return outputs[:, 0] * split.y_scale + split.y_mean


def cross_check(experiment: AnyExperiment, params: PyTree, rows: jax.Array) -> CrossCheck:
    """Compare the two gradients on those training examples, both as jit compiles them."""
    args = (params, *experiment.batch(experiment.data, rows))
    _, by_hand = jax.jit(experiment.by_hand)(*args)
    _, by_jax = jax.jit(experiment.by_jax)(*args)
    errors = jax.tree.map(_relative_error, by_hand, by_jax)
    where = {
        jax.tree_util.keystr(path, simple=True, separator="/"): error
        for path, error in jax.tree_util.tree_leaves_with_path(errors)
    }
    worst = max(where, key=lambda name: (np.isnan(where[name]), where[name]))
    return CrossCheck(where[worst], worst)


def _relative_error(got: jax.Array, truth: jax.Array) -> float:
    """max |got - truth| / max |truth|; 0 where both are all zeros."""
    a, b = np.asarray(got, np.float64), np.asarray(truth, np.float64)
    off, scale = np.max(np.abs(a - b)), np.max(np.abs(b))
    return 0.0 if off == 0 else float(off / scale) if scale else math.inf


def _norm(tree: PyTree) -> jax.Array:
    leaves = [jnp.ravel(up(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.linalg.norm(jnp.concatenate(leaves)) if leaves else jnp.zeros(())
