"""Softmax, log_softmax, logsumexp: axes, masked entries, extreme logits, peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, log_softmax, logsumexp, softmax
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

AXES = (-1, 0, 1, 2, -2)


def gradient(x: jax.Array, g: jax.Array, axis: int = -1) -> jax.Array:
    _, saved = softmax.forward(x, axis=axis)
    return softmax.backward(saved, g)[0]


def logits(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, shape))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.usefixtures("x64")
def test_is_softmax_in_jax_along_any_axis(axis: int) -> None:
    x = logits(2, 3, 5)
    assert_agrees_with_jax(softmax, lambda x: jax.nn.softmax(x, axis), [x], reduced=5, axis=axis)


@pytest.mark.peers
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.usefixtures("x64")
def test_is_softmax_in_torch_along_any_axis(axis: int) -> None:
    x = logits(2, 3, 5)
    assert_agrees_with_torch(
        softmax, lambda torch, x: torch.softmax(x, axis), [x], reduced=5, axis=axis
    )


def test_integers_are_refused() -> None:
    message = not_floating("softmax", "x", "int32")
    assert_refuses(softmax, (jnp.ones((2, 3), jnp.int32),), TypeError, message)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((), -1), ((), 0)])
def test_an_axis_that_x_does_not_have_is_refused(shape: tuple, axis: int) -> None:
    message = (
        f"softmax: axis must be one of x's {len(shape)} axes, got axis {axis} for x {shape}. Give "
        "an axis between -x.ndim and x.ndim - 1."
    )
    assert_refuses(softmax, (jnp.ones(shape),), ValueError, message, axis=axis)


def test_a_masked_entry_has_probability_0_and_gradient_0() -> None:
    x = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf, 0.0, -jnp.inf]])
    y, dx = softmax(x), gradient(x, jnp.array([[1.0, 5.0, 2.0], [3.0, 4.0, 5.0]]))
    masked = np.isneginf(np.asarray(x))
    np.testing.assert_array_equal(np.asarray(y)[masked], 0.0)
    np.testing.assert_array_equal(np.asarray(dx)[masked], 0.0)
    assert_near(y[0, ::2], jax.nn.softmax(x[0, ::2]))
    np.testing.assert_array_equal(y[1], [0.0, 1.0, 0.0])


@pytest.mark.parametrize("row", [[-jnp.inf] * 3, [1.0, jnp.inf, 0.0], [jnp.nan, 0.0, 1.0]])
def test_a_row_that_no_distribution_has_is_nan_and_the_others_are_not(row: list[float]) -> None:
    x = jnp.array([row, [1.0, 2.0, 3.0]])
    y, dx = softmax(x), gradient(x, jnp.ones((2, 3)))
    assert np.all(np.isnan(y[0]))
    assert np.all(np.isnan(dx[0]))
    assert np.all(np.isfinite(y[1]))
    assert np.all(np.isfinite(dx[1]))


def test_extreme_logits_give_the_limit() -> None:
    x = jnp.array([[1e4, 0.0, -1e4], [1e30, 1e30, -1e30], [3e38, -3e38, 0.0]])
    np.testing.assert_array_equal(softmax(x), [[1.0, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]])
    g = jnp.array([[1.0, 2.0, 3.0]] * 3)
    np.testing.assert_array_equal(gradient(x, g), [[0.0, 0, 0], [-0.25, 0.25, 0], [0.0, 0, 0]])


def test_a_shift_of_a_row_changes_nothing() -> None:
    """Whole numbers, so that the shift itself rounds nothing."""
    x = jnp.round(logits(4, 5))
    shifted = x + jnp.array([[1000.0], [-1000.0], [8.0], [0.0]])
    g = logits(4, 5)
    np.testing.assert_array_equal(softmax(shifted), softmax(x))
    np.testing.assert_array_equal(gradient(shifted, g), gradient(x, g))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_the_same_g_for_every_class_is_0(dtype: str) -> None:
    """The rows of y sum to 1, so a constant moves along nothing."""
    dx = gradient(logits(4, 1000).astype(dtype), jnp.ones((4, 1000), dtype))
    assert_near(np.asarray(dx, np.float64) + 1, np.ones((4, 1000)), dtype)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    x = jnp.zeros(shape)
    assert softmax(x).shape == shape
    assert gradient(x, x).shape == shape


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        x = np.random.default_rng(seed).normal(0, 3, (16, 50))
        return (jnp.asarray(x, jnp.bfloat16),)

    assert_no_worse(softmax, jax.nn.softmax, draw)


def test_the_value_in_bfloat16_is_that_of_float32_rounded_once() -> None:
    x = logits(8, 100).astype(jnp.bfloat16)
    exact = softmax(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(softmax(x), np.float32), np.asarray(exact, np.float32))


# log_softmax and logsumexp, and the mask that all three take.

MASK = np.array([[True, False, True], [False, True, False], [False, False, False]])
RULES = [softmax, log_softmax, logsumexp.bind(axis=-1)]


def cotangents(rule: Rule, x: jax.Array, mask: jax.Array | None, g: jax.Array) -> tuple:
    y, saved = rule.forward(x, mask)
    return y, *rule.backward(saved, g)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.usefixtures("x64")
def test_log_softmax_and_logsumexp_are_those_of_jax(axis: int) -> None:
    x = logits(2, 3, 5)
    for rule, peer in (
        (log_softmax, jax.nn.log_softmax),
        (logsumexp, jax.scipy.special.logsumexp),
    ):
        assert_agrees_with_jax(rule, lambda x, f=peer: f(x, axis), [x], reduced=5, axis=axis)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["log_softmax", "logsumexp"])
@pytest.mark.usefixtures("x64")
def test_log_softmax_and_logsumexp_are_those_of_torch(name: str) -> None:
    rule = {"log_softmax": log_softmax, "logsumexp": logsumexp}[name]

    def peer(torch, x):  # type: ignore[no-untyped-def]
        return getattr(torch, name)(x, 1)

    assert_agrees_with_torch(rule, peer, [logits(2, 3, 5)], reduced=5, axis=1)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_with_a_mask_they_are_those_of_jax_where_something_counts() -> None:
    x, mask = logits(2, 3), jnp.asarray(MASK[:2])
    peers = (jax.nn.softmax, jax.nn.log_softmax, jax.scipy.special.logsumexp)
    for rule, peer in zip(RULES, peers, strict=True):
        masked = lambda x, mask, f=peer: f(x, axis=-1, where=mask)  # noqa: E731
        y, dx, dmask = cotangents(rule, x, mask, jnp.ones(rule.reference(x, mask).shape))
        assert_near(y, masked(x, mask), reduced=3)
        assert dmask is None
        finite = lambda x, f=masked: jnp.sum(jnp.where(jnp.isfinite(f(x, mask)), f(x, mask), 0))  # noqa: E731
        assert_near(dx, jax.grad(finite)(x), reduced=3)


def test_a_row_of_which_all_is_masked_is_0_or_minus_infinity_with_gradient_0() -> None:
    """Whatever x is there, nan too."""
    x, mask = jnp.where(MASK, logits(3, 3), jnp.nan), jnp.asarray(MASK)
    for rule, nothing in zip(RULES, (0.0, -np.inf, -np.inf), strict=True):
        y, dx, _ = cotangents(rule, x, mask, jnp.ones(rule.reference(x, mask).shape))
        np.testing.assert_array_equal(y[2], np.full_like(y[2], nothing))
        np.testing.assert_array_equal(np.asarray(dx)[~MASK], 0.0)
        assert np.all(np.isfinite(dx))


def test_a_mask_broadcasts() -> None:
    x, mask = logits(4, 5), jnp.arange(5) < 3
    wide = jnp.broadcast_to(mask, x.shape)
    for rule in RULES:
        g = jnp.ones(rule.reference(x).shape)
        assert_near(cotangents(rule, x, mask, g)[:2], cotangents(rule, x, wide, g)[:2])


def test_logsumexp_of_minus_infinity_alone_is_minus_infinity_with_gradient_0() -> None:
    x = jnp.array([[-jnp.inf, -jnp.inf], [-jnp.inf, 1.0]])
    y, dx, _ = cotangents(RULES[2], x, None, jnp.array([3.0, 3.0]))
    np.testing.assert_array_equal(y, [-np.inf, 1.0])
    np.testing.assert_array_equal(dx, [[0.0, 0.0], [0.0, 3.0]])


def test_logsumexp_of_bfloat16_keeps_its_sum_in_float32_for_the_gradient() -> None:
    """So that the gradients of a row sum to g, which a rounded y would put off by 1 in 30."""
    x = (30 + logits(4, 100)).astype(jnp.bfloat16)
    y, saved = logsumexp.forward(x, axis=-1)
    assert saved.residuals.total.dtype == jnp.float32
    (dx, _) = logsumexp.backward(saved, jnp.ones_like(y))
    assert_near(np.asarray(dx, np.float64).sum(axis=-1), np.ones(4), "bfloat16")


def test_a_large_maximum_costs_logsumexp_no_digits_of_the_gradient() -> None:
    x, g = logits(4, 100), jnp.ones(4)
    exact = jax.nn.softmax(1e4 + x)
    assert_near(cotangents(RULES[2], 1e4 + x, None, g)[1], exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_softmax", "logsumexp"])
def test_their_bfloat16_is_no_worse_than_automatic_differentiation(name: str) -> None:
    def draw(seed: int) -> tuple:
        x = np.random.default_rng(seed).normal(0, 3, (16, 50))
        return (jnp.asarray(x, jnp.bfloat16),)

    def plain(x: jax.Array) -> jax.Array:
        if name == "log_softmax":
            return jax.nn.log_softmax(x)
        return jax.scipy.special.logsumexp(x, -1)

    assert_no_worse({"log_softmax": log_softmax, "logsumexp": RULES[2]}[name], plain, draw)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_mask_that_is_not_boolean_or_does_not_fit_is_refused(rule: Rule) -> None:
    message = f"{rule.name}: mask must be boolean, got int32. True counts; write mask != 0."
    assert_refuses(rule, (jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32)), TypeError, message)
    for shape in ((2, 4), (1, 2, 3), (2,)):
        message = (
            f"{rule.name}: mask must broadcast to x, got mask {shape} for x (2, 3). Give it x's "
            "axes, of length 1 where it is the same for all."
        )
        assert_refuses(rule, (jnp.ones((2, 3)), jnp.ones(shape, bool)), ValueError, message)


def test_logsumexp_asks_for_an_axis() -> None:
    """jax.scipy sums over all of them unless told, the others here take the last."""
    with pytest.raises(TypeError, match="axis"):
        logsumexp(jnp.ones((2, 3)))
