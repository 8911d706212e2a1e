"""What meshes with Explicit axes need beside what test_meshes.py shows."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop import explicit_axes
from jaxprop.array_types import tree_type
from tests.small_rules import masked, nested
from tests.tolerances import assert_near

ROWS, UNITS, SHARED = P("data"), P(None, "data"), P()


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A mesh of Explicit axes, in use."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield mesh


def put(mesh: Mesh, tree: Any, spec: P) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, spec))


@pytest.mark.parametrize("specs", [(ROWS, SHARED, SHARED), (SHARED, UNITS, ROWS)], ids=str)
def test_cotangents_are_sharded_as_their_arguments_are(mesh: Mesh, specs: tuple) -> None:
    arrays = jnp.ones((8, 3)), jnp.ones((3, 8)), jnp.ones(8)
    args = tuple(map(partial(put, mesh), arrays, specs))
    grads = jax.jit(jax.grad(lambda *args: jaxprop.linear(*args).sum(), (0, 1, 2)))(*args)
    for grad, arg in zip(grads, args, strict=True):
        assert grad.sharding.is_equivalent_to(arg.sharding, arg.ndim)


def test_none_and_integers_within_an_argument_pass_through(mesh: Mesh) -> None:
    x, w = jnp.linspace(-1.0, 2.0, 24).reshape(8, 3), jnp.ones((3, 2))
    params = {"map": {"w": w, "b": None}, "times": jnp.asarray(3, jnp.int32), "unused": {"a": w}}
    y, saved = nested.forward(put(mesh, params, SHARED), put(mesh, x, ROWS))
    dparams, dx = nested.backward(saved, y)
    assert dparams["times"] is None
    assert dparams["map"]["b"] is None
    y = jax.device_get(y)
    truth = {
        "map": {"w": 3 * x.T @ y, "b": None},
        "times": None,
        "unused": {"a": jnp.zeros((3, 2))},
    }
    assert_near(jax.device_get((dparams, dx)), (truth, 3 * y @ w.T), reduced=8)


def test_a_none_for_a_whole_argument_is_zeros_there(mesh: Mesh) -> None:
    """auto_axes needs an array for each sharding that it is told of."""
    x, rate = put(mesh, jnp.ones((8, 3)), ROWS), jnp.asarray(0.5)
    dx, drate = jax.grad(lambda x, rate: masked(x, rate, None).sum(), (0, 1))(x, rate)
    assert_near((dx, drate), (jnp.ones((8, 3)), jnp.asarray(0.0)))
    _, drate, dkey = masked.backward(masked.forward(x, rate, None)[1], x)
    assert dkey is None
    assert_near(drate, jnp.asarray(0.0))


@pytest.mark.parametrize("error", [ValueError("linear: other"), KeyError("w")], ids=repr)
def test_other_errors_are_not_touched(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explicit_axes.remedy("linear"):
        raise error
    assert caught.value is error


def test_without_explicit_axes_the_backward_is_left_alone() -> None:
    def backward(residuals, g):
        return (g,)

    assert explicit_axes.on_auto_axes(backward, (tree_type(jnp.ones(3)),)) is backward
