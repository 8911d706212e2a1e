"""How far one array lies from another, and what the difference looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

TINY = 1e-300


@dataclass(frozen=True)
class Difference:
    """Two arrays of one shape that differ; errors are relative to the largest expected value."""

    got: np.ndarray
    expected: np.ndarray
    wrong: np.ndarray  # boolean, which elements
    scale: float

    @property
    def worst(self) -> tuple[int, ...]:
        """The index of the worst element: one that is not finite where it should be, first."""
        error = np.abs(self.got - self.expected)
        error = np.where(np.isfinite(error), error, np.inf)
        return tuple(int(i) for i in np.unravel_index(np.argmax(error * self.wrong), error.shape))

    def fields(self, dtype: Any) -> dict[str, Any]:
        """What a Finding says of it."""
        got, expected = float(self.got[self.worst]), float(self.expected[self.worst])
        return {
            "index": self.worst,
            "got": got,
            "expected": expected,
            "ratio": got / expected if expected else None,
            "ulps": abs(got - expected) / (self.scale * float(jnp.finfo(dtype).eps)),
            "off": int(np.sum(self.wrong)),
            "size": int(self.wrong.size),
        }


def as_float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def largest(expected: np.ndarray) -> float:
    """The largest finite magnitude, the unit of errors; tiny where there is none."""
    finite = np.abs(expected[np.isfinite(expected)])
    return float(max(np.max(finite, initial=0.0), TINY))


def relative_error(got: Any, expected: Any) -> float:
    """The largest error over the largest expected value; inf where only one is finite."""
    got, expected = as_float64(got), as_float64(expected)
    if not expected.size:
        return 0.0
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error = np.abs(np.where(same, 0.0, got) - np.where(same, 0.0, expected))
    return float(np.max(np.where(np.isnan(error), np.inf, error))) / largest(expected)


def difference(
    got: Any,
    expected: Any,
    tolerance: float,
    ignore: np.ndarray | None = None,
    floor: float = 0.0,
) -> Difference | None:
    """Where got is off by more than tolerance times the largest value, and floor.

    None where nowhere.

    What is not finite in `expected` asks nothing of `got`; neither does what `ignore` marks.
    """
    got, expected = as_float64(got), as_float64(expected)
    scale = largest(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(got - expected) <= max(tolerance * scale, floor)
    wrong = ~near & np.isfinite(expected)
    if ignore is not None:
        wrong &= ~ignore
    return Difference(got, expected, wrong, scale) if wrong.any() else None


def hint(d: Difference, g: Sequence[Any] = (), args: dict[str, Any] | None = None) -> str:
    """What the difference looks like; empty where the numbers do not tell."""
    got, expected = d.got, d.expected
    if not np.isfinite(got[d.wrong]).all():
        return _not_finite(d)
    if not np.any(got[d.wrong]):
        return "zero, or None, where the gradient is not"
    for leaf in g:
        if leaf.shape == got.shape and np.allclose(got, leaf, rtol=1e-6):
            return "equal to g: the local Jacobian is missing"
    return (
        _ratio(got, expected, d)
        or _transposed(got, expected)
        or _parallel(got - expected, args or {})
        or _place(d)
    )


def _not_finite(d: Difference) -> str:
    finite = d.expected[d.wrong]
    where = "0 * inf or inf - inf in a branch that is not taken?" if finite.size else ""
    return f"not finite where the reference is; {where}"


def _ratio(got: np.ndarray, expected: np.ndarray, d: Difference) -> str:
    large = np.abs(expected) > 1e-6 * d.scale
    ratios = got[large] / expected[large]
    if not ratios.size or np.ptp(ratios) > 1e-5 * abs(ratios.flat[0]):
        return ""
    ratio = float(np.median(ratios))
    if np.isclose(ratio, -1):
        return "the wrong sign"
    for axis, n in enumerate(got.shape):
        if n > 1 and (np.isclose(ratio, n) or np.isclose(ratio * n, 1)):
            which = "sum instead of mean" if ratio > 1 else "mean instead of sum"
            return f"a ratio of {ratio:.6g}, axis {axis} has {n} entries: {which} over it?"
    shown = f"{ratio:.6g}" if ratio >= 1 or ratio < 0 else f"1/{1 / ratio:.6g}"
    return f"a constant ratio of {shown}: a factor missing, or one too many"


def _transposed(got: np.ndarray, expected: np.ndarray) -> str:
    square = got.ndim >= 2 and got.shape[-1] == got.shape[-2]
    if square and np.allclose(np.swapaxes(got, -1, -2), expected, rtol=1e-6):
        return "transposed"
    return ""


def _parallel(extra: np.ndarray, args: dict[str, Any]) -> str:
    for name, arg in args.items():
        other = as_float64(arg)
        if other.shape != extra.shape or not np.any(other):
            continue
        c = float(np.sum(extra * other) / np.sum(other * other))
        if c and np.max(np.abs(extra - c * other)) <= 1e-5 * np.max(np.abs(extra)):
            verb = "lost" if c < 0 else "gained"
            return f"{verb} a term {abs(c):.4g} * {name}: a regulariser?"
    if extra.size > 1 and np.ptp(extra) <= 1e-6 * np.max(np.abs(extra)):
        return f"off by the constant {extra.flat[0]:.4g}"
    return ""


def _place(d: Difference) -> str:
    """Where the wrong elements lie, if they lie together."""
    if d.wrong.all() or d.wrong.ndim == 0:
        return ""
    where = np.nonzero(d.wrong)
    for axis, n in enumerate(d.wrong.shape):
        hit = np.unique(where[axis])
        if n > 1 and hit.size < n and hit.size <= max(1, n // 2):
            if np.array_equal(hit, np.arange(n - hit.size, n)):
                return f"only the last {hit.size} of axis {axis}: the tail of a block?"
            if hit.size == 1:
                return f"only index {hit[0]} of axis {axis}"
    return ""
