"""What a difference looks like is said where the numbers tell, and not where they do not."""

import numpy as np
import pytest

from jaxprop.checking.comparison import difference
from jaxprop.checking.hints import hint

EXPECTED = np.random.default_rng(0).normal(size=(4, 3))
G = np.random.default_rng(1).normal(size=(4, 3))
W = np.random.default_rng(2).normal(size=(4, 3))
SQUARE = np.random.default_rng(3).normal(size=(3, 3))


def said(got: np.ndarray, expected: np.ndarray = EXPECTED, **options: object) -> str:
    found = difference(got, expected, 1e-10)
    assert found is not None
    return hint(found, **options)


def but(index: object, value: float) -> np.ndarray:
    """What is expected, some of it another value."""
    got = EXPECTED.copy()
    got[index] = value
    return got


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (2 * EXPECTED, "a constant ratio of 2: a factor 2 too many?"),
        (EXPECTED / 5, "a constant ratio of 1/5: a factor 5 missing?"),
        (-EXPECTED, "the wrong sign"),
        (
            EXPECTED / 4,
            "a constant ratio of 1/4: a factor 4 missing, or mean instead of sum over axis 0 of "
            "this argument, which has 4 entries?",
        ),
        (
            12 * EXPECTED,
            "a constant ratio of 12: a factor 12 too many, or sum instead of mean over the 12 "
            "elements of this argument?",
        ),
        (0 * EXPECTED, "zero, or None, where the gradient is not"),
        (1.0001 * EXPECTED, "off by a factor 1 +0.0001: an approximation, or a coarser dtype"),
        (EXPECTED + 0.5, "off by the constant 0.5"),
        (but((1, 2), 9.0), "one element of 12"),
        (but((1, slice(0, 2)), 9.0), "only index 1 of axis 0"),
        (but((slice(2, 4),), 9.0), "only the last 2 of axis 0: the tail of a block?"),
        (but((1, 2), 0.0), "zero where the gradient is not; one element of 12"),
        (but((1, 2), np.nan), "nan where the reference is finite"),
        (but((1, 2), np.inf), "infinite where the reference is finite"),
        (EXPECTED + np.cos(np.arange(12)).reshape(4, 3), ""),
    ],
)
def test_a_slip_is_known_by_its_numbers(got: np.ndarray, text: str) -> None:
    found = said(got)
    assert found.startswith(text) if text else found == ""


def test_a_square_one_may_be_transposed() -> None:
    assert said(SQUARE.T, SQUARE) == "transposed"


def test_the_cotangent_itself_lacks_the_local_jacobian() -> None:
    assert said(G, g=[G]) == "equal to g: the local Jacobian is missing"


def test_a_lost_term_is_named_with_its_factor() -> None:
    text = said(EXPECTED - 0.001 * W, args={"w": W})
    assert text == "lost a term 0.001 * w: a regulariser?"
    assert said(EXPECTED + 0.25 * G, g=[G]) == "off by 0.25 * g"


def test_a_ratio_of_the_number_of_devices_is_a_psum() -> None:
    assert said(8 * EXPECTED, devices=8) == (
        "a ratio of 8, the number of devices: psum once too often?"
    )


def test_an_axis_of_another_argument_is_named() -> None:
    text = said(EXPECTED / 7, args={"x": np.ones((7, 2))})
    assert text.endswith("or mean instead of sum over axis 0 of x, which has 7 entries?")
