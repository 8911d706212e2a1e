"""The affine map: its errors, its peers, and its sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import linear
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", [(5, 3), (1, 3), (2, 4, 3), (3,), (0, 3)])
@pytest.mark.usefixtures("x64")
def test_is_the_affine_map_in_plain_jax(shape: tuple[int, ...]) -> None:
    args = normal(0, *shape), normal(1, 3, 4), normal(2, 4)
    assert_agrees_with_jax(linear, lambda x, w, b: x @ w + b, args, reduced=10)
    assert_agrees_with_jax(linear, jnp.matmul, args[:2], reduced=10)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_is_the_linear_layer_of_torch_with_its_weights_transposed() -> None:
    args = normal(0, 5, 3), normal(1, 3, 4), normal(2, 4)
    assert_agrees_with_torch(
        linear, lambda torch, x, w, b: torch.nn.functional.linear(x, w.T, b), args, reduced=10
    )


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_integers_are_refused(name: str) -> None:
    args = {"x": jnp.ones((2, 3)), "w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    args[name] = args[name].astype(jnp.int32)
    message = not_floating("linear", name, "int32")
    assert_refuses(linear, tuple(args.values()), TypeError, message)


@pytest.mark.parametrize(
    ("x", "w"), [((2, 4), (3, 4)), ((), (3, 4)), ((2, 3), (3,)), ((2, 3), (1, 3, 4))]
)
def test_an_x_that_does_not_fit_w_is_refused(x: tuple, w: tuple) -> None:
    message = (
        f"linear: x must be (..., n_in) and w (n_in, n_out), got x {x} and w {w}. Weights are "
        "stored (n_in, n_out): transpose a (n_out, n_in) matrix."
    )
    assert_refuses(linear, (jnp.ones(x), jnp.ones(w)), ValueError, message)


@pytest.mark.parametrize("b", [(3,), (1, 4), ()])
def test_a_b_that_is_not_one_number_per_unit_is_refused(b: tuple) -> None:
    """(1, 4) would broadcast, and its gradient would have another shape."""
    message = f"linear: b must be (n_out,) = (4,), got {b}. Give one bias per column of w, or None."
    assert_refuses(linear, (jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(b)), ValueError, message)


def test_without_a_bias_there_is_no_cotangent_of_one() -> None:
    y, saved = linear.forward(jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert linear.backward(saved, y)[2] is None


def test_db_of_many_bfloat16_rows_is_summed_in_float32_and_rounded_once() -> None:
    """One row of 1 and 4095 of 2^-8: in bfloat16 every partial sum would stay at 1."""
    rows = jnp.concatenate([jnp.ones(1), jnp.full(4095, 2.0**-8)])[:, None]
    g = rows.astype(jnp.bfloat16)
    x, w = jnp.ones((4096, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.float32)
    _, saved = linear.forward(x, w, jnp.zeros(1, jnp.float32))
    _, dw, db = linear.backward(saved, g)
    total = 1 + 4095 * 2.0**-8
    assert dw.dtype == db.dtype == jnp.float32
    assert_near((dw, db), (np.full((1, 1), total), np.full(1, total)), reduced=4096)
    _, saved = linear.forward(x, w.astype(jnp.bfloat16), jnp.zeros(1, jnp.bfloat16))
    _, dw, db = linear.backward(saved, g)
    assert dw.dtype == db.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.bfloat16(total), np.float64)
    np.testing.assert_array_equal(np.asarray(db, np.float64), rounded[None])
    np.testing.assert_array_equal(np.asarray(dw, np.float64), rounded[None, None])


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code() -> None:
    def draw(seed: int) -> tuple:
        arrays = normal(seed, 64, 16), normal(seed + 100, 16, 8), normal(seed + 200, 8)
        return tuple(array.astype(jnp.bfloat16) for array in arrays)

    assert_no_worse(linear, lambda x, w, b: x @ w + b, draw)
