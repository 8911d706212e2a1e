"""Penalties on activations: the mean over examples, filters, kinks, errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, activity_l1, activity_l2
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

RULES = [activity_l2, activity_l1]
PLAIN: dict[Rule, Callable] = {
    activity_l2: lambda h: jnp.mean(jnp.sum(h.reshape(h.shape[0], -1) ** 2, axis=1)) / 2,
    activity_l1: lambda h: jnp.mean(jnp.sum(jnp.abs(h).reshape(h.shape[0], -1), axis=1)),
}


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def activations() -> dict[str, jax.Array]:
    return {"hidden_1": normal(0, 4, 3), "hidden_2": normal(1, 4, 2, 5), "output": normal(2, 4)}


def both(rule: Rule, hs: Any, g: float = 1.0, **options: Any) -> tuple:
    """The value and the cotangent of the activations."""
    omega, saved = rule.forward(hs, **options)
    return omega, rule.backward(saved, jnp.full_like(omega, g))[0]


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_is_the_mean_over_examples_of_the_sum_over_everything_else(rule: Rule) -> None:
    hs = activations()
    hs["output"] = hs["output"][:, None]
    plain = jax.value_and_grad(lambda hs: sum(PLAIN[rule](h) for h in hs.values()))
    assert_near(both(rule, hs), jax.jit(plain)(hs), reduced=60)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_is_the_batch_mean_of_the_norms_of_torch() -> None:
    h = normal(0, 4, 3)
    assert_agrees_with_torch(
        activity_l1, lambda torch, h: torch.linalg.vector_norm(h, 1, dim=1).mean(), [h], reduced=12
    )
    assert_agrees_with_torch(
        activity_l2,
        lambda torch, h: (torch.linalg.vector_norm(h, dim=1) ** 2).mean() / 2,
        [h],
        reduced=12,
    )


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_batch_repeated_costs_the_same(rule: Rule) -> None:
    """A mean over the examples: its gradient per example halves."""
    h = normal(0, 4, 3)
    omega, dh = both(rule, {"h": h})
    twice, dtwice = both(rule, {"h": jnp.concatenate([h, h])})
    assert_near(twice, omega, reduced=24)
    assert_near(2 * dtwice["h"][:4], dh["h"])


def test_activity_l1_takes_the_subgradient_0_at_its_kink() -> None:
    hs = {"h": jnp.array([[0.0, -0.0], [2.0, -3.0]])}
    omega, dhs = both(activity_l1, hs, g=4.0)
    assert float(omega) == 5 / 2
    np.testing.assert_array_equal(dhs["h"], [[0.0, 0.0], [2.0, -2.0]])
    automatic = jax.grad(activity_l1.reference)(hs)["h"]
    np.testing.assert_array_equal(automatic, [[0.0, 0.0], [0.5, -0.5]])


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, {"hidden_1", "hidden_2", "output"}),
        ("hidden_*", {"hidden_1", "hidden_2"}),
        ("output", {"output"}),
        (("output", "*_1"), {"hidden_1", "output"}),
        (str.islower, {"hidden_1", "hidden_2", "output"}),
        (lambda name: name != "output", {"hidden_1", "hidden_2"}),
    ],
)
def test_a_filter_selects_layers_by_their_whole_name(
    rule: Rule, layers: Any, expected: set[str]
) -> None:
    hs = activations()
    omega, dhs = both(rule, hs, layers=layers)
    assert {name for name, dh in dhs.items() if dh is not None} == expected
    assert_near(omega, rule({name: hs[name] for name in expected}), reduced=60)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_filter_that_selects_nothing_is_refused(rule: Rule) -> None:
    message = (
        f"{rule.name}: layers must select at least one leaf, got 'hidden', which selects none of "
        "['hidden_1', 'hidden_2', 'output']. Give a glob that matches a whole path."
    )
    assert_refuses(rule, (activations(),), ValueError, message, layers="hidden")


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_selected_h_without_a_batch_axis_is_refused_and_another_is_not(rule: Rule) -> None:
    hs = {"h": normal(0, 4, 3), "scalar": jnp.ones(())}
    message = f"{rule.name}: a selected h must be (B, ...), got a scalar. Give h its batch axis."
    assert_refuses(rule, (hs,), ValueError, message)
    assert both(rule, hs, layers="h")[1]["scalar"] is None


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_selected_h_that_is_not_floating_is_refused_and_another_is_not(rule: Rule) -> None:
    hs = {"h": normal(0, 4, 3), "tokens": jnp.ones((4, 3), jnp.int32)}
    assert_refuses(rule, (hs,), TypeError, not_floating(rule.name, "tokens", "int32"))
    assert both(rule, hs, layers="h")[1]["tokens"] is None


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_the_mean_over_no_example_is_nan_and_over_no_unit_0(rule: Rule) -> None:
    omega, dhs = both(rule, {"h": jnp.zeros((0, 3))})
    assert np.isnan(omega)
    assert dhs["h"].shape == (0, 3)
    assert float(both(rule, {"h": jnp.zeros((4, 0))})[0]) == 0


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_low_precision_activations_are_summed_in_float32(rule: Rule) -> None:
    """4096 ones in each of two examples: in bfloat16 the sum would stay at 256."""
    omega, dhs = both(rule, {"h": jnp.ones((2, 4096), jnp.bfloat16)})
    assert (omega.dtype, dhs["h"].dtype) == (jnp.float32, jnp.bfloat16)
    assert float(omega) == {activity_l2: 2048, activity_l1: 4096}[rule]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        return (normal(seed, 8, 100).astype(jnp.bfloat16),)

    assert_no_worse(rule, PLAIN[rule], draw)
