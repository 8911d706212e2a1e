"""The trace holds what training computes, in full, and can be read."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

STRENGTH = {"penalty": 0.1, "activity": 0.2}


def nested_network() -> jaxprop.Layer:
    return jaxprop.chain(
        hidden=jaxprop.dense(5, jaxprop.relu),
        block=jaxprop.chain(jaxprop.dense(4, jaxprop.tanh), jaxprop.softplus),
        output=jaxprop.dense(3),
    )


def batch(network: jaxprop.Layer) -> tuple[Any, jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (6, 4), jnp.float64)
    y = jax.random.normal(jax.random.key(1), (6, 3), jnp.float64)
    return network.init(jax.random.key(2), x.shape, jnp.float64), x, y


def cost_of(network: jaxprop.Layer) -> jaxprop.Cost:
    return jaxprop.cost(network, jaxprop.mean_squared_error, jaxprop.l2, jaxprop.activity_l2)


def by_path(trace: jaxprop.Trace) -> dict[str, Any]:
    return {layer.name: layer for layer in trace.layers}


def test_opens_nested_chains_in_forward_order() -> None:
    network = nested_network()
    trace = jaxprop.trace(network, *batch(network)[:2])
    names = ["hidden", "block/dense_1", "block/softplus_2", "output"]
    assert [layer.name for layer in trace.layers] == names


def test_parameter_gradients_are_those_of_value_and_grad() -> None:
    network = nested_network()
    params, x, y = batch(network)
    J = cost_of(network)
    layers = by_path(jaxprop.trace(J, params, x, y, STRENGTH))
    _, dparams = jaxprop.value_and_grad(J)(params, x, y, STRENGTH)
    for path, whole in [("hidden", dparams["hidden"]), ("output", dparams["output"])]:
        parts = layers[path].dparams, layers[path].dpenalty
        assert_near(jax.tree.map(jnp.add, *parts), whole)
    block = layers["block/dense_1"]
    assert_near(jax.tree.map(jnp.add, block.dparams, block.dpenalty), dparams["block"]["dense_1"])


def test_terms_add_up_to_J() -> None:
    network = nested_network()
    params, x, y = batch(network)
    J = cost_of(network)
    trace = jaxprop.trace(J, params, x, y, STRENGTH)
    assert set(trace.terms) == {"loss", "penalty", "activity"}
    assert_near(sum(trace.terms.values()), J(params, x, y, STRENGTH))


def test_g_passes_from_layer_to_layer_with_the_activity_penalty_added_on_arrival() -> None:
    network = nested_network()
    params, x, y = batch(network)
    trace = jaxprop.trace(cost_of(network), params, x, y, STRENGTH)
    for below, above in zip(trace.layers, trace.layers[1:], strict=False):
        share = 0.0 if below.dactivity is None else below.dactivity
        assert_near(below.gradients["h"], above.dx + share)
    touched = [layer.name for layer in trace.layers if layer.dactivity is not None]
    assert touched == ["hidden", "block/softplus_2", "output"]


def test_a_network_alone_is_traced_from_g() -> None:
    network = nested_network()
    params, x, _ = batch(network)
    g = jax.random.normal(jax.random.key(3), (6, 3), jnp.float64)
    _, vjp = jax.vjp(network.reference, params, x)
    dparams, dx = vjp(g)
    trace = jaxprop.trace(network, params, x, g=g)
    assert_near(trace.layers[0].dx, dx)
    assert_near(trace.layers[-1].dparams, dparams["output"])
    assert trace.terms == {}


def test_a_layer_that_is_no_chain_is_one_entry() -> None:
    layer = jaxprop.dense(3, jaxprop.sigmoid)
    x = jnp.ones((2, 4))
    params = layer.init(jax.random.key(0), x.shape, jnp.float64)
    (only,) = jaxprop.trace(layer, params, x).layers
    assert only.name == "dense"
    assert set(only.values) == {"a", "h"}
    assert_near(only.gradients["a"], only.values["h"] * (1 - only.values["h"]))


def test_the_key_reaches_every_layer_as_in_the_chain() -> None:
    def noise(params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return x if key is None else x + jax.random.normal(key, x.shape, x.dtype)

    layer = jaxprop.Layer(
        noise,
        lambda params, x, key: (noise(params, x, key), ()),
        lambda res, g: (None, g, None),
        init=lambda key, x_shape, dtype=jnp.float32: {},
    )
    network = jaxprop.chain(first=layer, inner=jaxprop.chain(layer, layer))
    x, key = jnp.zeros((2, 3)), jax.random.key(5)
    params = network.init(key, x.shape)
    trace = jaxprop.trace(network, params, x, key=key)
    assert_near(trace.layers[-1].values["h"], network(params, x, key))


def test_table_names_every_quantity_with_shape_and_norm() -> None:
    network = nested_network()
    params, x, y = batch(network)
    trace = jaxprop.trace(cost_of(network), params, x, y, STRENGTH)
    lines = str(trace).splitlines()
    rows = [line for line in lines if line.startswith("hidden ")]
    quantities = ["a ", "h ", "of it the activity", "g arriving", "g after f'", "dL/db", "dL/dw"]
    quantities += ["penalty's share of dJ/db", "penalty's share of dJ/dw", "g handed on"]
    assert len(rows) == len(quantities)
    assert all(quantity in row for quantity, row in zip(quantities, rows, strict=True))
    norm = float(np.linalg.norm(np.asarray(trace.layers[0].values["a"])))
    assert f"{norm:.4g}" in rows[0]
    assert "6x5" in rows[0]


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    network = nested_network()
    params, x, y = batch(network)
    path = tmp_path / "trace.png"
    jaxprop.trace(cost_of(network), params, x, y, STRENGTH).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_refuses_what_it_cannot_trace() -> None:
    network = nested_network()
    params, x, y = batch(network)
    with pytest.raises(TypeError, match="needs a cost or a network"):
        jaxprop.trace(jaxprop.relu, params, x)
    with pytest.raises(ValueError, match="y and strength must be None"):
        jaxprop.trace(network, params, x, y)
    with pytest.raises(ValueError, match="g must be None for a cost"):
        jaxprop.trace(cost_of(network), params, x, y, STRENGTH, g=y)
