"""What a check is run with, and how one result is judged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking import comparison, finite_differences
from jaxprop.checking.probing import Cotangent, normal, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, labels

# Float64 algebra agrees to this, relative to the leaf's largest value.
EXACT = 1e-10
# What finite differences in float64 can tell, and what rounding to float32 inside allows.
BY_DIFFERENCES = 1e-6
ROUNDED_INSIDE = 1e-5
NOISE = 64 * 2.0**-52


@dataclass(frozen=True)
class Plan:
    """The options of one `check`, and what was found of the function before the checks run.

    truth: the reference or, for a surrogate, the function whose gradient is the stated one;
        None where there is neither, and finite differences are the truth.
    rounds: whether the function rounds to less than float64 inside.
    """

    seed: int
    order: int
    dtypes: tuple[Any, ...]
    edges: tuple[Subject, ...]
    shapes: tuple[Subject, ...]
    intended_zero: frozenset[str]
    surrogate: bool
    budget: float | None
    truth: Callable[..., PyTree] | None
    rounds: bool
    compiled: dict[Callable, Callable] = field(default_factory=dict)

    def pull(
        self, f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent
    ) -> list[jax.Array]:
        """`pull`, compiled once per function, shape and dtype."""
        if f not in self.compiled:
            self.compiled[f] = jax.jit(lambda args, g: pull(f, args, g))
        return self.compiled[f](args, g)

    @property
    def tolerance(self) -> float:
        if self.rounds:
            return ROUNDED_INSIDE
        return EXACT if self.truth is not None else BY_DIFFERENCES

    def gradients(self, s: Subject, args: tuple[PyTree, ...], g: Cotangent) -> list[Any]:
        """The true cotangent of every floating leaf, in float64."""
        with jax.enable_x64(True):
            args = in_dtype(args, jnp.float64)
            if self.truth is None:
                found = finite_differences.gradients(s.call, args, g)
            else:
                found = self.pull(self.truth, args, g)
        return [
            jnp.zeros_like(d) if self.is_intended_zero(label) else d
            for label, d in zip(labels(s.names, args), found, strict=True)
        ]

    def is_intended_zero(self, label: str) -> bool:
        return any(label == name or label.startswith(f"{name}[") for name in self.intended_zero)


def judge(
    s: Subject,
    check: str,
    transform: str,
    got: Sequence[Any],
    expected: Sequence[Any],
    *,
    tolerance: float,
    dtype: Any = np.float64,
    g: Cotangent | None = None,
    repro: str = "",
) -> Iterator[Finding]:
    """One Finding per floating leaf of the arguments."""
    names = labels(s.names, s.args)
    by_name = dict(zip(names, floats(s.args), strict=True))
    for name, mine, theirs in zip(names, got, expected, strict=True):
        if mine.shape != theirs.shape:
            message = f"the cotangent has shape {mine.shape}, expected {theirs.shape}"
            yield Finding(check, transform, "FAIL", name, message)
            continue
        found = comparison.difference(mine, theirs, tolerance, floor=noise(g or []))
        if found is None:
            error = comparison.relative_error(mine, theirs) if mine.size else 0.0
            ulps = error / float(jnp.finfo(dtype).eps)
            yield Finding(check, transform, "PASS", name, ulps=ulps)
            continue
        leaves = [comparison.as_float64(leaf) for leaf in g or []]
        text = comparison.hint(found, leaves, by_name)
        yield Finding(check, transform, "FAIL", name, hint=text, repro=repro, **found.fields(dtype))


def noise(g: Cotangent) -> float:
    """The rounding left in float64 where terms of the size of g cancel."""
    return NOISE * max((float(np.max(np.abs(leaf), initial=0)) for leaf in g), default=0.0)


def attempt(
    s: Subject,
    check: str,
    transform: str,
    run: Callable[[], Sequence[Any]],
    oracle: Callable[[], Sequence[Any]],
    **how: Any,
) -> Iterator[Finding]:
    """Judge run() against oracle(); where the oracle raises there is nothing to hold it to."""
    try:
        expected = [np.asarray(leaf) for leaf in oracle()]
    except Exception as error:
        yield Finding(check, transform, "SKIP", message=f"the reference raises: {brief(error)}")
        return
    try:
        got = [np.asarray(leaf) for leaf in run()]
    except Exception as error:
        yield Finding(check, transform, "FAIL", message=f"raises {brief(error)}")
        return
    yield from judge(s, check, transform, got, expected, **how)


def brief(error: Exception) -> str:
    """An exception in one line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


def random_g(plan: Plan, s: Subject, args: tuple[PyTree, ...], draw: int = 0) -> Cotangent:
    return normal(plan.seed + draw, floats(jax.eval_shape(s.call, *args)))
