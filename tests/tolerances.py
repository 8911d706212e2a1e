"""The one table of tolerances: how far a result may lie from float64 truth.

A result of a reduction over n terms, computed in a dtype with unit roundoff eps, is
allowed `FACTOR * eps * sqrt(n)` of the scale of the truth: rounding errors of
independent terms add like a random walk. Nothing in the tests has a tolerance of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FACTOR = {"float64": 64.0, "float32": 16.0, "bfloat16": 4.0, "float16": 8.0}


def tolerance(dtype: Any, reduced: int = 1) -> float:
    """The allowed error, relative to the largest magnitude of the truth."""
    kind = jnp.dtype(dtype)
    return FACTOR[kind.name] * float(jnp.finfo(kind).eps) * max(reduced, 1) ** 0.5


def assert_near(
    actual: Any, truth: Any, dtype: Any = None, reduced: int = 1, what: str = ""
) -> None:
    """Every leaf of `actual` within the table's tolerance of the same leaf of `truth`.

    `dtype` is the precision `actual` was computed in (its own, unless told); `reduced` is
    the number of terms in its longest reduction. Non-finite values must be the same in both.
    """
    actual_leaves = jax.tree_util.tree_leaves_with_path(actual)
    truth_leaves = jax.tree_util.tree_leaves_with_path(truth)
    assert [p for p, _ in actual_leaves] == [p for p, _ in truth_leaves], what
    for (path, got), (_, want) in zip(actual_leaves, truth_leaves, strict=True):
        place = what + jax.tree_util.keystr(path)
        kind = dtype or jnp.asarray(got).dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape, f"{place}: shape {got.shape}, expected {want.shape}"
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=place)
        scale = max(1e-30, float(np.max(np.abs(want[finite]), initial=0.0)))
        np.testing.assert_allclose(
            got[finite] / scale,
            want[finite] / scale,
            rtol=0,
            atol=tolerance(kind, reduced),
            err_msg=place,
        )
