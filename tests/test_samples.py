"""Samples: drawn by NumPy, the same each time; an array with a value replaced."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxprop.samples import normal, replaced, uniform


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_seed_draws_the_same_float32_numbers(draw: Callable[..., np.ndarray]) -> None:
    assert (draw(0, 2, 3).shape, draw(0, 2, 3).dtype) == ((2, 3), np.float32)
    np.testing.assert_array_equal(draw(0, 5), draw(0, 5))
    assert np.all(draw(0, 5) != draw(1, 5))


def test_replaced_changes_a_copy() -> None:
    x = normal(0, 2, 3)
    before = x.copy()
    changed = replaced(x, np.s_[:, 1], 7.0)
    np.testing.assert_array_equal(changed[:, 1], [7.0, 7.0])
    np.testing.assert_array_equal(changed[:, ::2], before[:, ::2])
    np.testing.assert_array_equal(x, before)
