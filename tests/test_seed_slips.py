"""The slips E1 to E9 of the notes, each shown to be one.

With unequal widths a wrong reading breaks on the shapes; with square W it gives a wrong
number. The truth is the column arithmetic that `test_seed_claims.py` holds to `jax.grad`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from tests.seed_network import (
    LAMBDA,
    SQUARE,
    UNEQUAL,
    Columns,
    probed_cost,
    seed_network,
    zero_probes,
)
from tests.test_seed_claims import delta_2, delta_3, g_2, half_squares
from tests.tolerances import tolerance

pytestmark = pytest.mark.usefixtures("x64")


def example(widths: tuple[int, ...]) -> Columns:
    return seed_network(widths).examples[0]


def gradients(widths: tuple[int, ...], penalty: Callable = half_squares) -> tuple:
    """`jax.grad` of the cost of the first example alone, in parameters and in probes."""
    seed = seed_network(widths)
    one = seed._replace(x=seed.x[:1], y=seed.y[:1])
    probes = jax.tree.map(lambda probe: probe[:1], zero_probes(seed))
    J = probed_cost(one, lambda params: LAMBDA * penalty(params))
    return quickly(jax.grad(J, (0, 1)))(seed.params, probes)


def is_right(number: np.ndarray, truth: np.ndarray) -> bool:
    """Whether a column quantity is what `jax.grad` says, within the table's tolerance."""
    truth = np.asarray(truth)
    if number.shape != truth.shape:
        return False
    return bool(np.max(np.abs(number - truth)) <= tolerance("float64") * np.max(np.abs(truth)))


def breaks_or_misfits(slip: Callable[[Columns], np.ndarray], shape: tuple[int, ...]) -> bool:
    """Whether a slip, at unequal widths, cannot be computed or has the wrong shape."""
    try:
        return slip(example(UNEQUAL)).shape != shape
    except ValueError:
        return True


def test_E1_the_notes_gradients_belong_to_a_equal_W_h() -> None:
    """With a_3 = w_3^T h_2 + b_3, dL/dh_2 is w_3 delta and dL/dw_3 is h_2 delta^T."""

    def w(c: Columns) -> np.ndarray:
        return c.W[3].T

    def dh_as_noted(c: Columns) -> np.ndarray:
        return w(c).T @ delta_3(c)

    def dw_as_noted(c: Columns) -> np.ndarray:
        return delta_3(c) @ c.h[2].T

    c = example(SQUARE)
    np.testing.assert_array_equal(w(c).T @ c.h[2] + c.b[3], c.a[3])
    params, probes = gradients(SQUARE)
    dh, dw = probes["layer_2"]["h"].T, params["layer_3"]["w"] - LAMBDA * w(c)
    assert is_right(w(c) @ delta_3(c), dh)
    assert is_right(c.h[2] @ delta_3(c).T, dw)
    assert not is_right(dh_as_noted(c), dh)
    assert not is_right(dw_as_noted(c), dw)
    u = example(UNEQUAL)
    assert breaks_or_misfits(dh_as_noted, u.h[2].shape)
    assert breaks_or_misfits(dw_as_noted, w(u).shape)


def test_E1_w_transposed_is_the_jacobian_and_the_gradient_applies_its_transpose() -> None:
    c = example(UNEQUAL)
    w = c.W[3].T
    jacobian = jax.jacobian(lambda h: w.T @ h + c.b[3][:, 0])(c.h[2][:, 0])
    np.testing.assert_array_equal(jacobian, w.T)
    assert is_right(np.asarray(jacobian).T @ delta_3(c), gradients(UNEQUAL)[1]["layer_2"]["h"].T)


@pytest.mark.parametrize("widths", [UNEQUAL, SQUARE])
def test_E2_the_product_with_f_prime_is_elementwise(widths: tuple[int, ...]) -> None:
    """Two columns have no matrix product, and their dot product is one number, not a column."""
    c = example(widths)
    truth = gradients(widths)[1]["layer_3"]["a"].T
    assert is_right(c.g * c.df[3](c.a[3]), truth)
    with pytest.raises(ValueError, match="matmul"):
        c.g @ c.df[3](c.a[3])
    dot = c.g.T @ c.df[3](c.a[3])
    assert dot.shape == (1, 1) != truth.shape
    assert not is_right(np.broadcast_to(dot, truth.shape), truth)


def test_E3_the_row_form_belongs_to_rows_and_the_column_form_to_columns() -> None:
    """(g * f') w_2^T is right with g a row and a = w^T h; with this W = w^T it is not."""

    def mixed(c: Columns) -> np.ndarray:
        row = delta_2(c).T
        return (row @ c.W[2].T).T

    c = example(SQUARE)
    truth = gradients(SQUARE)[1]["layer_1"]["h"].T
    w = c.W[2].T
    assert is_right((delta_2(c).T @ w.T).T, truth)
    assert is_right(c.W[2].T @ delta_2(c), truth)
    assert not is_right(mixed(c), truth)
    assert breaks_or_misfits(mixed, example(UNEQUAL).h[1].shape)


def test_E4_the_bias_of_layer_2_is_b_2() -> None:
    """w_2^T h_1 + b_1 is not a_2. Its Jacobian in h_1 is, so the slip hides in a gradient at h_1
    and shows wherever a_2 is used, in f'(a_2) for one."""

    def a_2_as_noted(c: Columns) -> np.ndarray:
        return c.W[2] @ c.h[1] + c.b[1]

    def da_2_as_noted(c: Columns) -> np.ndarray:
        return g_2(c) * c.df[2](a_2_as_noted(c))

    c = example(SQUARE)
    truth = gradients(SQUARE)[1]["layer_2"]["a"].T
    assert is_right(delta_2(c), truth)
    assert not is_right(da_2_as_noted(c), truth)
    assert not is_right(a_2_as_noted(c), c.a[2])
    assert breaks_or_misfits(a_2_as_noted, example(UNEQUAL).a[2].shape)


@pytest.mark.parametrize("widths", [UNEQUAL, SQUARE])
def test_E5_minus_Omega_read_literally_reverses_the_penalty(widths: tuple[int, ...]) -> None:
    c = example(widths)
    dW_2 = gradients(widths)[0]["layer_2"]["w"].T
    db_2 = gradients(widths)[0]["layer_2"]["b"][:, None]
    assert is_right(delta_2(c) @ c.h[1].T + LAMBDA * c.W[2], dW_2)
    assert is_right(delta_2(c) + LAMBDA * c.b[2], db_2)
    assert not is_right(delta_2(c) @ c.h[1].T - LAMBDA * c.W[2], dW_2)
    assert not is_right(delta_2(c) - LAMBDA * c.b[2], db_2)


@pytest.mark.parametrize("widths", [UNEQUAL, SQUARE])
def test_E6_dJ_dy_hat_is_dL_dy_hat_with_theta_held(widths: tuple[int, ...]) -> None:
    """The dependence of Omega on W_3 is real, and is the term lambda dOmega/dW_3 of N1.

    Adding it to g as well has the wrong shape, and y_hat moved by other means (x) leaves
    Omega where it was.
    """
    c = example(widths)
    params, probes = gradients(widths)
    assert is_right(c.g, probes["layer_3"]["h"].T)
    assert is_right(delta_3(c) @ c.h[2].T + LAMBDA * c.W[3], params["layer_3"]["w"].T)
    assert (LAMBDA * c.W[3]).shape != c.g.shape
    seed = seed_network(widths)

    def J_minus_L(x: jax.Array) -> jax.Array:
        J = jaxprop.cost(seed.network, jaxprop.mean_squared_error, jaxprop.l2)
        L = jaxprop.cost(seed.network, jaxprop.mean_squared_error)
        return J(seed.params, x, seed.y, LAMBDA) - L(seed.params, x, seed.y)

    moved = seed.network(seed.params, 2 * seed.x) - seed.network(seed.params, seed.x)
    assert np.max(np.abs(moved)) > 0.01
    np.testing.assert_allclose(J_minus_L(2 * seed.x), J_minus_L(seed.x), rtol=tolerance("float64"))


def test_E7_the_jacobian_of_a_3_is_taken_in_w_3() -> None:
    """nabla_{a_3}(a_3) is the identity: with it h_2^T is lost, and W_3's gradient with it."""

    def as_noted(c: Columns) -> np.ndarray:
        identity = np.eye(c.a[3].size)
        return identity @ delta_3(c)

    c = example(SQUARE)
    truth = gradients(SQUARE)[0]["layer_3"]["w"].T - LAMBDA * c.W[3]
    assert is_right(delta_3(c) @ c.h[2].T, truth)
    assert not is_right(np.broadcast_to(as_noted(c), truth.shape), truth)
    assert breaks_or_misfits(as_noted, example(UNEQUAL).W[3].shape)


def test_E8_h_without_its_subscript_must_be_h_2() -> None:
    """f' at another layer's a: of the wrong shape, or of the wrong value."""
    c, u = example(SQUARE), example(UNEQUAL)
    truth = gradients(SQUARE)[1]["layer_2"]["a"].T
    assert is_right(g_2(c) * c.df[2](c.a[2]), truth)
    for other in (1, 3):
        assert not is_right(g_2(c) * c.df[other](c.a[other]), truth)
        assert breaks_or_misfits(lambda c, k=other: g_2(c) * c.df[k](c.a[k]), u.a[2].shape)


@pytest.mark.parametrize("widths", [UNEQUAL, SQUARE])
def test_E9_which_leaves_Omega_covers_decides_N2_and_N6(widths: tuple[int, ...]) -> None:
    """Omega(theta) holds the biases, Omega(w) does not: each with its own gradient."""
    c, seed = example(widths), seed_network(widths)
    one = seed._replace(x=seed.x[:1], y=seed.y[:1])

    def weights_only(params: dict) -> jax.Array:
        return sum(0.5 * jnp.sum(layer["w"] ** 2) for layer in params.values())

    for leaves, omega, db_2 in [
        (None, half_squares, delta_2(c) + LAMBDA * c.b[2]),
        ("*/w", weights_only, delta_2(c)),
    ]:
        penalty = jaxprop.l2.bind(leaves=leaves)
        J = jaxprop.cost(seed.network, jaxprop.mean_squared_error, penalty)
        _, dparams = jaxprop.value_and_grad(J)(one.params, one.x, one.y, LAMBDA)
        assert is_right(db_2, gradients(widths, omega)[0]["layer_2"]["b"][:, None])
        assert is_right(db_2, np.asarray(dparams["layer_2"]["b"])[:, None])
    both = gradients(widths)[0]["layer_2"]["b"][:, None]
    assert not is_right(delta_2(c), both)
