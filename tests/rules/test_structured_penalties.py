"""group_lasso and orthogonality: plain code, subgradients, filters, precision, errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, group_lasso, orthogonality
from jaxprop.samples import normal
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

RULES = [group_lasso, orthogonality]


def parameters() -> dict:
    return {"hidden": {"w": normal(0, 3, 4), "b": normal(1, 4)}, "out": {"w": normal(2, 4, 2)}}


def both(rule: Rule, params: Any, **options: Any) -> tuple:
    omega, saved = rule.forward(params, **options)
    return omega, rule.backward(saved, jnp.full_like(omega, 2.0))[0]


NORMS: dict[str, Callable] = {
    "column": lambda w: jnp.sum(jnp.linalg.norm(w.reshape(-1, w.shape[-1]), axis=0)),
    "row": lambda w: jnp.sum(jnp.linalg.norm(w.reshape(w.shape[0], -1), axis=1)),
    "leaf": lambda w: jnp.linalg.norm(w.reshape(-1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups", ["column", *(pytest.param(g, marks=pytest.mark.slow) for g in ("row", "leaf"))]
)
@pytest.mark.usefixtures("x64")
def test_group_lasso_is_the_sum_of_the_norms_of_the_groups(groups: str) -> None:
    params = jax.tree.map(lambda p: p.astype("float64"), parameters())
    params["conv"] = normal(3, 2, 2, 3).astype("float64")

    def plain(params: Any) -> jax.Array:
        return 2 * sum(NORMS[groups](leaf) for leaf in jax.tree.leaves(params))

    omega, dparams = both(group_lasso, params, groups=groups)
    assert_near((2 * omega, dparams), jax.value_and_grad(plain)(params), reduced=40)


def test_a_group_of_zeros_has_the_subgradient_0_and_others_are_not_touched() -> None:
    w = jnp.array([[0.0, 3.0], [-0.0, 4.0]])
    for function in (lambda w: both(group_lasso, w)[1], jax.grad(lambda w: 2 * group_lasso(w))):
        np.testing.assert_array_equal(function(w)[:, 0], [0.0, 0.0])
        assert_near(function(w)[:, 1], np.array([1.2, 1.6]))
    np.testing.assert_array_equal(jax.grad(group_lasso.reference)(w)[:, 0], [0.0, 0.0])
    assert float(group_lasso(jnp.zeros((2, 3)), groups="leaf")) == 0


def test_the_entries_of_a_vector_are_groups_by_column_and_by_row() -> None:
    b = jnp.array([3.0, -4.0])
    assert float(group_lasso(b, groups="column")) == float(group_lasso(b, groups="row")) == 7
    assert float(group_lasso(b, groups="leaf")) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        (2, 5),
        (5, 2),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((3, 3), (2, 2, 3), (0, 3), (3, 0))),
    ],
)
@pytest.mark.usefixtures("x64")
def test_orthogonality_is_the_squared_distance_of_the_gram_matrix_from_i(shape: tuple) -> None:
    def plain(w: jax.Array) -> jax.Array:
        matrix = w.reshape(int(np.prod(w.shape[:-1])), w.shape[-1])
        return 2 * jnp.sum((matrix.T @ matrix - jnp.eye(w.shape[-1])) ** 2)

    w = normal(0, *shape).astype("float64")
    omega, dw = both(orthogonality, w)
    assert_near((2 * omega, dw), jax.value_and_grad(plain)(w), reduced=40)


@pytest.mark.slow
def test_what_is_nearly_orthonormal_costs_what_it_should() -> None:
    """As the difference of numbers near 64 the squares of 2^-10 would be lost in float32."""
    near = (1 + 2.0**-11) * jnp.eye(64, dtype=jnp.float32)
    truth = 64 * ((1 + 2.0**-11) ** 2 - 1) ** 2
    assert_near(both(orthogonality, near)[0], np.asarray(truth), reduced=64)
    assert float(orthogonality(jnp.eye(5, 3))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_leaf_that_is_not_selected_has_no_gradient(rule: Rule) -> None:
    params = parameters() | {"steps": jnp.arange(3)}
    omega, dparams = both(rule, params, leaves="*/w")
    assert dparams["steps"] is None
    assert dparams["hidden"]["b"] is None
    weights = {name: params[name]["w"] for name in ("hidden", "out")}
    assert_near(omega, rule(weights), reduced=40)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_low_precision_leaves_are_summed_in_float32(rule: Rule) -> None:
    """4096 ones in a column: in bfloat16 the sum of squares would stay at 256."""
    omega, dw = both(rule, jnp.ones((4096, 1), jnp.bfloat16))
    assert omega.dtype == jnp.float32
    assert dw.dtype == jnp.bfloat16
    assert float(omega) == {group_lasso: 64, orthogonality: 4095**2}[rule]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    plain = {
        group_lasso: NORMS["column"],
        orthogonality: lambda w: jnp.sum((w.T @ w - jnp.eye(8, dtype=w.dtype)) ** 2),
    }[rule]
    assert_no_worse(rule, plain, lambda seed: (normal(seed, 32, 8).astype(jnp.bfloat16) / 4,))


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_filter_that_selects_nothing_and_integers_are_refused(rule: Rule) -> None:
    message = (
        f"{rule.name}: leaves must select at least one leaf, got 'w', which selects none of "
        "['hidden/b', 'hidden/w', 'out/w']. Give a glob that matches a whole path."
    )
    assert_refuses(rule, (parameters(),), ValueError, message, leaves="w")
    message = not_floating(rule.name, "the array", "int32")
    assert_refuses(rule, (jnp.ones((2, 2), jnp.int32),), TypeError, message)


def test_groups_of_no_kind_are_refused() -> None:
    message = "group_lasso: groups must be one of ('column', 'row', 'leaf'), got 'columns'."
    assert_refuses(group_lasso, (parameters(),), ValueError, message, groups="columns")


def test_a_vector_has_no_columns_to_be_orthogonal() -> None:
    message = (
        "orthogonality: hidden/b must be (..., n_out) of at least two axes, got (4,). Leave it out "
        "with a filter, such as leaves='*/w'."
    )
    assert_refuses(orthogonality, (parameters(),), ValueError, message)
