"""Random arrays for cases and checks, of NumPy: what jax does outside of jit, it compiles.

A rule's cases become jax arrays when they are asked for; until then they are cut, cast and
changed by NumPy, as a program for each of these operations and shapes takes longer than the check.
"""

from typing import Any

import jax
import numpy as np


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers in float32, the same on every platform."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uniform(seed: int, *shape: int) -> np.ndarray:
    """Numbers in [0, 1), in float32, the same on every platform."""
    return np.random.default_rng(seed).random(size=shape, dtype=np.float32)


def replaced(x: jax.typing.ArrayLike, at: Any, value: float) -> np.ndarray:
    """x with one value in the place of what an index takes of it."""
    changed = np.array(x)
    changed[at] = value
    return changed
