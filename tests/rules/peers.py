"""A rule against independent implementations of the same function: JAX's own, optax, PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule
from jaxprop.checking.compiling import quickly
from tests.subjects import is_inexact, pattern
from tests.tolerances import assert_near


def assert_agrees_with_jax(
    rule: Rule, peer: Callable, args: Sequence[jax.Array], reduced: int = 1, **options: Any
) -> None:
    """Value, and cotangents in the floating arguments, of a function in plain JAX."""
    positions = _floating(args)

    def of_floating(*floating: jax.Array) -> jax.Array:
        given = dict(zip(positions, floating, strict=True))
        return peer(*(given.get(i, arg) for i, arg in enumerate(args)))

    @quickly
    def of_peer(*floating: jax.Array) -> tuple:
        y, pullback = jax.vjp(of_floating, *floating)
        return y, list(pullback(pattern(y)))

    truth = of_peer(*(args[i] for i in positions))
    assert_near(_by_hand(rule, args, options), truth, reduced=reduced)


def assert_agrees_with_torch(
    rule: Rule, peer: Callable, args: Sequence[jax.Array], reduced: int = 1, **options: Any
) -> None:
    """Value, and cotangents in the floating arguments, of `peer(torch, *tensors)` on the CPU.

    A caller has the marker `peers`; without PyTorch the test is skipped.
    """
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(np.asarray(arg), requires_grad=is_inexact(arg)) for arg in args]
    y = peer(torch, *tensors)
    g = torch.tensor(np.asarray(pattern(jnp.asarray(y.detach().numpy()))))
    grads = torch.autograd.grad(y, [tensors[i] for i in _floating(args)], g)
    truth = y.detach().numpy(), [grad.numpy() for grad in grads]
    assert_near(_by_hand(rule, args, options), truth, reduced=reduced)


def _floating(args: Sequence[jax.Array]) -> list[int]:
    """The positions of the arguments that have a gradient."""
    return [i for i, arg in enumerate(args) if is_inexact(arg)]


def _by_hand(rule: Rule, args: Sequence[jax.Array], options: dict) -> tuple:
    """The rule's value and its cotangents in the floating arguments."""

    @quickly
    def run(*args: jax.Array) -> tuple:
        y, saved = rule.forward(*args, **options)
        cotangents = rule.backward(saved, pattern(y))
        return y, [cotangents[i] for i in _floating(args)]

    return run(*args)
