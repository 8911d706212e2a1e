"""The held-out part, scores, and the cross-check: a number that a wrong gradient moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop.installing import PyTree
from jaxprop.train.measuring import cross_check, make_measure, predictions, scores
from jaxprop.train.planted import SLIPS, planted_value_and_grad
from tests.tolerances import assert_near, tolerance
from tests.train.small import experiment


def shaken(params: PyTree) -> PyTree:
    """The parameters, each leaf moved by noise of its own."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(key, p.shape) for key, p in zip(keys, leaves, strict=True)]
    return structure.unflatten([p + n for p, n in zip(leaves, noise, strict=True)])


def test_the_held_out_loss_has_no_penalty_in_it() -> None:
    for strength in (0.0, 10.0):
        made = experiment(strength=strength)
        params = made.init()
        measured = make_measure(made)(params)
        with jax.enable_x64(True):
            logits = jnp.asarray(made.J.network(params, made.x_held), jnp.float64)
            picked = jax.nn.log_softmax(logits)[jnp.arange(15), made.y_held]
            assert_near(measured.held_out_loss, -jnp.mean(picked), jnp.float32, reduced=15)


def test_gradient_norms_are_by_layer_with_the_penalty() -> None:
    made = experiment(strength=10.0)
    params = made.init()
    _, dparams = jax.jit(made.by_jax)(params, made.x[:16], made.y[:16], made.strength)
    norms = make_measure(made)(params).gradient_norms
    for layer, leaves in dparams.items():
        truth = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves.values()))
        assert_near(norms[layer], truth, reduced=64)


def test_scores_of_classes() -> None:
    made = experiment()
    truth = made.split.dataset.y[made.split.held_out]
    right = jnp.asarray(np.eye(3)[truth], jnp.float32)
    assert scores(made, right) == {"held_out_accuracy": 1.0}
    one_wrong = right.at[0].set(jnp.roll(right[0], 1))
    assert scores(made, one_wrong) == {"held_out_accuracy": 14 / 15}


def test_scores_of_two_classes() -> None:
    made = experiment("binary")
    logits = 2.0 * made.y_held - 1.0
    assert scores(made, logits) == {"held_out_accuracy": 1.0}
    assert scores(made, -logits) == {"held_out_accuracy": 0.0}


def test_scores_of_regression_are_in_the_targets_own_unit() -> None:
    made = experiment("regression")
    truth = made.split.dataset.y[made.split.held_out]
    assert_near(predictions(made, made.y_held), truth, "float32")
    off_by_two = made.y_held + 2.0 / made.split.y_scale
    got = scores(made, off_by_two)
    assert_near(jnp.asarray(got["held_out_rmse"]), jnp.asarray(2.0), reduced=100)
    assert_near(jnp.asarray(got["held_out_r2"]), jnp.asarray(1 - 4 / truth.var()), reduced=100)


def test_the_cross_check_is_rounding_for_the_right_gradient() -> None:
    made = experiment()
    found = cross_check(made, made.init(), made.order(1)[:16])
    assert 0 <= found.error <= tolerance("float32", 16)
    assert found.where in {f"{k}/{leaf}" for k in made.init() for leaf in "wb"}


@pytest.mark.parametrize("slip", ["E3", "E7", "N9"])
def test_the_cross_check_finds_a_planted_slip(slip: str) -> None:
    made = experiment(penalise_biases=True, strength=0.1)
    planted = planted_value_and_grad(made.J, SLIPS[slip].lines)
    object.__setattr__(made, "by_hand", planted)
    # With the biases at zero, as they begin, a slip in them shows nowhere.
    params = shaken(made.init())
    error = cross_check(made, params, made.order(1)[:16]).error
    assert error > 100 * tolerance("float32", 16)


def test_the_cross_check_of_float64_is_rounding_of_float64() -> None:
    with jax.enable_x64(True):
        made = experiment(dtype="float64")
        assert cross_check(made, made.init(), made.order(1)[:16]).error <= tolerance("float64", 16)


def test_a_gradient_that_is_nan_is_the_worst() -> None:
    made = experiment()

    def broken(*args: object) -> tuple:
        J, dparams = experiment().by_hand(*args)
        return J, dparams | {"hidden_2": jax.tree.map(lambda d: d * jnp.nan, dparams["hidden_2"])}

    object.__setattr__(made, "by_hand", broken)
    found = cross_check(made, made.init(), made.order(1)[:16])
    assert np.isnan(found.error)
    assert found.where.startswith("hidden_2/")
