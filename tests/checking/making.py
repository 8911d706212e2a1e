"""What the mutants and the right rules are made with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop import samples


@dataclass(frozen=True)
class Mutant:
    """A function that is wrong on purpose, and who must say so.

    checks:    names of the checks of which one must fail.
    argument:  what its finding must name: an argument, or an output.
    verdict:   "FAIL", or "WARN" where `why` says why no more can be asked.
    """

    name: str
    f: Callable[..., Any]
    args: Callable[[], tuple]
    checks: Sequence[str]
    argument: str
    options: dict[str, Any] = field(default_factory=dict)
    verdict: str = "FAIL"
    why: str = ""


@dataclass(frozen=True)
class Right:
    """A function whose gradient is right, and which must not fail."""

    name: str
    f: Callable[..., Any]
    args: Callable[[], tuple]
    options: dict[str, Any] = field(default_factory=dict)


def vjp(primal: Callable, backward: Callable, forward: Callable | None = None) -> Callable:
    """A `custom_vjp` of primal; its residuals are the arguments, unless forward says otherwise."""
    f = jax.custom_vjp(primal)
    f.defvjp(forward or (lambda *args: (primal(*args), args)), backward)
    return f


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(scale * samples.normal(seed, *shape), dtype)


def positive(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.abs(normal(*shape, seed=seed)) + 0.5


def rows(*shape: int) -> Callable[[], tuple]:
    """One normal argument of this shape."""
    return lambda: (normal(*shape),)


def each(*shapes: tuple[int, ...]) -> Callable[[], tuple]:
    """Normal arguments of these shapes, all different."""
    return lambda: tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))
