"""A rule in bfloat16 against automatic differentiation of plain code, both held to float64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop import Rule
from tests.rules.oracle import cotangent, double, is_floating

DRAWS = 20
ULP = float(jnp.finfo(jnp.bfloat16).eps)


def assert_no_worse(rule: Rule, plain: Callable, draw: Callable[[int], tuple]) -> None:
    """Over 20 draws, no error is an ulp above the largest of plain code, nor the RMS above its RMS.

    The errors are those of the value and of each cotangent, relative to the largest magnitude of
    the truth; the RMS may be larger by an ulp of itself. All is jitted, as in training.

    rule: without options that have no default.
    plain: the same function in plain JAX.
    draw: from a seed to the arguments, all of them floating.
    """
    draws = [draw(seed) for seed in range(DRAWS)]
    assert all(is_floating(arg) for args in draws for arg in args)
    args = tuple(map(jnp.stack, zip(*draws, strict=True)))
    y = jax.eval_shape(rule, *draws[0])
    g = jnp.stack([cotangent(y, seed) for seed in range(DRAWS)])
    ours, theirs = _by_hand(rule, args, g), _by_jax(plain, args, g)
    with jax.enable_x64(True):
        truth = _by_jax(rule.reference, double(args), double(g))
    for name, a, b, t in zip(("y", *rule.argument_names), ours, theirs, truth, strict=False):
        by_rule, by_plain = _errors(a, t), _errors(b, t)
        assert np.max(by_rule) <= np.max(by_plain) + ULP, name
        assert _rms(by_rule) <= _rms(by_plain) * (1 + ULP), name


def _by_hand(rule: Rule, args: tuple, g: jax.Array) -> list[jax.Array]:
    """The value and the cotangents of every draw, by forward and backward."""

    def run(args: tuple, g: jax.Array) -> list[jax.Array]:
        y, saved = rule.forward(*args)
        return [y, *rule.backward(saved, g)]

    return jax.jit(jax.vmap(run))(args, g)


def _by_jax(function: Callable, args: tuple, g: jax.Array) -> list[jax.Array]:
    """The same by automatic differentiation of a function."""

    def run(args: tuple, g: jax.Array) -> list[jax.Array]:
        y, pullback = jax.vjp(function, *args)
        return [y, *pullback(g.astype(y.dtype))]

    return jax.jit(jax.vmap(run))(args, g)


def _errors(values: jax.Array, truths: jax.Array) -> np.ndarray:
    """Of every draw, relative to the largest magnitude of its truth."""
    values, truths = np.asarray(values, np.float64), np.asarray(truths)
    draws = zip(values, truths, strict=True)
    relative = [np.abs(a - t) / max(1e-30, float(np.max(np.abs(t)))) for a, t in draws]
    return np.stack(relative)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
