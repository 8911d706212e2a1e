"""Language models whose batch is split over devices: the same loss and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.inputs import Inputs
from tests.models.test_recurrent import RECURRENT
from tests.models.test_transformer import MODELS, REDUCED, TOKENS, parameters
from tests.tolerances import assert_near

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]

each_model = pytest.mark.parametrize("make", (MODELS | RECURRENT).values(), ids=MODELS | RECURRENT)
LABELS = jnp.roll(jnp.asarray(TOKENS), -1, axis=1)


def two_devices() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize("check_vma", [True, False])
@each_model
def test_inside_shard_map(make: Callable, check_vma: bool) -> None:
    """Each device has one sequence; the gradient of the mean is taken outside."""
    model = make(save=1)
    params, x = parameters(model), Inputs(jnp.asarray(TOKENS))

    def mean(params: dict, x: Inputs, labels: jax.Array) -> jax.Array:
        return lax.pmean(model.cost(params, x, labels), "data")

    specs = P(), P("data"), P("data")
    split = jax.shard_map(
        mean, mesh=two_devices(), in_specs=specs, out_specs=P(), check_vma=check_vma
    )
    got = quickly(jax.value_and_grad(split))(params, x, LABELS)
    truth = quickly(jax.value_and_grad(model.cost.reference))(params, x, LABELS)
    assert_near(got, truth, reduced=REDUCED)


@each_model
def test_sharded_over_auto_axes(make: Callable) -> None:
    model = make()
    params, x = parameters(model), Inputs(jnp.asarray(TOKENS))
    mesh = two_devices()
    truth = quickly(jax.value_and_grad(model.cost.reference))(params, x, LABELS)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        x, labels = jax.device_put((x, LABELS), rows)
        got = jax.jit(jaxprop.value_and_grad(model.cost))(jax.device_put(params, whole), x, labels)
    assert_near(jax.device_get(got), jax.device_get(truth), reduced=REDUCED)
