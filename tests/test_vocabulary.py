"""The words of derivations: what each computes, what is refused, which names a line reads."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import vocabulary
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

# By NumPy, and written out where NumPy has no such word: none of it is the vocabulary's own code.
M = np.array([[0.5, -1.5, 2.0], [3.0, 0.25, -0.75]])
POSITIVE = np.array([[0.5, 1.5, 2.0], [3.0, 0.25, 4.0]])
V = np.array([1.0, -2.0, 0.5])
LABELS = np.array([2, 0])
SIGNAL = np.array([[[1.0, 2.0], [3.0, 5.0], [7.0, 8.0], [11.0, 11.0]]])
PAIRS = np.array([[[1.0], [2.0], [3.0]], [[10.0], [20.0], [30.0]]])
VALUES = {
    "m": M,
    "pos": POSITIVE,
    "v": V,
    "labels": LABELS,
    "signal": SIGNAL,
    "pairs": PAIRS,
}

EXPRESSIONS = {
    "m + v": M + V,
    "m - v": M - V,
    "m * v": M * V,
    "m / pos": M / POSITIVE,
    "m ** 2": M * M,
    "-m": 0 - M,
    "(m + v) * 2": 2 * M + 2 * V,
    "m + v * 2": M + (V + V),
    "m @ v": np.array([np.dot(M[0], V), np.dot(M[1], V)]),
    "m.T @ pos": np.einsum("bi,bj->ij", M, POSITIVE),
    "pi * v": 3.141592653589793 * V,
    "exp(m)": np.exp(M),
    "log(pos)": np.log(POSITIVE),
    "log1p(pos)": np.log(1 + POSITIVE),
    "sqrt(pos)": POSITIVE**0.5,
    "rsqrt(pos)": POSITIVE**-0.5,
    "tanh(m)": np.tanh(M),
    "erf(v)": np.array([0.8427007929497149, -0.9953222650189527, 0.5204998778130465]),
    "abs(m)": np.abs(M),
    "sign(m)": np.sign(M),
    "round(m)": np.array([[0.0, -2.0, 2.0], [3.0, 0.0, -1.0]]),
    "maximum(m, v)": np.maximum(M, V),
    "minimum(m, v)": np.minimum(M, V),
    "where(m > 0, m, v)": np.where(M > 0, M, V),
    "where(v < 1, 1, 0)": np.array([0, 1, 1]),
    "where(v <= 1, 1, 0)": np.array([1, 1, 1]),
    "where(v > 1, 1, 0)": np.array([0, 0, 0]),
    "where(v >= 1, 1, 0)": np.array([1, 0, 0]),
    "where(v == 1, 1, 0)": np.array([1, 0, 0]),
    "where(v != 1, 1, 0)": np.array([0, 1, 1]),
    "mean(m)": np.array([[1.0 / 3], [2.5 / 3]]),
    "sum(m)": np.array([[1.0], [2.5]]),
    "max(m)": np.array([[2.0], [3.0]]),
    "mean_all(m)": np.array(3.5 / 6),
    "sum_all(m)": np.array(3.5),
    "sum_rows(m)": np.array([3.5, -1.25, 1.25]),
    "size(m)": np.array(6),
    "rows(m)": np.array(2),
    "column(v)": np.array([[1.0], [-2.0], [0.5]]),
    "part(m, 2, 3)": np.array([[2.0], [-0.75]]),
    "beside(m, pos, m)": np.concatenate([M, POSITIVE, M], axis=1),
    "swap(m)": M.T,
    "flip(m)": M[[1, 0]],
    "sum_first(m)": np.array([[3.5, -1.25, 1.25]]),
    "first_max(m)": np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
    "sum_each(signal)": np.array([[22.0, 26.0]]),
    "patches(signal, 2, 1)": np.array(
        [[[1.0, 2.0], [3.0, 5.0], [7.0, 8.0]], [[3.0, 5.0], [7.0, 8.0], [11.0, 11.0]]]
    ),
    "scatter_add(pairs, 1)": np.array([[[1.0], [12.0], [23.0], [30.0]]]),
    "take(m, labels)": np.array([2.0, 0.5]),
    "one_hot(labels, m)": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    "one_hot(pos, m)": POSITIVE,
}


def value_of(text: str, values: dict[str, Any]) -> Any:
    _, expression = vocabulary.read(f"y = {text}")
    return vocabulary.evaluate(expression, values)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_has_the_value_that_numpy_gives(text: str) -> None:
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    assert_near(value_of(text, values), EXPRESSIONS[text], "float64", reduced=6)


def test_every_word_is_in_an_expression_above() -> None:
    used = {word for word in vocabulary.WORDS for text in EXPRESSIONS if f"{word}(" in text}
    assert used == set(vocabulary.WORDS)


def test_sum_rows_sums_over_every_axis_but_the_last() -> None:
    x = jnp.arange(24.0).reshape(2, 3, 4)
    truth = [sum(4.0 * row + column for row in range(6)) for column in range(4)]
    assert_near(value_of("sum_rows(x)", {"x": x}), np.array(truth))


def test_a_reduction_of_the_last_axis_keeps_it() -> None:
    x = jnp.ones((2, 3, 4))
    for word in ("mean", "sum", "max"):
        assert value_of(f"{word}(x)", {"x": x}).shape == (2, 3, 1)


def test_read_gives_the_name_and_the_expression() -> None:
    name, expression = vocabulary.read("dx = g * y")
    assert name == "dx"
    assert list(vocabulary.names(expression)) == ["g", "y"]


REFUSED = {
    "y = sum(x, axis=0)": "sum(x, axis=0)",
    "y = x.shape": "x.shape",
    "y = x.mean()": "x.mean",
    "y = x[0]": "x[0]",
    "y = (lambda x: x)(x)": "lambda x: x",
    "y = lambda x: x": "lambda x: x",
    "y = 'text'": "'text'",
    "y = None": "None",
    "y = 1j": "1j",
    "y = sin(x)": "sin",
    "y = jnp.exp(x)": "jnp.exp",
    "y = exp(*x)": "*x",
    "y = x if g else z": "x if g else z",
    "y = x and g": "x and g",
    "y = not x": "not x",
    "y = x // g": "x // g",
    "y = x % g": "x % g",
    "y = 0 < x < 1": "0 < x < 1",
    "y = x in g": "x in g",
    "y = (x, g)": "(x, g)",
    "y = [x]": "[x]",
    "y = +x": "+x",
    "y = x + sum(cos(g))": "cos",
    "y = __import__('os')": "__import__",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_in_the_vocabulary_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"The vocabulary is \+ - \* / \*\* @ \.T") as refused:
        vocabulary.read(text)
    assert str(refused.value).startswith(f"unknown word {REFUSED[text]!r}. ")
    for word in (*vocabulary.WORDS, *vocabulary.CONSTANTS):
        assert word in str(refused.value)


@pytest.mark.parametrize("text", ["x", "y = z = x", "y, z = x", "y += x", "y: float = x", ""])
def test_a_line_that_is_not_one_assignment_to_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it must be one assignment, name = expression") as refused:
        vocabulary.read(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["y = (x", "y = ", "y = x x", "2 = x"])
def test_a_line_that_is_not_python_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"it is not an assignment \(") as refused:
        vocabulary.read(text)
    assert repr(text) in str(refused.value)


def test_a_name_without_a_value_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="z"):
        value_of("x + z", {"x": jnp.ones(2)})


NAMES = {
    "g * x + pi": (["g", "x"], ["g", "x"]),
    "x / size(w)": (["x", "w"], ["x"]),
    "x / rows(w)": (["x", "w"], ["x"]),
    "one_hot(labels, logits)": (["labels", "logits"], ["labels"]),
    "sum(x * rows(sum(y)))": (["x", "y"], ["x"]),
    "where(x > 0, g.T, -y)": (["x", "g", "y"], ["x", "g", "y"]),
    "scatter_add(p, 1, 1, x)": (["p", "x"], ["p"]),
    "2": ([], []),
}


@pytest.mark.parametrize("text", NAMES)
def test_names_are_those_read_and_without_shapes_those_read_by_value(text: str) -> None:
    everything, by_value = NAMES[text]
    _, expression = vocabulary.read(f"y = {text}")
    assert list(vocabulary.names(expression)) == everything
    assert list(vocabulary.names(expression, shapes=False)) == by_value


def test_the_first_of_the_largest_is_the_first_alone() -> None:
    x = jnp.array([[1.0, 2.0], [3.0, 2.0], [3.0, 2.0]])
    truth = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert_near(value_of("first_max(x)", {"x": x}), truth)


def test_swap_and_flip_leave_the_other_axes_alone() -> None:
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert_near(value_of("swap(x)", {"x": x}), np.swapaxes(np.asarray(x), 1, 2))
    assert_near(value_of("flip(x)", {"x": x}), np.stack([x[1], x[0]]))


PATCHES = {  # window, stride, dilation, before: the entries seen, 0 for a zero in front
    (3, 1, 1, 0): [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]],
    (2, 3, 1, 0): [[1, 4], [2, 5]],
    ((2,), (3,), 1, 0): [[1, 4], [2, 5]],
    (2, 1, 4, 0): [[1, 2], [5, 6]],
    (3, 2, 1, 2): [[0, 1, 3], [0, 2, 4], [1, 3, 5]],
}


@pytest.mark.parametrize("options", PATCHES)
def test_patches_are_what_each_place_of_a_window_sees_and_scatter_add_puts_them_back(
    options: tuple,
) -> None:
    x, seen = jnp.arange(1.0, 7.0).reshape(1, 6, 1), np.array(PATCHES[options], float)
    window, stride, dilation, before = options
    values = {"x": x, "window": window, "stride": stride}
    patches = value_of(f"patches(x, window, stride, {dilation}, {before})", values)
    assert_near(patches, seen[..., None])
    values["p"] = patches
    back = value_of(f"scatter_add(p, stride, {dilation}, x, {before})", values)
    counts = [float(n * np.sum(seen == n)) for n in range(1, 7)]
    assert_near(back, np.array(counts).reshape(1, 6, 1))
