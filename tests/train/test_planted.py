"""Each planted slip is one line away from the right gradient, and the right one is right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.train.planted import SLIPS, Lines, planted_value_and_grad
from tests.tolerances import assert_near, tolerance

pytestmark = pytest.mark.usefixtures("x64")

STRENGTH = 0.1


def problem(widths: tuple[int, ...] = (4, 4, 4), leaves: Any = None) -> tuple:
    network = jaxprop.chain(
        hidden_1=jaxprop.dense(widths[1], jaxprop.tanh),
        hidden_2=jaxprop.dense(widths[2], jaxprop.sigmoid),
        output=jaxprop.dense(3),
    )
    loss = jaxprop.softmax_cross_entropy
    J = jaxprop.cost(network, loss, jaxprop.l2.bind(leaves=leaves))
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, widths[0]))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(1), x.shape, jnp.float64))
    params = jax.tree.map(lambda p: draw.normal(size=p.shape), shapes)
    return J, (params, x, np.arange(5) % 3, STRENGTH)


def gradients(J: Any, args: tuple, lines: Lines) -> tuple[Any, Any]:
    """(by these lines, by value_and_grad)."""
    by_lines, right = planted_value_and_grad(J, lines), jaxprop.value_and_grad(J)
    return quickly(lambda *args: (by_lines(*args), right(*args)))(*args)


def is_same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return bool(np.max(np.abs(a - b)) <= tolerance("float64", reduced=64) * np.max(np.abs(b)))


@pytest.mark.slow
def test_the_right_lines_give_the_right_gradient() -> None:
    mine, right = gradients(*problem(), Lines())
    assert_near(mine, right, reduced=64)


@pytest.mark.parametrize(
    "slip",
    [pytest.param(slip, marks=() if slip == "E1" else pytest.mark.slow) for slip in sorted(SLIPS)],
)
def test_a_slip_keeps_the_value_and_changes_the_gradient(slip: str) -> None:
    (value, dparams), (right_value, right) = gradients(*problem(), SLIPS[slip].lines)
    assert_near(value, right_value)
    same = jax.tree.map(is_same, dparams, right)
    assert not all(jax.tree.leaves(same))
    shapes = jax.tree.map(jnp.shape, dparams)
    assert shapes == jax.tree.map(jnp.shape, right)


@pytest.mark.slow
@pytest.mark.parametrize("slip", ["E1", "E3", "E4", "E8"])
def test_slips_of_square_layers_need_them(slip: str) -> None:
    (_, dparams), (_, right) = gradients(*problem((7, 6, 5)), SLIPS[slip].lines)
    assert_near(dparams, right, reduced=64)


def test_E3_leaves_the_layers_above_it_right() -> None:
    (_, dparams), (_, right) = gradients(*problem(), SLIPS["E3"].lines)
    assert is_same(dparams["hidden_2"]["w"], right["hidden_2"]["w"])
    assert not is_same(dparams["hidden_1"]["w"], right["hidden_1"]["w"])


@pytest.mark.slow
def test_E5_reverses_the_penalty_and_N9_doubles_it() -> None:
    J, args = problem()
    for slip, times in (("E5", -2), ("N9", 1)):
        (_, dparams), (_, right) = gradients(J, args, SLIPS[slip].lines)
        excess = jax.tree.map(np.subtract, dparams, right)
        expected = jax.tree.map(lambda p, times=times: times * STRENGTH * p, args[0])
        assert_near(excess, expected, reduced=1024)


@pytest.mark.slow
def test_E9_needs_a_penalty_on_the_biases() -> None:
    (_, dparams), (_, right) = gradients(*problem(leaves="*/w"), SLIPS["E9"].lines)
    assert_near(dparams, right, reduced=64)


def test_only_chains_of_dense_layers() -> None:
    network = jaxprop.chain(jaxprop.dense(3), jaxprop.relu)
    J = jaxprop.cost(network, jaxprop.mean_squared_error)
    with pytest.raises(ValueError, match="chain of dense layers"):
        planted_value_and_grad(J, Lines())


@pytest.mark.slow
def test_bfloat16_data_with_float32_parameters() -> None:
    J, (params, x, y, _) = problem()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    strength = jnp.float32(STRENGTH)
    value, dparams = planted_value_and_grad(J, Lines())(params, x.astype(jnp.bfloat16), y, strength)
    assert np.isfinite(value)
    dtypes = jax.tree.leaves(jax.tree.map(lambda d: d.dtype, dparams))
    assert set(dtypes) == {jnp.dtype("float32")}
