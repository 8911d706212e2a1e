"""MLP and LeNet: gradients by hand, shapes of any size, the checker, errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.classifier import Classifier
from jaxprop.models.lenet import LeNetConfig, lenet
from jaxprop.models.mlp import MlpConfig, mlp
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

LABELS = np.array([0, 2, 1, 2], np.int32)
# Sums over batch, places and widths, one inside the other.
REDUCED = 512


def tiny_mlp() -> tuple[Classifier, Any]:
    model = mlp(MlpConfig(5, (4, 6), 3, (jaxprop.tanh, jaxprop.relu)))
    return model, normal(1, 4, 5)


def tiny_lenet() -> tuple[Classifier, Any]:
    """Of odd height, so that pooling leaves a row out."""
    model = lenet(LeNetConfig((5, 4, 2), 3, channels=(3, 4), widths=(6,), window=3))
    return model, normal(1, 4, 5, 4, 2)


MODELS: dict[str, Callable[[], tuple[Classifier, Any]]] = {"mlp": tiny_mlp, "lenet": tiny_lenet}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def parameters(model: Any) -> Any:
    """Random ones, biases and norms too, of the shapes that init makes."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape)), shapes)


@pytest.mark.parametrize(
    "make", [pytest.param(tiny_mlp, marks=pytest.mark.slow), tiny_lenet], ids=MODELS
)
def test_loss_and_gradients_are_those_of_the_reference(make: Callable) -> None:
    model, x = make()
    params, labels = parameters(model), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost)(params, x, labels)
        return by_hand, jax.value_and_grad(model.cost.reference)(params, x, labels)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got[1]))


def test_the_parts_of_lenet_have_the_sizes_that_follow_from_the_image() -> None:
    """LeCun's, but for the padding of the second convolution: 7 x 7 places, not 5 x 5."""
    model = lenet(LeNetConfig((28, 28, 1), 10))
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.init(jax.random.key(0))))
    assert shapes == {
        "conv_1": {"w": (5, 5, 1, 6), "b": (6,)},
        "pool_1": {},
        "conv_2": {"w": (5, 5, 6, 16), "b": (16,)},
        "pool_2": {},
        "flatten": {},
        "hidden_1": {"w": (7 * 7 * 16, 120), "b": (120,)},
        "hidden_2": {"w": (120, 84), "b": (84,)},
        "output": {"w": (84, 10), "b": (10,)},
    }


def test_an_mlp_without_hidden_layers_is_a_linear_model() -> None:
    model = mlp(MlpConfig(5, (), 3))
    params, x = parameters(model), normal(2, 4, 5)
    truth = x @ params["output"]["w"] + params["output"]["b"]
    assert_near(model.network(params, x), truth, reduced=5)


@pytest.mark.slow
@each_model
def test_the_checker_passes(make: Callable) -> None:
    """Everything it knows but second order, in float32 and, for the algebra, in float64."""
    model, x = make()
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (parameters(model), x))
    with jax.numpy_dtype_promotion("standard"):
        report = jaxprop.check(model.cost, params, x, jnp.asarray(LABELS), order=1)
    assert report.verdict == "PASS", str(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LeNetConfig((3, 8, 1), 10),
            "LeNetConfig: an image must be at least 4 places high and wide, to be halved 2 times, "
            "got 3 x 8. Take fewer channels.",
        ),
        (
            lambda: LeNetConfig((8, 8), 10),
            "LeNetConfig: image must be (height, width, colours), got (8, 8).",
        ),
        (
            lambda: LeNetConfig((8, 8, 1), 10, channels=(6, 0)),
            "LeNetConfig: channels[1] must be a positive whole number, got 0.",
        ),
        (
            lambda: LeNetConfig((8, 8, 1), 10, widths=[5]),
            "LeNetConfig: widths must be a tuple of whole numbers, got [5].",
        ),
        (
            lambda: MlpConfig(5, (4, 4), 3, (jaxprop.relu,) * 3),
            "MlpConfig: activations must be one rule, or one for each of the 2 widths, got 3.",
        ),
        (lambda: MlpConfig(0, (), 3), "MlpConfig: inputs must be a positive whole number, got 0."),
    ],
)
def test_a_shape_that_cannot_be_is_refused(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match="Config: ") as refused:
        make()
    assert str(refused.value) == message
