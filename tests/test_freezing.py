"""Parameters that are not trained: no cotangent, no product computed, nothing saved for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Layer
from jaxprop.checking.compiling import quickly
from jaxprop.freezing import frozen
from tests.models.test_transformer import LABELS, REDUCED, inputs, tiny_gpt2
from tests.models.test_transformer import parameters as of_model
from tests.products import products
from tests.test_structure import X, block, by_hand, by_jax, parameters, saved_sizes
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

DEPTH = 5
Y = np.random.default_rng(3).normal(size=(3, 2))


def network(frozen_blocks: int = 0, save: int | None = None) -> Layer:
    stack = jaxprop.repeat(jaxprop.residual(block()), DEPTH, save=save, frozen=frozen_blocks)
    return jaxprop.chain(input=jaxprop.dense(4, jaxprop.tanh), stack=stack, output=jaxprop.dense(2))


def cost(frozen_blocks: int = 0) -> jaxprop.Cost:
    return jaxprop.cost(network(frozen_blocks), jaxprop.mean_squared_error)


def test_cotangents_are_those_of_the_rule_and_none_where_it_is_frozen() -> None:
    J = cost()
    part = jaxprop.freeze(J, ("input/*", "*/w"))
    params, x, y = parameters(network()), jnp.asarray(X), jnp.asarray(Y)

    @quickly
    def run(params: Any) -> tuple:
        value, saved = part.forward(params, x, y)
        dparams, *others = part.backward(saved, jnp.ones_like(value))
        truth, pullback = jax.vjp(J.reference, params, x, y)
        return (value, dparams, others[:2]), (truth, *pullback(jnp.ones_like(truth)))

    (value, dparams, others), (truth, dtruth, *dothers) = run(params)
    none = frozen(params, ("input/*", "*/w"))
    kept = jax.tree.map(lambda d, left_out: None if left_out else d, dtruth, none)
    assert sorted(jax.tree.leaves(none)) == [False] * 3 + [True] * 5
    assert_near((value, dparams, others), (truth, kept, dothers), reduced=64)


def test_the_gradient_is_that_of_the_reference_and_zero_where_it_is_frozen() -> None:
    part = jaxprop.freeze(cost(), "stack/*")
    params, x, y = parameters(network()), jnp.asarray(X), jnp.asarray(Y)

    @quickly
    def run(params: Any) -> tuple:
        truth = jax.value_and_grad(part.reference)(params, x, y)
        return (
            jaxprop.value_and_grad(part)(params, x, y),
            jax.value_and_grad(part)(params, x, y),
            truth,
        )

    by_hand, by_rule, truth = run(params)
    assert_near(by_hand, truth, reduced=64)
    assert_near(by_rule, truth, reduced=64)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_hand[1]["stack"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_hand[1]["output"]))


@pytest.mark.slow
def test_a_second_derivative_takes_what_is_frozen_as_a_constant_too() -> None:
    part = jaxprop.freeze(cost(), "stack/*")
    params, x, y = parameters(network()), jnp.asarray(X), jnp.asarray(Y)

    def second(J: Any) -> Any:
        def slope(params: Any) -> jax.Array:
            return jnp.sum(jnp.sin(jax.grad(J, argnums=1)(params, x, y)))

        return jax.grad(slope)(params)

    got, truth = quickly(lambda: (second(part), second(part.reference)))()
    assert_near(got, truth, reduced=256)


@pytest.mark.parametrize(
    ("k", "save"),
    [(2, None), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((2, 2), (4, 2), (5, None)))],
)
def test_a_stack_ends_its_backward_pass_above_its_frozen_blocks(k: int, save: int | None) -> None:
    inner = jaxprop.residual(block())
    whole = jaxprop.repeat(inner, DEPTH)
    part = jaxprop.repeat(inner, DEPTH, save=save, frozen=k)

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        others = by_jax(part, params, x), by_jax(part.reference, params, x)
        return by_hand(part, params, x), others, by_jax(whole.reference, params, x)

    got, others, (y, (dparams, dx)) = run(parameters(whole), jnp.asarray(X))
    truth = jax.tree.map(lambda d: d.at[:k].set(0), dparams)
    assert_near(others, ((y, (truth, 0 * dx)),) * 2, reduced=64)
    assert_near(got, (y, (None if k == DEPTH else truth, None)), reduced=64)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_a_language_model_has_no_gradient_below_its_frozen_blocks(k: int) -> None:
    """Of two blocks; the tied table has that of the last layer alone, unless it is frozen too."""
    model = tiny_gpt2(frozen=k)
    params, labels = of_model(model), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost)(params, inputs(), labels)
        return by_hand, jax.value_and_grad(model.cost.reference)(params, inputs(), labels)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    assert not np.any(got[1]["positions"])
    assert np.any(got[1]["embedding"])
    assert np.any(got[1]["blocks"]["attention"]["w_o"]) == (k < 2)


def test_no_product_is_run_for_what_is_frozen() -> None:
    """The forward pass has 2 + 2 DEPTH products, each with two in the backward pass."""
    params, x, y = parameters(network()), jnp.asarray(X), jnp.asarray(Y)
    forward = 2 + 2 * DEPTH

    def run(J: Any) -> int:
        return products(jaxprop.value_and_grad(J), params, x, y)

    assert products(cost(), params, x, y) == forward
    assert run(cost()) == 3 * forward - 1  # the input has no gradient
    assert run(jaxprop.freeze(cost(), ("input/*", "stack/*"))) == forward + 1
    for k in (2, DEPTH):
        above = 2 * 2 * (DEPTH - k)
        head = 2 if k < DEPTH else 1
        assert run(jaxprop.freeze(cost(k), "input/*")) == forward + above + head


def test_frozen_blocks_save_nothing() -> None:
    inner = jaxprop.residual(block())
    every = saved_sizes(jaxprop.repeat(inner, DEPTH))
    above = saved_sizes(jaxprop.repeat(inner, DEPTH, frozen=3))
    assert [size * 2 // DEPTH for size in every] == above
    assert saved_sizes(jaxprop.repeat(inner, DEPTH, frozen=DEPTH)) == []


@pytest.mark.slow
def test_memory_for_what_is_frozen_is_not_held() -> None:
    """Wide data, so that the activations that the weights' gradients read are most of it."""
    shapes = jax.eval_shape(lambda: parameters(network()))
    x, y = (jax.ShapeDtypeStruct((4096, n), float) for n in (4, 2))

    def temp(J: Any) -> int:
        program = jax.jit(jaxprop.value_and_grad(J)).lower(shapes, x, y).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temp(jaxprop.freeze(cost(), ("input/*", "stack/*"))) < temp(cost()) / 4
    assert temp(jaxprop.freeze(cost(4), "input/*")) < temp(cost()) / 2


def test_a_frozen_network_is_a_layer_of_one_part() -> None:
    """Or a cost would run the layers themselves, which are not frozen."""
    part = jaxprop.freeze(network(), "stack/*")
    J = jaxprop.cost(part, jaxprop.mean_squared_error)
    assert isinstance(part, Layer)
    assert isinstance(jaxprop.freeze(J, "*"), jaxprop.Cost)
    params = parameters(part)
    _, dparams = quickly(jaxprop.value_and_grad(J))(params, jnp.asarray(X), jnp.asarray(Y))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(dparams["stack"]))
    assert np.any(dparams["output"]["w"])


@pytest.mark.slow
def test_the_checker_passes() -> None:
    part = jaxprop.freeze(cost(2), ("input/*", "output/w"))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters(network()))
    with jax.numpy_dtype_promotion("standard"):
        report = jaxprop.check(
            part, params, jnp.float32(X), jnp.float32(Y), checks=["algebra", "linearity", "purity"]
        )
    assert report.verdict == "PASS", str(report)


def test_a_pattern_that_matches_nothing_is_refused_with_the_paths() -> None:
    part = jaxprop.freeze(cost(), ("stack/*", "inptu/*"))
    with pytest.raises(ValueError, match="freeze") as refused:
        part(parameters(network()), jnp.asarray(X), jnp.asarray(Y))
    said = str(refused.value)
    assert "got 'inptu/*', which selects none of ['input/b', 'input/w', 'output/b'" in said


def test_what_is_no_rule_or_no_pattern_is_refused() -> None:
    with pytest.raises(TypeError, match="freeze: must be given a Rule, got function"):
        jaxprop.freeze(lambda params: 0.0, "*")
    with pytest.raises(TypeError, match="freeze: patterns must be a glob"):
        jaxprop.freeze(cost(), None)


@pytest.mark.parametrize("k", [-1, 6, True, 1.0])
def test_a_number_of_frozen_blocks_that_cannot_be_is_refused(k: Any) -> None:
    message = f"repeat: frozen must be an integer from 0 to n, which is 5, got {k}."
    with pytest.raises(ValueError, match="repeat: frozen") as refused:
        jaxprop.repeat(block(), DEPTH, frozen=k)
    assert str(refused.value).startswith(message)
