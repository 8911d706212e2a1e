"""Dropout, drop_path and gaussian_noise: the ends of the rate, masks, peers, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, drop_path, dropout, gaussian_noise
from jaxprop.samples import normal
from tests.rules.oracle import by_hand, ids
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

RULES = [dropout, drop_path, gaussian_noise]
KEY = 7


def both(rule: Rule, x: jax.Array, strength: float, key: jax.Array | None) -> tuple:
    """The value, and the cotangent of x for a g of ones."""
    y, saved = rule.forward(x, jnp.float32(strength), key)
    return y, rule.backward(saved, jnp.ones_like(y))[0]


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_without_a_key_it_is_the_identity(rule: Rule) -> None:
    x = normal(0, 40, 3)
    y, dx = both(rule, x, 0.5, None)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, np.ones_like(x))


@pytest.mark.parametrize("rule", [dropout, drop_path], ids=ids)
def test_a_rate_of_1_gives_zeros_and_one_of_0_gives_x(rule: Rule) -> None:
    x = normal(0, 40, 3)
    for rate, kept in ((1.0, 0.0), (0.0, 1.0)):
        y, dx = both(rule, x, rate, jax.random.key(KEY))
        np.testing.assert_array_equal(y, kept * x)
        np.testing.assert_array_equal(dx, np.full_like(x, kept))


@pytest.mark.parametrize("rule", [dropout, drop_path], ids=ids)
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_gives_nan(rule: Rule, rate: float) -> None:
    y, dx = both(rule, normal(0, 40, 3), rate, jax.random.key(KEY))
    assert np.all(np.isnan(y))
    assert np.all(np.isnan(dx))


def test_backward_drops_what_forward_dropped_and_scales_the_rest() -> None:
    x = 1 + jnp.abs(normal(0, 40, 3))
    y, dx = both(dropout, x, 0.75, jax.random.key(KEY))
    kept = np.asarray(y) != 0
    np.testing.assert_array_equal(np.asarray(dx), np.where(kept, 4.0, 0.0))
    np.testing.assert_array_equal(np.asarray(y)[kept], 4 * np.asarray(x)[kept])


def test_the_share_that_is_dropped_is_the_rate() -> None:
    """Within five standard deviations of a binomial share."""
    n, rate = 100_000, 0.3
    y, _ = both(dropout, jnp.ones(n), rate, jax.random.key(KEY))
    assert abs(float(jnp.mean(y == 0)) - rate) < 5 * (rate * (1 - rate) / n) ** 0.5


def test_drop_path_drops_whole_examples() -> None:
    y, _ = both(drop_path, jnp.ones((40, 2, 3)), 0.5, jax.random.key(KEY))
    of_each = np.asarray(y).reshape(40, 6)
    assert set(of_each.min(axis=1)) == {0.0, 2.0}
    np.testing.assert_array_equal(of_each.min(axis=1), of_each.max(axis=1))


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_key_draws_the_same_in_every_precision(rule: Rule) -> None:
    """And the noise of bfloat16 is that of float32 rounded once."""
    wide = jnp.ones((40, 3))
    exact = rule(wide, jnp.float64(0.5), jax.random.key(KEY))
    for dtype in ("float32", "bfloat16"):
        y = rule(wide.astype(dtype), jnp.float32(0.5), jax.random.key(KEY))
        assert_near(y, exact)


def test_what_is_dropped_is_0_even_where_it_is_not_finite() -> None:
    for bad in (jnp.inf, jnp.nan):
        y, dx = both(dropout, jnp.full((40, 3), bad), 0.5, jax.random.key(KEY))
        dropped = np.asarray(dx) == 0
        assert 0 < dropped.sum() < 120
        np.testing.assert_array_equal(np.asarray(y)[dropped], 0.0)


def test_an_old_key_draws_as_the_new_one_does() -> None:
    x = normal(0, 40, 3)
    old, new = jax.random.PRNGKey(KEY), jax.random.key(KEY)
    np.testing.assert_array_equal(dropout(x, 0.5, old), dropout(x, 0.5, new))


def test_gaussian_noise_is_that_of_jax_random_normal() -> None:
    x, key = normal(0, 40, 3), jax.random.key(KEY)
    noise = jax.random.normal(key, x.shape, jnp.float32)
    y, (dx, dscale, dkey) = by_hand(gaussian_noise, 2 * x, x, 0.5, key)
    assert dkey is None
    assert_near(y, x + 0.5 * noise)
    np.testing.assert_array_equal(dx, 2 * x)
    assert_near(dscale, jnp.sum(2 * x * noise), reduced=120)


def test_the_strength_compiles_nothing() -> None:
    """It is an array: a rate that is annealed runs one program."""
    traced = []

    @jax.jit
    def run(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
        traced.append(rate)
        return dropout(x, rate, key)

    for rate in (0.1, 0.2, 0.3):
        run(jnp.ones(3), rate, jax.random.key(KEY))
    assert len(traced) == 1


@pytest.mark.peers
def test_the_mask_is_that_of_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    x, key = normal(0, 40, 3), jax.random.key(KEY)
    assert_near(dropout(x, 0.3, key), nnx.Dropout(0.3)(x, rngs=key))


@pytest.mark.peers
def test_the_mask_is_that_of_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    x, key = normal(0, 40, 3), jax.random.key(KEY)
    assert_near(dropout(x, 0.3, key), eqx.nn.Dropout(0.3)(x, key=key))


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_bad_arguments_are_refused(rule: Rule) -> None:
    x, key = jnp.ones((4, 3)), jax.random.key(KEY)
    strength = "scale" if rule is gaussian_noise else "rate"
    assert_refuses(
        rule,
        (jnp.ones((4, 3), jnp.int32), 0.5, key),
        TypeError,
        not_floating(rule.name, "x", "int32"),
    )
    assert_refuses(
        rule,
        (x, jnp.full(3, 0.5), key),
        ValueError,
        f"{rule.name}: {strength} must be a scalar, got (3,). Call it once for each, or under "
        "jax.vmap.",
    )
    assert_refuses(
        rule,
        (x, 0.5, jnp.int32(0)),
        TypeError,
        f"{rule.name}: key must be a key of jax.random or None, got int32[]. Make one with "
        "jax.random.key(seed).",
    )
    assert_refuses(
        rule,
        (x, 0.5, jax.random.split(key)),
        ValueError,
        f"{rule.name}: key must be one key, got key<fry>[2]. Give one of them, or map over them "
        "with jax.vmap.",
    )


def test_drop_path_refuses_a_scalar() -> None:
    message = "drop_path: x must be (B, ...), got a scalar. Give x its batch axis, or use dropout."
    assert_refuses(drop_path, (jnp.float32(1.0), 0.5, jax.random.key(KEY)), ValueError, message)
