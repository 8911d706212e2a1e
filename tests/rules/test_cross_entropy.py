"""Cross-entropies: conventions of the labels, masks, extreme logits, peers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import sigmoid_binary_cross_entropy, softmax_cross_entropy
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

REDUCE = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}
INF = float("inf")


def logits(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, shape))


def distributions(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(shape[-1]), shape[:-1]))


def classes(n: int, count: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).integers(0, count, n))


def both(x: Any, labels: Any, reduction: str = "mean") -> tuple:
    """softmax_cross_entropy's value and its cotangents in the logits and the labels, jitted."""

    @jax.jit
    def run(x: jax.Array, labels: jax.Array) -> tuple:
        loss, saved = softmax_cross_entropy.forward(x, labels, reduction=reduction)
        return (loss, *softmax_cross_entropy.backward(saved, jnp.ones_like(loss))[:2])

    return run(jnp.asarray(x), jnp.asarray(labels))


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_softmax_cross_entropy_is_that_of_optax(reduction: str) -> None:
    def of_classes(x: jax.Array, labels: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(x, labels)
        return REDUCE[reduction](losses)

    def of_distributions(x: jax.Array, labels: jax.Array) -> jax.Array:
        return REDUCE[reduction](optax.softmax_cross_entropy(x, labels))

    x, options = logits(6, 5), {"reduced": 30, "reduction": reduction}
    assert_agrees_with_jax(softmax_cross_entropy, of_classes, [x, classes(6, 5)], **options)
    labels = distributions(6, 5)
    assert_agrees_with_jax(softmax_cross_entropy, of_distributions, [x, labels], **options)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("labels", ["classes", "distributions"])
@pytest.mark.usefixtures("x64")
def test_softmax_cross_entropy_is_that_of_torch(reduction: str, labels: str) -> None:
    assert_agrees_with_torch(
        softmax_cross_entropy,
        lambda torch, x, y: torch.nn.functional.cross_entropy(x, y, reduction=reduction),
        [logits(6, 5), classes(6, 5) if labels == "classes" else distributions(6, 5)],
        reduced=30,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_sigmoid_binary_cross_entropy_is_that_of_optax(reduction: str) -> None:
    def peer(x: jax.Array, labels: jax.Array) -> jax.Array:
        return REDUCE[reduction](optax.sigmoid_binary_cross_entropy(x, labels))

    args = [logits(4, 3), distributions(4, 3)]
    options = {"reduced": 12, "reduction": reduction}
    assert_agrees_with_jax(sigmoid_binary_cross_entropy, peer, args, **options)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.usefixtures("x64")
def test_sigmoid_binary_cross_entropy_is_that_of_torch(reduction: str) -> None:
    def peer(torch: Any, x: Any, y: Any) -> Any:
        functional = torch.nn.functional
        return functional.binary_cross_entropy_with_logits(x, y, reduction=reduction)

    args = [logits(4, 3), distributions(4, 3)]
    options = {"reduced": 12, "reduction": reduction}
    assert_agrees_with_torch(sigmoid_binary_cross_entropy, peer, args, **options)


def test_the_loss_is_in_nats() -> None:
    for count in (2, 10):
        assert_near(both(jnp.zeros((3, count)), [0, 1, 1])[0], np.log(count))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_classes_may_be_integers_of_any_width(dtype: str) -> None:
    """300 classes, more than int8 or uint8 count: labels are widened before they are compared."""
    x = logits(3, 300)
    labels = jnp.array([0, 100, 127])
    expected = both(x, labels)
    got = both(x, labels.astype(dtype))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    assert got[2] is None


def test_a_class_is_the_distribution_that_is_certain_of_it() -> None:
    x, labels = logits(6, 5), jnp.array([4, 0, 1, 2, 3, 0])
    certain = jax.nn.one_hot(labels, 5)
    by_class, by_distribution = both(x, labels), both(x, certain)
    assert_near(by_class[:2], by_distribution[:2])
    assert by_class[2] is None
    assert by_distribution[2].shape == (6, 5)


def test_a_distribution_need_not_sum_to_1() -> None:
    """Rows scaled by w weigh their examples by w."""
    x, p, w = logits(3, 5), distributions(3, 5), jnp.array([0.0, 0.5, 3.0])
    each, dx_each, _ = both(x, p, "none")
    weighted, dx, _ = both(x, p * w[:, None], "none")
    assert_near(weighted, each * w)
    assert_near(dx, dx_each * w[:, None])


def test_examples_are_every_axis_but_the_last() -> None:
    x, labels = logits(2, 3, 7), jnp.array([[6, 0, 3], [1, 1, 5]])
    flat = both(x.reshape(6, 7), labels.reshape(6), "none")
    nested = both(x, labels, "none")
    assert_near(nested[0], flat[0].reshape(2, 3))
    assert_near(nested[1], flat[1].reshape(2, 3, 7))
    assert_near(both(x, labels)[0], flat[0].mean())
    assert_near(both(x[0, 0], labels[0, 0])[0], flat[0][0])


@pytest.mark.parametrize("reduction", REDUCE)
def test_a_label_out_of_range_is_nan_in_its_own_example(reduction: str) -> None:
    """Nothing can raise under jit; and -1 is not the last class."""
    labels = np.array([1, -1, 5, 100, -(2**31), 2**31 - 1, 4])
    outside = (labels < 0) | (labels > 4)
    loss, dx, _ = both(logits(7, 5), jnp.asarray(labels, jnp.int32), reduction)
    np.testing.assert_array_equal(np.isnan(loss), outside if reduction == "none" else True)
    np.testing.assert_array_equal(np.isnan(dx), np.repeat(outside[:, None], 5, axis=1))


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_an_unsigned_label_out_of_range_is_nan(dtype: str) -> None:
    assert np.isnan(both(logits(1, 5), jnp.array([200], dtype))[0])


def test_a_masked_class_adds_nothing_where_the_label_gives_it_none() -> None:
    x = jnp.array([[1.0, -INF, 2.0], [0.0, -INF, -INF]])
    kept = both(x[:1, ::2], [1], "none")
    for labels in ([2, 0], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]):
        loss, dx, _ = both(x, labels, "none")
        assert_near(loss, jnp.array([kept[0][0], 0.0]))
        assert_near(dx[0, ::2], kept[1][0])
        np.testing.assert_array_equal(dx[:, 1], [0.0, 0.0])
        np.testing.assert_array_equal(dx[1], [0.0, 0.0, 0.0])


def test_a_label_that_is_masked_costs_infinity() -> None:
    x = jnp.array([[1.0, -INF, 2.0]])
    assert float(both(x, [1])[0]) == INF
    assert float(both(x, [[0.5, 0.5, 0.0]])[0]) == INF


@pytest.mark.parametrize("row", [[-INF, -INF, -INF], [1.0, INF, 0.0]])
def test_logits_that_no_distribution_has_give_nan_in_their_own_example(row: list[float]) -> None:
    x = jnp.array([row, [1.0, 2.0, 3.0]])
    for label in range(3):
        loss, dx, _ = both(x, [label, 0], "none")
        assert np.isnan(loss).tolist() == [True, False]
        assert np.any(np.isnan(dx[0]))
        assert np.all(np.isfinite(dx[1]))


@pytest.mark.parametrize("labels", [[0, 0, 1], [[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]])
def test_extreme_logits_give_the_limit(labels: list) -> None:
    x = jnp.array([[1e4, 0.0, -1e4], [-1e4, 0.0, -2e4], [1e30, 0.0, 0.0]])
    loss, dx, _ = both(x, labels, "none")
    np.testing.assert_array_equal(loss, np.array([0.0, 1e4, 1e30], np.float32))
    np.testing.assert_array_equal(dx, [[0.0, 0, 0], [-1.0, 1, 0], [1.0, -1, 0]])


@pytest.mark.parametrize("labels", [[0], [[1.0, 0.0]]])
def test_logits_further_apart_than_any_number_are_a_class_of_probability_0(labels: list) -> None:
    """3e38 - -3e38 overflows to infinity, and 0 * infinity is nan; the loss is 0."""
    loss, dx, _ = both(jnp.array([[3e38, -3e38]]), labels)
    assert float(loss) == 0
    np.testing.assert_array_equal(dx, [[0.0, 0.0]])


def test_the_mean_over_no_example_is_nan_and_the_sum_0() -> None:
    nothing, none = jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)
    assert np.isnan(both(nothing, none)[0])
    assert float(both(nothing, none, "sum")[0]) == 0
    assert both(nothing, none, "none")[0].shape == (0,)


def test_the_rows_of_the_gradient_sum_to_0() -> None:
    _, dx, _ = both(logits(8, 1000), jnp.arange(8), "sum")
    assert_near(1 + np.sum(np.asarray(dx, np.float64), axis=-1), np.ones(8), "float32")


@pytest.mark.parametrize(("dtype", "reduction"), [("bfloat16", "mean"), ("float16", "none")])
def test_the_loss_is_float32_at_least(dtype: str, reduction: str) -> None:
    x, p = logits(4, 5).astype(dtype), distributions(4, 5).astype(dtype)
    loss, dx, dp = both(x, p, reduction)
    assert (loss.dtype, dx.dtype, dp.dtype) == (jnp.float32, dtype, dtype)
    loss, dx, dp = binary(x, p, reduction)
    assert (loss.dtype, dx.dtype, dp.dtype) == (jnp.float32, dtype, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["softmax", "sigmoid"])
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: str) -> None:
    def draw(seed: int) -> tuple:
        random = np.random.default_rng(seed)
        x, labels = random.normal(0, 3, (16, 50)), random.dirichlet(np.ones(50), 16)
        return jnp.asarray(x, jnp.bfloat16), jnp.asarray(labels, jnp.bfloat16)

    ours, plain = {
        "softmax": (softmax_cross_entropy, optax.softmax_cross_entropy),
        "sigmoid": (sigmoid_binary_cross_entropy, optax.sigmoid_binary_cross_entropy),
    }[rule]
    assert_no_worse(ours, lambda x, labels: jnp.mean(plain(x, labels)), draw)


def test_softmax_cross_entropy_refuses_logits_that_are_not_floating() -> None:
    message = not_floating("softmax_cross_entropy", "logits", "int32")
    args = jnp.ones((2, 3), jnp.int32), jnp.zeros(2, jnp.int32)
    assert_refuses(softmax_cross_entropy, args, TypeError, message)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_softmax_cross_entropy_refuses_labels_that_are_neither(dtype: str) -> None:
    message = (
        "softmax_cross_entropy: labels must be integers (classes) or floating (distributions), "
        f"got {dtype}. Convert them with labels.astype."
    )
    args = jnp.ones((2, 3)), jnp.ones(2, dtype)
    assert_refuses(softmax_cross_entropy, args, TypeError, message)


@pytest.mark.parametrize(
    ("shape", "labels", "dtype"),
    [
        ((2, 3), (3,), "int32"),
        ((2, 3), (2, 3), "int32"),
        ((2, 3), (2, 1), "int32"),
        ((2, 3), (), "int32"),
        ((2, 3), (2,), "float32"),
        ((2, 3), (3,), "float32"),
        ((2, 3), (2, 1), "float32"),
        ((), (), "float32"),
        ((2, 0), (2,), "int32"),
        ((2, 0), (2, 0), "float32"),
    ],
)
def test_softmax_cross_entropy_refuses_shapes_that_do_not_fit(
    shape: tuple, labels: tuple, dtype: str
) -> None:
    message = (
        "softmax_cross_entropy: logits must be (..., C) with C of at least 1, and labels (...) of "
        f"integers or (..., C) floating, got logits {shape} and labels {labels} of {dtype}. Give "
        "each example one class, or one distribution."
    )
    args = jnp.ones(shape), jnp.zeros(labels, dtype)
    assert_refuses(softmax_cross_entropy, args, ValueError, message)


@pytest.mark.parametrize("rule", [softmax_cross_entropy, sigmoid_binary_cross_entropy])
def test_an_unknown_reduction_is_refused(rule: Any) -> None:
    message = f"{rule.name}: reduction must be one of ('mean', 'sum', 'none'), got 'average'."
    args = jnp.ones((2, 3)), jnp.ones((2, 3))
    assert_refuses(rule, args, ValueError, message, reduction="average")


def binary(x: Any, labels: Any, reduction: str = "none") -> tuple:
    """The same of sigmoid_binary_cross_entropy."""

    @jax.jit
    def run(x: jax.Array, labels: jax.Array) -> tuple:
        loss, saved = sigmoid_binary_cross_entropy.forward(x, labels, reduction=reduction)
        return (loss, *sigmoid_binary_cross_entropy.backward(saved, jnp.ones_like(loss))[:2])

    return run(jnp.asarray(x), jnp.asarray(labels))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32"])
def test_hard_labels_may_be_integers_or_bool_and_have_no_cotangent(dtype: str) -> None:
    x, hard = logits(4, 3), distributions(4, 3) > 0.3
    expected, got = binary(x, hard.astype(jnp.float32)), binary(x, hard.astype(dtype))
    assert_near(got[:2], expected[:2])
    assert got[2] is None
    assert expected[2] is not None


def test_binary_extreme_logits_give_the_limit() -> None:
    x = jnp.array([-3e38, -1e4, 1e4, 3e38])
    loss, dx, _ = binary(x, jnp.zeros(4))
    np.testing.assert_array_equal(loss, np.array([0, 0, 1e4, 3e38], np.float32))
    np.testing.assert_array_equal(dx, [0.0, 0, 1, 1])
    loss, dx, _ = binary(x, jnp.ones(4))
    np.testing.assert_array_equal(loss, np.array([3e38, 1e4, 0, 0], np.float32))
    np.testing.assert_array_equal(dx, [-1.0, -1, 0, 0])


def test_a_small_binary_loss_keeps_its_digits() -> None:
    """log(1 + exp(-20)) is 2e-9, which no difference of numbers near 20 could tell."""
    x = jnp.linspace(5.0, 80.0, 26)
    truth = np.log1p(np.exp(-np.asarray(x, np.float64)))
    for sign, label in ((1, 1.0), (-1, 0.0)):
        loss, _, _ = binary(sign * x, jnp.full(26, label))
        assert_near(np.asarray(loss, np.float64) / truth, np.ones(26), "float32", reduced=80)


def test_an_infinite_binary_logit_that_agrees_gives_nan_and_a_gradient_of_0() -> None:
    loss, dx, _ = binary(jnp.array([-INF, INF]), jnp.array([0.0, 1.0]))
    assert np.all(np.isnan(loss))
    np.testing.assert_array_equal(dx, [0.0, 0.0])


def test_an_infinite_binary_logit_that_disagrees_costs_infinity() -> None:
    loss, dx, _ = binary(jnp.array([-INF, INF]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(loss, [INF, INF])
    np.testing.assert_array_equal(dx, [-1.0, 1.0])


def test_the_binary_mean_of_nothing_is_nan() -> None:
    nothing = jnp.zeros((0, 3))
    assert np.isnan(binary(nothing, nothing, "mean")[0])
    assert float(binary(nothing, nothing, "sum")[0]) == 0


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_binary_logits_that_are_not_floating_are_refused(dtype: str) -> None:
    message = not_floating("sigmoid_binary_cross_entropy", "logits", "int32")
    args = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), dtype)
    assert_refuses(sigmoid_binary_cross_entropy, args, TypeError, message)


@pytest.mark.parametrize("labels", [(2,), (2, 1), ()])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_binary_labels_of_another_shape_are_refused(labels: tuple, dtype: str) -> None:
    message = (
        "sigmoid_binary_cross_entropy: logits and labels must have the same shape, got (2, 3) and "
        f"{labels}. Nothing is broadcast: add, drop or repeat an axis."
    )
    args = jnp.ones((2, 3)), jnp.ones(labels, dtype)
    assert_refuses(sigmoid_binary_cross_entropy, args, ValueError, message)
