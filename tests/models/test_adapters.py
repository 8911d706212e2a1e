"""Low-rank adapters: gradients by hand, nothing for the base, merged as they were, errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop.checking.compiling import quickly
from jaxprop.models.adapters import adapt, adapters, merge, other_than_adapters
from jaxprop.models.language import LanguageModel, matrices
from tests.models.test_transformer import (
    LABELS,
    REDUCED,
    each_model,
    inputs,
    parameters,
    slow,
    tiny_gpt2,
    tiny_llama,
)
from tests.products import products
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

RANK = 2
OF_ATTENTION = "blocks/attention/*"


def adapted(model: LanguageModel, patterns: Any = None) -> Any:
    """Random parameters with adapters whose b is random too."""
    params = adapt(parameters(model), patterns, RANK, 3.0, jax.random.key(2))
    random = np.random.default_rng(4)

    def drawn(path: tuple, leaf: jax.Array) -> jax.Array:
        is_b = jax.tree_util.keystr(path, simple=True, separator="/").endswith("/b")
        return jnp.asarray(random.normal(size=leaf.shape)) if is_b else leaf

    return jax.tree_util.tree_map_with_path(drawn, params)


@pytest.mark.parametrize(
    ("make", "options", "patterns"),
    [
        (tiny_llama, {"qkv_bias": True}, None),
        slow(tiny_gpt2, {}, None),
        slow(tiny_gpt2, {"save": 1}, ("*/w_qkv", "*/w_in")),
        slow(tiny_llama, {"frozen": 1}, OF_ATTENTION),
    ],
)
def test_loss_and_gradients_are_those_of_the_reference(
    make: Callable, options: dict, patterns: Any
) -> None:
    model = make(**options)
    params, labels = adapted(model, patterns), jnp.asarray(LABELS)

    @quickly
    def run(params: Any) -> tuple:
        by_hand = jaxprop.value_and_grad(model.cost)(params, inputs(), labels)
        return by_hand, jax.value_and_grad(model.cost.reference)(params, inputs(), labels)

    got, truth = run(params)
    assert_near(got, truth, reduced=REDUCED)
    for place in adapters(got[1]).values():
        assert np.any(place.a)
        assert np.any(place.b)
        assert not np.any(place.w)


@pytest.mark.parametrize("make", [slow(tiny_gpt2), tiny_llama])
def test_merged_and_unmerged_logits_agree_and_new_adapters_change_none(make: Callable) -> None:
    model = make()
    network, params = quickly(model.network.reference), adapted(model)
    merged = merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(parameters(model))
    assert_near(network(merged, inputs()), network(params, inputs()), reduced=REDUCED)
    fresh = adapt(parameters(model), None, RANK, 3.0, jax.random.key(0))
    bare = network(parameters(model), inputs())
    assert_near(network(fresh, inputs()), bare)
    assert not np.allclose(network(merged, inputs()), bare)


@pytest.mark.slow
@each_model
def test_no_product_is_run_for_the_base(make: Callable) -> None:
    """One less per matrix and block than with everything trained, five more for its adapter."""
    model = make()
    bare, labels = parameters(model), jnp.asarray(LABELS)
    whole = products(jaxprop.value_and_grad(model.cost), bare, inputs(), labels)
    params = adapted(model, OF_ATTENTION)
    with_base = products(jaxprop.value_and_grad(model.cost), params, inputs(), labels)
    places = model.config.depth * len(adapters(params))
    # Forward x @ a and u @ b; backward u again, du, du @ a.T, x.T @ du, u.T @ g.
    assert with_base == whole + places * (7 - 1)
    frozen = jaxprop.freeze(model.cost, other_than_adapters)
    alone = products(jaxprop.value_and_grad(frozen), params, inputs(), labels)
    others = model.config.depth * len(adapters(adapted(model))) - places
    assert alone < with_base - others  # the matrices without adapters, the tables, the head


@pytest.mark.slow
@each_model
def test_text_is_read_from_a_cache_as_at_once(make: Callable) -> None:
    model = make()
    params, tokens = adapted(model), inputs().tokens
    whole = quickly(model.network.reference)(params, inputs())
    past = model.decoder.empty(params, *tokens.shape)
    read = quickly(model.decoder.read)
    first, past = read(params, tokens[:, :4], past)
    rest, _ = read(params, tokens[:, 4:], past)
    assert_near(jnp.concatenate([first, rest], axis=1), whole, reduced=REDUCED)


@pytest.mark.slow
def test_the_checker_passes() -> None:
    model = tiny_llama()
    J = jaxprop.freeze(model.cost, other_than_adapters)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), adapted(model))
    checks = ["algebra", "linearity", "purity"]
    with jax.numpy_dtype_promotion("standard"):
        report = jaxprop.check(J, params, inputs(), jnp.asarray(LABELS), checks=checks)
    assert report.verdict == "PASS", str(report)


def test_adapters_are_where_the_patterns_say_in_float32_at_least() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters(tiny_llama()))
    made = adapt(params, ("*/w_q", "*/w_down"), 1, 2.0, jax.random.key(0))
    places = adapters(made)
    assert set(places) == {"blocks/attention/w_q", "blocks/feed_forward/w_down"}
    place = places["blocks/feed_forward/w_down"]
    assert (place.a.shape, place.b.shape, place.scale) == ((2, 6, 1), (2, 1, 4), 2.0)
    assert {place.w.dtype, place.a.dtype} == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    assert float(jnp.max(jnp.abs(place.a))) <= 6**-0.5
    assert not jnp.array_equal(place.a[0], place.a[1])
    again = adapt(made, "*/w_up", 1, 2.0, jax.random.key(0))
    assert set(adapters(again)) == {*places, "blocks/feed_forward/w_up"}
    assert merge(made)["blocks"]["attention"]["w_q"].dtype == jnp.bfloat16


def test_adapters_are_matrices_to_weight_decay_and_alone_are_not_frozen() -> None:
    params = adapt(parameters(tiny_gpt2()), "*/w_o", 1, 1.0, jax.random.key(0))
    is_frozen = jaxprop.freezing.frozen(params, other_than_adapters)
    attention = is_frozen["blocks"]["attention"]
    assert (attention["w_o"].w, attention["w_o"].a, attention["w_o"].b) == (True, False, False)
    assert sum(map(bool, jax.tree.leaves(is_frozen))) == len(jax.tree.leaves(is_frozen)) - 2
    decayed = matrices(params)["blocks"]["attention"]
    assert (decayed["w_o"].a, decayed["w_o"].b, decayed["b_o"]) == (True, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("*/w_q", 0, 1.0), "adapt: rank must be a positive whole number, got 0."),
        (("*/w_q", 1, 0.0), "adapt: alpha must be finite and above 0, got 0.0."),
        (
            (("*/w_q", "*/w_x"), 1, 1.0),
            "adapt: patterns must select at least one leaf, got '*/w_x', which selects none of "
            "['blocks/attention/w_k', ",
        ),
        (("embedding", 1, 1.0), "adapt: patterns must select at least one leaf, got 'embedding'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match="adapt: ") as refused:
        adapt(parameters(tiny_llama()), *arguments, jax.random.key(0))
    assert str(refused.value).startswith(message)
