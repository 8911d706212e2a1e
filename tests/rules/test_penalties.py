"""Penalties on parameters: filters, kinks, precision, errors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprop import Rule, elastic_net, l1, l2
from tests.rules.low_precision import assert_no_worse
from tests.rules.oracle import ids
from tests.rules.peers import assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

RULES = [l2, l1, elastic_net]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def parameters() -> dict:
    return {
        "hidden_1": {"w": normal(0, 3, 4), "b": normal(1, 4)},
        "output": {"w": normal(2, 4, 2), "b": normal(3, 2)},
    }


def both(rule: Rule, params: Any, *args: Any, g: float = 1.0, **options: Any) -> tuple:
    """The value and the cotangent of the parameters."""
    omega, saved = rule.forward(params, *args, **options)
    return omega, rule.backward(saved, jnp.full_like(omega, g))[0]


def selected(rule: Rule, params: Any, leaves: Any) -> set[str]:
    """The paths of the leaves that have a gradient."""
    _, dparams = both(rule, params, leaves=leaves)
    paths = jax.tree_util.tree_leaves_with_path(dparams)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}


def test_l2_is_half_the_squared_norm_of_optax() -> None:
    def peer(params: Any) -> jax.Array:
        return optax.tree.norm(params, squared=True) / 2

    truth = jax.jit(jax.value_and_grad(peer))(parameters())
    assert_near(both(l2, parameters()), truth, reduced=26)


def test_l1_is_the_1_norm_of_optax() -> None:
    value, dparams = both(l1, parameters())
    norm = jax.jit(lambda params: optax.tree.norm(params, ord=1))(parameters())
    assert_near(value, norm, reduced=26)
    assert_near(dparams, jax.tree.map(np.sign, parameters()))


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_penalties_of_one_array_are_those_of_torch() -> None:
    w = normal(0, 3, 4)
    assert_agrees_with_torch(l2, lambda torch, w: torch.linalg.norm(w) ** 2 / 2, [w], reduced=12)
    assert_agrees_with_torch(l1, lambda torch, w: w.abs().sum(), [w], reduced=12)

    def mixture(torch: Any, w: Any, ratio: Any) -> Any:
        return ratio * w.abs().sum() + (1 - ratio) * (w * w).sum() / 2

    assert_agrees_with_torch(elastic_net, mixture, [w, jnp.asarray(0.3)], reduced=12)


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        (None, {"hidden_1/w", "hidden_1/b", "output/w", "output/b"}),
        ("*", {"hidden_1/w", "hidden_1/b", "output/w", "output/b"}),
        ("*/w", {"hidden_1/w", "output/w"}),
        ("hidden_*", {"hidden_1/w", "hidden_1/b"}),
        ("hidden_1/w", {"hidden_1/w"}),
        ("hidden_[0-9]/?", {"hidden_1/w", "hidden_1/b"}),
        (("output/b", "hidden_1/b"), {"hidden_1/b", "output/b"}),
        (("*/w", "hidden_1/w"), {"hidden_1/w", "output/w"}),
        (len, {"hidden_1/w", "hidden_1/b", "output/w", "output/b"}),
        (lambda path: "hidden" not in path, {"output/w", "output/b"}),
    ],
)
def test_a_filter_selects_the_leaves_whose_whole_path_it_matches(
    rule: Rule, leaves: Any, expected: set[str]
) -> None:
    params = parameters()
    assert selected(rule, params, leaves) == expected
    kept = {path: params[path.split("/")[0]][path.split("/")[1]] for path in expected}
    assert_near(rule(params, leaves=leaves), rule(kept), reduced=26)


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize("leaves", ["w", "W", "*/W", "hidden_1", "hidden_1/", (), ("x", "y"), ""])
def test_a_filter_that_selects_nothing_is_refused(rule: Rule, leaves: Any) -> None:
    """A part of a path is no match, and case matters."""
    message = (
        f"{rule.name}: leaves must select at least one leaf, got {leaves!r}, which selects none of "
        "['hidden_1/b', 'hidden_1/w', 'output/b', 'output/w']. Give a glob that matches a whole "
        "path."
    )
    assert_refuses(rule, (parameters(),), ValueError, message, leaves=leaves)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_filter_on_no_leaf_at_all_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"which selects none of \[\]"):
        rule({}, leaves="*")


class Pair(NamedTuple):
    w: jax.Array
    b: jax.Array


def test_paths_go_through_lists_tuples_and_records() -> None:
    params = {"layers": [Pair(normal(0, 2), normal(1, 2)), (normal(2, 3),)]}
    assert selected(l2, params, None) == {"layers/0/w", "layers/0/b", "layers/1/0"}
    assert selected(l2, params, "*/w") == {"layers/0/w"}
    assert selected(l2, params, "layers/1/*") == {"layers/1/0"}


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_an_array_alone_is_a_leaf_with_an_empty_path(rule: Rule) -> None:
    w = normal(0, 3)
    assert_near(rule(w), rule({"w": w}), reduced=3)
    assert_near(rule(w, leaves="*"), rule(w))
    with pytest.raises(ValueError, match=r"which selects none of \[''\]"):
        rule(w, leaves="w")


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_leaf_that_is_not_selected_has_no_gradient_and_any_dtype(rule: Rule) -> None:
    params = {"w": normal(0, 3), "steps": jnp.arange(3), "b": normal(1, 2)}
    omega, dparams = both(rule, params, leaves="w")
    assert_near(omega, rule({"w": params["w"]}))
    assert dparams["steps"] is None
    assert dparams["b"] is None


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_selected_leaf_that_is_not_floating_is_refused_by_its_path(rule: Rule) -> None:
    params = {"layer": {"w": normal(0, 3), "steps": jnp.arange(3)}}
    message = not_floating(rule.name, "layer/steps", "int32")
    assert_refuses(rule, (params,), TypeError, message)
    assert_refuses(rule, (jnp.arange(3),), TypeError, not_floating(rule.name, "the array", "int32"))


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize("params", [{}, (), None, {"w": None}])
def test_no_leaf_costs_nothing(rule: Rule, params: Any) -> None:
    omega, saved = rule.forward(params)
    assert float(omega) == 0
    assert omega.dtype == jnp.float32
    assert not jax.tree.leaves(rule.backward(saved, jnp.ones(()))[0])


def test_l1_takes_the_subgradient_0_at_its_kink() -> None:
    w = jnp.array([0.0, -0.0, 2.0, -3.0])
    omega, dw = both(l1, w, g=2.0)
    assert float(omega) == 5
    np.testing.assert_array_equal(dw, [0.0, 0.0, 2.0, -2.0])
    np.testing.assert_array_equal(jax.grad(l1.reference)(w), [0.0, 0.0, 1.0, -1.0])


def test_elastic_net_takes_the_subgradient_0_of_its_l1_part_at_the_kink() -> None:
    w = jnp.array([0.0, -0.0, 2.0])
    np.testing.assert_array_equal(both(elastic_net, w, 0.25)[1], [0.0, 0.0, 0.25 + 0.75 * 2])
    np.testing.assert_array_equal(jax.grad(elastic_net.reference)(w, 0.25)[:2], [0.0, 0.0])


@pytest.mark.parametrize(("ratio", "alone"), [(0.0, l2), (1.0, l1)])
def test_elastic_net_is_l2_at_ratio_0_and_l1_at_ratio_1(ratio: float, alone: Rule) -> None:
    assert_near(both(elastic_net, parameters(), ratio), both(alone, parameters()), reduced=26)


def test_the_cotangent_of_the_ratio_is_l1_less_l2() -> None:
    _, saved = elastic_net.forward(parameters(), jnp.float32(0.3))
    _, dratio = elastic_net.backward(saved, jnp.asarray(2.0))
    assert_near(dratio, 2 * (l1(parameters()) - l2(parameters())), reduced=26)


def test_a_ratio_of_any_floating_dtype_is_taken() -> None:
    for ratio in (jnp.bfloat16(0.5), jnp.float16(0.5), np.float32(0.5), 0.5):
        omega, saved = elastic_net.forward(parameters(), ratio)
        assert_near(omega, elastic_net(parameters()), reduced=26)
        assert elastic_net.backward(saved, omega)[1].dtype == jnp.asarray(ratio).dtype


@pytest.mark.parametrize("ratio", [1, True])
def test_a_ratio_that_is_not_floating_is_refused(ratio: Any) -> None:
    message = not_floating("elastic_net", "l1_ratio", str(jnp.asarray(ratio).dtype))
    assert_refuses(elastic_net, (parameters(), jnp.asarray(ratio)), TypeError, message)


def test_a_ratio_that_is_no_scalar_is_refused() -> None:
    message = (
        "elastic_net: l1_ratio must be a scalar, got (2,). Give one number for all leaves; add two "
        "penalties for two ratios."
    )
    assert_refuses(elastic_net, (parameters(), jnp.array([0.1, 0.2])), ValueError, message)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_low_precision_leaves_are_summed_in_float32(rule: Rule) -> None:
    """4096 ones: in bfloat16 the sum would stay at 256."""
    w = jnp.ones(4096, jnp.bfloat16)
    omega, dw = both(rule, {"w": w})
    assert omega.dtype == jnp.float32
    assert dw["w"].dtype == jnp.bfloat16
    assert float(omega) == {l2: 2048, l1: 4096, elastic_net: 3072}[rule]


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_omega_is_as_wide_as_the_widest_leaf(rule: Rule) -> None:
    with jax.enable_x64(True):
        mixed = {"low": jnp.ones(2, jnp.bfloat16), "high": jnp.ones(2, jnp.float64)}
        omega, dmixed = both(rule, mixed)
        assert omega.dtype == jnp.float64
        assert {name: leaf.dtype.name for name, leaf in dmixed.items()} == {
            "low": "bfloat16",
            "high": "float64",
        }


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_infinite_and_nan_parameters_show(rule: Rule) -> None:
    assert float(rule(jnp.array([jnp.inf, 1.0]))) == np.inf
    assert np.isnan(rule(jnp.array([jnp.nan, 1.0])))


PLAIN: dict[Rule, Callable] = {
    l2: lambda w: jnp.sum(w * w) / 2,
    l1: lambda w: jnp.sum(jnp.abs(w)),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", PLAIN, ids=ids)
def test_bfloat16_is_no_worse_than_automatic_differentiation_of_plain_code(rule: Rule) -> None:
    def draw(seed: int) -> tuple:
        return (normal(seed, 1000).astype(jnp.bfloat16),)

    assert_no_worse(rule, PLAIN[rule], draw)
