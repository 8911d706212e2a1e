"""How far one array lies from another."""

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
    def error(self) -> np.ndarray:
        """The error of the wrong elements, 0 elsewhere; inf where got is not finite."""
        error = np.abs(self.got - self.expected)
        return np.where(self.wrong, np.where(np.isfinite(error), error, np.inf), 0.0)

    @property
    def worst(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(np.argmax(self.error), self.error.shape))

    def but(self, excused: np.ndarray) -> "Difference | None":
        """The difference without these elements; None where nothing is left."""
        wrong = self.wrong & ~excused
        if not wrong.any():
            return None
        return Difference(self.got, self.expected, wrong, self.scale)

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
    """The largest error over the largest expected value, where that is finite."""
    got, expected = as_float64(got), as_float64(expected)
    asked = np.isfinite(expected)
    error = np.abs(got[asked] - expected[asked])
    worst = np.max(np.where(np.isnan(error), np.inf, error), initial=0.0)
    return float(worst) / largest(expected)


def difference(
    got: Any, expected: Any, tolerance: float, floor: float = 0.0, limit: float = np.inf
) -> Difference | None:
    """Where got is off by more than tolerance times the largest value, and floor.

    None where nowhere. What is not finite in `expected`, or beyond `limit` (the largest value
    of the dtype), asks nothing of `got`.
    """
    got, expected = as_float64(got), as_float64(expected)
    asked = np.isfinite(expected) & (np.abs(np.nan_to_num(expected)) <= limit)
    scale = largest(np.where(asked, expected, np.nan))
    near = np.abs(got - expected) <= max(tolerance * scale, floor)
    wrong = ~near & asked
    return Difference(got, expected, wrong, scale) if wrong.any() else None
