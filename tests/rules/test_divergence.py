"""kl_divergence: which way round it is, what is masked, what it holds, errors, peers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import kl_divergence
from jaxprop.checking.residuals import kept
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCE = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}
INF = float("inf")


def pair(*shape: int) -> list[jax.Array]:
    return [2 * jnp.asarray(np.random.default_rng(seed).normal(size=shape)) for seed in (0, 1)]


def each(logits: Any, target_logits: Any) -> tuple:
    """The losses and both cotangents, for a g of ones."""
    args = jnp.asarray(logits), jnp.asarray(target_logits)
    losses, saved = kl_divergence.forward(*args, reduction="none")
    return losses, *kl_divergence.backward(saved, jnp.ones_like(losses))


def test_it_is_the_divergence_of_the_target_from_the_prediction() -> None:
    """KL(p || q) = sum(p * log(p / q)), p the second argument's."""
    q, p = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.2, 0.7])
    losses, *_ = each(jnp.log(q)[None], jnp.log(p)[None])
    assert_near(losses, np.array([np.sum(p * np.log(p / q))]))


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_is_that_of_optax(reduction: str) -> None:
    def peer(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
        log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(target_logits)
        losses = optax.losses.kl_divergence_with_log_targets(log_q, log_p)
        return REDUCE[reduction](losses)

    assert_agrees_with_jax(kl_divergence, peer, pair(4, 5), reduced=20, reduction=reduction)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_is_that_of_torch() -> None:
    def peer(torch: Any, logits: Any, target_logits: Any) -> Any:
        log_q, log_p = torch.log_softmax(logits, -1), torch.log_softmax(target_logits, -1)
        options = {"log_target": True, "reduction": "batchmean"}
        return torch.nn.functional.kl_div(log_q, log_p, **options)

    assert_agrees_with_torch(kl_divergence, peer, pair(4, 5), reduced=20)


def test_logarithms_of_probabilities_are_logits() -> None:
    logits, target = pair(4, 5)
    normalised = each(jax.nn.log_softmax(logits), jax.nn.log_softmax(target))
    assert_near(normalised, each(logits, target), reduced=5)


def test_the_same_distribution_has_no_divergence_and_no_gradient() -> None:
    x, _ = pair(4, 5)
    for zeros in each(x, x):
        np.testing.assert_array_equal(zeros, jnp.zeros_like(zeros))


def test_a_class_that_the_target_never_takes_adds_nothing() -> None:
    """Whatever the prediction says of it: a number, or that it is impossible."""
    x = jnp.array([[1.0, 5.0, 2.0], [1.0, -INF, 2.0]])
    target = jnp.array([[0.5, -INF, 1.0], [0.5, -INF, 1.0]])
    losses, dx, dtarget = each(x, target)
    q, p = jax.nn.softmax(x), jax.nn.softmax(target)
    expected = jnp.sum((p * jnp.log(p / q))[:, ::2], axis=-1)
    assert_near(losses, expected, reduced=3)
    assert_near(dx, q - p, reduced=3)
    np.testing.assert_array_equal(dtarget[:, 1], [0.0, 0.0])
    assert np.all(np.isfinite(dtarget))


def test_a_prediction_that_excludes_what_happens_is_infinitely_far() -> None:
    losses, dx, _ = each([[0.0, -INF]], [[0.0, 0.0]])
    assert float(losses[0]) == INF
    np.testing.assert_array_equal(dx, [[0.5, -0.5]])


@pytest.mark.parametrize("reduction", REDUCE)
def test_it_saves_six_numbers_per_example(reduction: str) -> None:
    rule, args = kl_divergence.bind(reduction=reduction), tuple(pair(6, 50))
    assert kept(rule, args).bytes == 6 * 4 * 6
    assert kept(rule.reference, args).bytes > 4 * 4 * 6


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def plain(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
        log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(target_logits)
        return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))

    def draw(seed: int) -> tuple:
        x, target = 2 * jnp.asarray(np.random.default_rng(seed).normal(size=(2, 16, 50)))
        return x.astype(jnp.bfloat16), target.astype(jnp.bfloat16)

    assert_no_worse(kl_divergence, plain, draw)


def test_what_does_not_fit_is_refused() -> None:
    x, target = pair(2, 3)
    message = not_floating("kl_divergence", "target_logits", "int32")
    assert_refuses(kl_divergence, (x, target.astype(jnp.int32)), TypeError, message)
    for shape, other in [((2, 3), (3,)), ((2, 0), (2, 0)), ((), ())]:
        message = (
            "kl_divergence: logits and target_logits must both be (..., C) with C of at least 1, "
            f"got {shape} and {other}. Nothing is broadcast: repeat the target."
        )
        assert_refuses(kl_divergence, (jnp.ones(shape), jnp.ones(other)), ValueError, message)
    message = "kl_divergence: reduction must be one of ('mean', 'sum', 'none'), got 'batchmean'."
    assert_refuses(kl_divergence, (x, target), ValueError, message, reduction="batchmean")
