"""parallel: one x into several layers, against plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from tests.test_structure import X, by_hand, by_jax, noise, parameters
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")


def branches(width: int) -> dict[str, jaxprop.Rule]:
    return {"a": jaxprop.dense(4, jaxprop.tanh), "b": jaxprop.dense(width), "c": jaxprop.identity}


def outputs(p: Any, x: jax.Array) -> list[jax.Array]:
    return [jnp.tanh(x @ p["a"]["w"] + p["a"]["b"]), x @ p["b"]["w"] + p["b"]["b"], x]


@pytest.mark.parametrize("combine", ["sum", "concatenate"])
def test_value_and_cotangents_are_those_of_plain_jax(combine: str) -> None:
    """Where features stand side by side, of three widths."""
    network = jaxprop.parallel(combine=combine, **branches(4 if combine == "sum" else 2))

    def plain(p: Any, x: jax.Array) -> jax.Array:
        hs = outputs(p, x)
        return hs[0] + hs[1] + hs[2] if combine == "sum" else jnp.concatenate(hs, axis=-1)

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        others = by_jax(network, params, x), by_jax(network.reference, params, x)
        return by_hand(network, params, x), others, by_jax(plain, params, x)

    got, others, truth = run(parameters(network), jnp.asarray(X))
    for (y, (dparams, dx)), reduced in ((got, 32), *((other, 32) for other in others)):
        dparams = {**dparams, "c": truth[1][0]["c"]}  # None and {} are both no parameters
        assert_near((y, (dparams, dx)), truth, reduced=reduced)


def test_unnamed_layers_are_called_by_kind_and_position() -> None:
    network = jaxprop.parallel(jaxprop.dense(3), jaxprop.dense(3), last=jaxprop.dense(3))
    assert list(network.layers) == ["dense_1", "dense_2", "last"]
    params = network.init(jax.random.key(0), X.shape)
    assert not np.allclose(params["dense_1"]["w"], params["dense_2"]["w"])


@pytest.mark.slow
def test_a_key_reaches_each_layer_as_its_position_gives_it() -> None:
    network, key, x = jaxprop.parallel(noise(), noise()), jax.random.key(3), jnp.asarray(X)
    params = {name: {} for name in network.layers}
    truth = sum(noise().reference({}, x, jax.random.fold_in(key, k)) for k in (0, 1))
    assert_near(network.reference(params, x, key), truth)
    by_reference = by_jax(lambda p, x: network.reference(p, x, key), params, x)
    assert_near(by_hand(network, params, x, key)[1][1], by_reference[1][1])


def test_what_cannot_be_joined_is_refused() -> None:
    x = jnp.asarray(X)
    uneven = jaxprop.parallel(a=jaxprop.dense(3), b=jaxprop.dense(2))
    with pytest.raises(ValueError, match="the same shape and dtype") as refused:
        uneven(parameters(uneven), x)
    assert str(refused.value) == (
        "parallel: the outputs must have the same shape and dtype, got a float64 (3, 3), b float64 "
        "(3, 2). End each with a layer that gives it."
    )
    with pytest.raises(ValueError, match=r"^parallel: combine must be one of .*, got 'product'\."):
        jaxprop.parallel(jaxprop.dense(3), combine="product")
    with pytest.raises(ValueError, match=r"^parallel: needs at least one layer, got none\."):
        jaxprop.parallel()
    with pytest.raises(TypeError, match=r"^parallel: a must be a Layer or a Rule of one array"):
        jaxprop.parallel(a=3)
    with pytest.raises(ValueError, match=r"^parallel: params must be a dict with the layers"):
        uneven({"a": {}}, x)


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["sum", "concatenate"])
def test_the_checker_passes(combine: str) -> None:
    network = jaxprop.parallel(combine=combine, **branches(4))
    params, x = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (parameters(network), jnp.asarray(X))
    )
    report = jaxprop.check(network, params, x)
    assert report.verdict == "PASS", str(report)
