"""What an experiment is made of: network, cost, strengths, gradients, order."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxprop
from jaxprop.train.config import Config
from jaxprop.train.errors import TrainingError
from jaxprop.train.networks import make_cost, make_network, make_strength
from tests.tolerances import assert_near
from tests.train.small import experiment, made_up, settings

LOSSES = {
    "classes": jaxprop.softmax_cross_entropy,
    "binary": jaxprop.sigmoid_binary_cross_entropy,
    "regression": jaxprop.mean_squared_error,
}


@pytest.mark.parametrize(("kind", "units"), [("classes", 3), ("binary", 1), ("regression", 1)])
def test_the_data_decides_the_output_layer_and_the_loss(kind: str, units: int) -> None:
    made = experiment(kind)
    params = made.init()
    assert list(params) == ["hidden_1", "hidden_2", "output"]
    assert params["output"]["w"].shape == (6, units)
    assert made.J.loss is LOSSES[kind]


def test_no_hidden_layer_is_a_linear_model() -> None:
    network = make_network(settings(layers=()), made_up())
    assert list(network.layers) == ["output"]


def test_one_activation_serves_every_layer_or_each_has_its_own() -> None:
    x = jnp.linspace(-2.0, 2.0, 10).reshape(2, 5)
    for names, truth in (
        (("tanh",), (jnp.tanh, jnp.tanh)),
        (("sigmoid", "relu"), (jax.nn.sigmoid, jax.nn.relu)),
        (("gelu_erf", "gelu_tanh"), (lambda a: jax.nn.gelu(a, approximate=False), jax.nn.gelu)),
    ):
        network = make_network(settings(activations=names), made_up())
        params = network.init(jax.random.key(0), (1, 5))
        h = x
        for layer, f in zip(("hidden_1", "hidden_2"), truth, strict=True):
            h = f(h @ params[layer]["w"] + params[layer]["b"])
        assert_near(network(params, x), h @ params["output"]["w"], reduced=6)


@pytest.mark.parametrize("name", ["relo", "l2", "dense", "gelu", "linear", "Rule"])
def test_what_is_no_activation_is_refused_with_the_good_names(name: str) -> None:
    with pytest.raises(
        TrainingError, match=r"--activations must be among .*gelu_erf, gelu_tanh, .*relu, .*sigmoid"
    ):
        experiment(activations=(name,))


STRENGTHS: list[tuple[dict[str, Any], set[str] | None]] = [
    ({"penalty": "none"}, None),
    ({"penalty": "l2"}, {"penalty"}),
    ({"penalty": "l2", "reading": "folded"}, {"penalty"}),
    ({"penalty": "elastic_net", "reading": "folded"}, {"penalty", "l1_ratio"}),
    ({"penalty": "none", "activity_penalty": "l1"}, {"activity"}),
    ({"penalty": "l1", "activity_penalty": "l2"}, {"penalty", "activity"}),
]


@pytest.mark.parametrize(("changes", "names"), STRENGTHS)
def test_both_gradients_of_every_cost_agree(
    changes: dict[str, Any], names: set[str] | None
) -> None:
    made = experiment(**changes, strength=0.1, activity_strength=0.1)
    assert (made.strength and set(made.strength)) == names
    args = (made.init(), made.x[:8], made.y[:8], made.strength)
    (J, by_hand), (J_jax, by_jax) = jax.jit(made.by_hand)(*args), jax.jit(made.by_jax)(*args)
    assert_near(J, J_jax, reduced=8)
    assert_near(by_hand, by_jax, reduced=8)


def test_biases_are_penalised_where_it_is_asked_for() -> None:
    for asked in (False, True):
        config = settings(penalise_biases=asked, strength=1.0)
        J = make_cost(config, make_network(config, made_up()), made_up())
        params = jax.tree.map(jnp.ones_like, J.network.init(jax.random.key(0), (1, 5)))
        omega = J.terms["penalty"].reference(params, make_strength(config, jnp.float32))
        leaves = jax.tree.leaves(params)
        count = sum(leaf.size for leaf in leaves if asked or leaf.ndim == 2)
        assert_near(omega, jnp.asarray(count / 2), reduced=count)


def test_an_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    made = experiment()
    first, second = made.order(1), made.order(2)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(60))
    assert first.tolist() != second.tolist()
    assert made.order(1).tolist() == first.tolist()
    assert experiment(seed=1).order(1).tolist() != first.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kept"), [("float32", "float32"), ("bfloat16", "float32")])
def test_dtypes(dtype: str, kept: str) -> None:
    made = experiment(dtype=dtype)
    assert made.x.dtype == made.x_held.dtype == dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made.init())} == {kept}
    J, dparams = made.by_hand(made.init(), made.x, made.y, made.strength)
    assert J.dtype == kept
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dparams)} == {kept}


def test_float64_must_be_enabled() -> None:
    with pytest.raises(TrainingError, match="float64 must be enabled"):
        experiment(dtype="float64")
    with jax.enable_x64(True):
        made = experiment(dtype="float64")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(made.init())} == {"float64"}


def test_a_large_batch_is_the_whole_training_part() -> None:
    made = experiment(batch_size=1000)
    assert (made.batch_size, made.steps_per_epoch) == (60, 1)


def test_settings_are_hashable_and_equal_by_value() -> None:
    assert {Config(), Config()} == {Config()}
