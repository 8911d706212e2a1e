"""Seed claims N0 to N9: literal column arithmetic, the chain's numbers, and `jax.grad`.

Every claim is compared three ways, in float64: NumPy in the notes' convention, one example
at a time; the trace of the chain over the batch; and JAX's own differentiation of a plain
network, in the parameters and in zero probes added to each a_k and h_k.
"""

from typing import Any

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
    Seed,
    probed_cost,
    seed_network,
    zero_probes,
)
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")


class Sides:
    """What the chain's trace and `jax.grad` say, for one set of widths."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.seed = seed_network(widths)
        self.J = jaxprop.cost(self.seed.network, jaxprop.mean_squared_error, jaxprop.l2)
        seed = self.seed
        trace = jaxprop.trace(self.J, seed.params, seed.x, seed.y, LAMBDA)
        self.layers = {layer.name: layer for layer in trace.layers}
        J = probed_cost(seed, lambda params: LAMBDA * half_squares(params))
        self.auto, self.probes = quickly(jax.grad(J, (0, 1)))(seed.params, zero_probes(seed))

    def holds(self, literal: np.ndarray, chain: Any, automatic: Any) -> None:
        assert_near(chain, literal)
        assert_near(automatic, literal)


def half_squares(params: Any) -> jax.Array:
    """Omega(theta), spelled out: half the sum of squares of every w and b."""
    return sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def chained(layer: Any, name: str) -> jax.Array:
    """The layer's own gradient in a parameter plus the penalty's share."""
    return layer.dparams[name] + layer.dpenalty[name]


@pytest.fixture(scope="module", params=[UNEQUAL, SQUARE], ids=["unequal", "square"])
def sides(request: pytest.FixtureRequest) -> Sides:
    with jax.enable_x64(True):
        return Sides(request.param)


def delta_3(c: Columns) -> np.ndarray:
    return c.g * c.df[3](c.a[3])


def g_2(c: Columns) -> np.ndarray:
    return c.W[3].T @ delta_3(c)


def delta_2(c: Columns) -> np.ndarray:
    return g_2(c) * c.df[2](c.a[2])


def g_1(c: Columns) -> np.ndarray:
    return c.W[2].T @ delta_2(c)


def delta_1(c: Columns) -> np.ndarray:
    return g_1(c) * c.df[1](c.a[1])


def test_forward_is_algorithm_6_3(sides: Sides) -> None:
    seed = sides.seed
    for k in (1, 2, 3):
        layer = sides.layers[f"layer_{k}"]
        assert_near(layer.values["a"], np.concatenate([c.a[k].T for c in seed.examples]))
        assert_near(layer.values["h"], np.concatenate([c.h[k].T for c in seed.examples]))
    omega = sum(np.sum(seed.W(k) ** 2) + np.sum(seed.b(k) ** 2) for k in (1, 2, 3)) / 2
    truth = np.mean([c.loss() for c in seed.examples]) + LAMBDA * omega
    assert_near(quickly(sides.J)(seed.params, seed.x, seed.y, LAMBDA), truth)


def test_N0_g_starts_as_dL_dy_hat(sides: Sides) -> None:
    literal = sides.seed.rows(lambda c: 2 * (c.h[3] - c.y) / c.y.size)
    sides.holds(literal, sides.layers["layer_3"].gradients["h"], sides.probes["layer_3"]["h"])


def test_N1_dJ_dW_3(sides: Sides) -> None:
    seed = sides.seed
    literal = seed.mean(lambda c: (c.g * c.df[3](c.a[3])) @ c.h[2].T + LAMBDA * c.W[3])
    sides.holds(literal, chained(sides.layers["layer_3"], "w"), sides.auto["layer_3"]["w"])


def test_N2_dJ_db_3(sides: Sides) -> None:
    literal = sides.seed.mean(lambda c: c.g * c.df[3](c.a[3]) + LAMBDA * c.b[3])[0]
    sides.holds(literal, chained(sides.layers["layer_3"], "b"), sides.auto["layer_3"]["b"])


def test_N3_dL_dh_2(sides: Sides) -> None:
    literal = sides.seed.rows(lambda c: c.W[3].T @ (c.g * c.df[3](c.a[3])))
    sides.holds(literal, sides.layers["layer_2"].gradients["h"], sides.probes["layer_2"]["h"])
    assert_near(sides.layers["layer_3"].dx, literal)


def test_N4_dL_da_2(sides: Sides) -> None:
    literal = sides.seed.rows(lambda c: g_2(c) * c.df[2](c.a[2]))
    sides.holds(literal, sides.layers["layer_2"].gradients["a"], sides.probes["layer_2"]["a"])


def test_N5_dJ_dW_2(sides: Sides) -> None:
    seed = sides.seed
    literal = seed.mean(lambda c: (g_2(c) * c.df[2](c.a[2])) @ c.h[1].T + LAMBDA * c.W[2])
    sides.holds(literal, chained(sides.layers["layer_2"], "w"), sides.auto["layer_2"]["w"])


def test_N6_dJ_db_2(sides: Sides) -> None:
    literal = sides.seed.mean(lambda c: g_2(c) * c.df[2](c.a[2]) + LAMBDA * c.b[2])[0]
    sides.holds(literal, chained(sides.layers["layer_2"], "b"), sides.auto["layer_2"]["b"])


def test_N7_dL_dh_1(sides: Sides) -> None:
    literal = sides.seed.rows(lambda c: c.W[2].T @ (g_2(c) * c.df[2](c.a[2])))
    sides.holds(literal, sides.layers["layer_1"].gradients["h"], sides.probes["layer_1"]["h"])


def test_N8_dJ_dW_1_and_dJ_db_1(sides: Sides) -> None:
    seed, layer = sides.seed, sides.layers["layer_1"]
    dW = seed.mean(lambda c: (g_1(c) * c.df[1](c.a[1])) @ c.x.T + LAMBDA * c.W[1])
    db = seed.mean(lambda c: g_1(c) * c.df[1](c.a[1]) + LAMBDA * c.b[1])[0]
    sides.holds(dW, chained(layer, "w"), sides.auto["layer_1"]["w"])
    sides.holds(db, chained(layer, "b"), sides.auto["layer_1"]["b"])


def test_N0_to_N8_are_what_value_and_grad_returns(sides: Sides) -> None:
    seed = sides.seed
    value, dparams = jaxprop.value_and_grad(sides.J)(seed.params, seed.x, seed.y, LAMBDA)
    assert_near(dparams, sides.auto)
    cost = quickly(probed_cost(seed, lambda p: LAMBDA * half_squares(p)))
    assert_near(value, cost(seed.params, zero_probes(seed)))


def test_N4_of_softmax_is_a_vector_jacobian_product() -> None:
    """Where f is not elementwise, g * f' becomes g^T df/da."""
    a, g = np.array([[0.3], [-1.0], [0.7]]), np.array([[1.0], [2.0], [-0.5]])
    h = np.exp(a) / np.sum(np.exp(a))
    jacobian = np.diag(h[:, 0]) - h @ h.T
    y, saved = jaxprop.softmax.forward(jnp.asarray(a.T))
    assert_near(y, h.T)
    da, _ = jaxprop.softmax.backward(saved, jnp.asarray(g.T))
    assert_near(da, (jacobian.T @ g).T)
    elementwise = g * np.diag(jacobian)[:, None]
    assert not np.allclose(elementwise.T, da)


def automatic_gradient(seed: Seed, J: Any, strength: Any) -> Any:
    with jaxprop.automatic():
        return quickly(jax.grad(J))(seed.params, seed.x, seed.y, strength)


@pytest.mark.parametrize("reading", ["separate", "folded"])
def test_N9_separate_and_folded_agree_with_automatic(sides: Sides, reading: str) -> None:
    seed = sides.seed
    J = jaxprop.cost(seed.network, jaxprop.mean_squared_error, jaxprop.l2, reading=reading)
    _, dparams = quickly(jaxprop.value_and_grad(J))(seed.params, seed.x, seed.y, LAMBDA)
    assert_near(dparams, sides.auto)
    assert_near(automatic_gradient(seed, J, LAMBDA), sides.auto)


def test_N9_activity_penalty_enters_g_at_every_layer_before_f_prime(sides: Sides) -> None:
    """Omega(h_1, .., h_l): g gains lambda dOmega/dh_k, here lambda h_k / batch."""
    seed = sides.seed
    J = jaxprop.cost(seed.network, jaxprop.mean_squared_error, activity=jaxprop.activity_l2)
    trace = jaxprop.trace(J, seed.params, seed.x, seed.y, LAMBDA)
    g = {3: lambda c: c.g + LAMBDA * c.h[3]}
    g[2] = lambda c: c.W[3].T @ (g[3](c) * c.df[3](c.a[3])) + LAMBDA * c.h[2]
    g[1] = lambda c: c.W[2].T @ (g[2](c) * c.df[2](c.a[2])) + LAMBDA * c.h[1]
    for k, layer in enumerate(trace.layers, start=1):
        assert_near(layer.gradients["h"], seed.rows(g[k]))
        assert_near(layer.gradients["a"], seed.rows(lambda c, k=k: g[k](c) * c.df[k](c.a[k])))
    dW_2 = seed.mean(lambda c: (g[2](c) * c.df[2](c.a[2])) @ c.h[1].T)
    assert_near(trace.layers[1].dparams["w"], dW_2)
    _, dparams = quickly(jaxprop.value_and_grad(J))(seed.params, seed.x, seed.y, LAMBDA)
    assert_near(dparams, automatic_gradient(seed, J, LAMBDA))


def test_N9_activity_penalty_on_a_enters_after_f_prime(sides: Sides) -> None:
    """A penalty on a_2 alone: dJ/da_2 = g * f'(a_2) + lambda a_2, and g itself is as before."""
    seed = sides.seed
    split = jaxprop.chain(
        affine_1=jaxprop.dense(seed.b(1).size),
        h_1=jaxprop.tanh,
        affine_2=jaxprop.dense(seed.b(2).size),
        h_2=jaxprop.sigmoid,
        affine_3=jaxprop.dense(seed.b(3).size),
        h_3=jaxprop.tanh,
    )
    params = {f"affine_{k}": seed.params[f"layer_{k}"] for k in (1, 2, 3)}
    params |= {f"h_{k}": {} for k in (1, 2, 3)}
    penalty = jaxprop.activity_l2.bind(layers="affine_2")
    J = jaxprop.cost(split, jaxprop.mean_squared_error, activity=penalty)
    layers = {t.name: t for t in jaxprop.trace(J, params, seed.x, seed.y, LAMBDA).layers}
    assert_near(layers["h_2"].gradients["h"], seed.rows(g_2))
    da_2 = seed.rows(lambda c: g_2(c) * c.df[2](c.a[2]) + LAMBDA * c.a[2])
    assert_near(layers["affine_2"].gradients["h"], da_2)


def test_N9_counting_the_regulariser_twice_is_wrong(sides: Sides) -> None:
    """Once through the folded loss and once at the parameters: off by lambda dOmega exactly."""
    seed = sides.seed
    J = jaxprop.cost(seed.network, jaxprop.mean_squared_error, jaxprop.l2, reading="folded")
    _, dparams = quickly(jaxprop.value_and_grad(J))(seed.params, seed.x, seed.y, LAMBDA)
    twice = jax.tree.map(
        lambda d, theta: np.asarray(d) + LAMBDA * np.asarray(theta), dparams, seed.params
    )
    excess = jax.tree.map(lambda d, auto: d - np.asarray(auto), twice, sides.auto)
    assert_near(
        excess, jax.tree.map(lambda theta: LAMBDA * np.asarray(theta), seed.params), reduced=64
    )
    assert all(np.max(np.abs(leaf)) > 0.01 for leaf in jax.tree.leaves(excess))


def test_N9_a_penalty_on_parameters_does_not_move_with_y_hat(sides: Sides) -> None:
    """With theta held, the partial derivative of lambda Omega in every activation is zero."""
    seed = sides.seed
    with_penalty = probed_cost(seed, lambda params: LAMBDA * half_squares(params))
    without = probed_cost(seed, lambda params: jnp.zeros(()))
    probes = zero_probes(seed)
    penalised = quickly(jax.grad(with_penalty, 1))(seed.params, probes)
    assert_near(penalised, quickly(jax.grad(without, 1))(seed.params, probes))
