"""repeat: what is saved does not change the result; a context that every block reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop
from jaxprop import Layer
from jaxprop.checking.compiling import quickly
from jaxprop.rules.linear import linear
from tests.test_structure import X, block, by_hand, by_jax, noise, parameters, saved_sizes
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")

DEPTH = 5


def shifted() -> Layer:
    """h + (h + context["shift"]) @ w, with an integer in the context that nothing is done with."""

    def shifted(params: Any, x: tuple, key: jax.Array | None = None) -> jax.Array:
        h, context = x
        return h + (h + context["shift"]) @ params["w"]

    def forward(params: Any, x: tuple, key: jax.Array | None) -> tuple:
        h, context = x
        moved, saved = linear.forward(h + context["shift"], params["w"])
        return h + moved, (saved, context)

    def backward(res: Any, g: jax.Array) -> tuple:
        dx, dw, _ = linear.backward(res[0], g)
        return {"w": dw}, (g + dx, {"shift": dx, "number": None}), None

    return Layer(shifted, forward, backward, init=jaxprop.dense(4, bias=False).init)


@pytest.mark.parametrize("save", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 5))])
def test_what_is_saved_changes_no_value_and_no_cotangent(save: int) -> None:
    """Keys included: 2 leaves a shorter loop at the end, 5 is the whole stack."""
    key, x = jax.random.key(1), jnp.asarray(X)
    inner = jaxprop.residual(jaxprop.chain(noise=noise(), block=block()))
    every, some = jaxprop.repeat(inner, DEPTH), jaxprop.repeat(inner, DEPTH, save=save)

    @quickly
    def run(params: Any, x: jax.Array) -> tuple:
        truth = by_jax(lambda p, x: every.reference(p, x, key), params, x)
        return by_hand(some, params, x, key), by_hand(every, params, x, key), truth

    got, with_all, truth = run(parameters(every), x)
    assert_near(with_all, truth, reduced=256)
    assert_near(got, truth, reduced=256)


@pytest.mark.parametrize("save", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_every_block_reads_the_context_and_its_cotangents_add_up(save: int | None) -> None:
    network = jaxprop.repeat(shifted(), DEPTH, save=save)
    random = np.random.default_rng(2)
    params = {"w": jnp.asarray(random.normal(size=(DEPTH, 4, 4)) / 4)}
    h, shift = (jnp.asarray(random.normal(size=(3, 4))) for _ in range(2))

    def plain(params: Any, h: jax.Array, shift: jax.Array) -> jax.Array:
        for w in params["w"]:
            h = h + (h + shift) @ w
        return h

    @quickly
    def run(params: Any, h: jax.Array, shift: jax.Array) -> tuple:
        x = h, {"shift": shift, "number": jnp.int32(3)}
        y, saved = network.forward(params, x)
        dparams, (dh, dcontext), _ = network.backward(saved, jnp.cos(y))
        truth, pullback = jax.vjp(plain, params, h, shift)
        return (y, (dparams, dh, dcontext["shift"])), (truth, pullback(jnp.cos(truth)))

    got, truth = run(params, h, shift)
    assert_near(got, truth, reduced=64)


def test_save_keeps_the_inputs_of_every_so_many_blocks_alone() -> None:
    for save, kept in ((1, [DEPTH * X.size]), (2, [2 * X.size, X.size]), (5, [X.size])):
        assert saved_sizes(jaxprop.repeat(jaxprop.residual(block()), DEPTH, save=save)) == kept


def test_what_a_block_saves_twice_and_the_context_are_held_once() -> None:
    """Two products of one h; the context is an argument, as params are."""

    def forward(params: Any, x: tuple, key: jax.Array | None) -> tuple:
        h, context = x
        a, of_a = linear.forward(h, params["a"])
        b, of_b = linear.forward(h, params["b"])
        return a + b + context, (of_a, of_b, context)

    pair = Layer(
        lambda params, x, key=None: x[0] @ params["a"] + x[0] @ params["b"] + x[1],
        forward,
        lambda res, g: (None, None, None),
        init=lambda key, x_shape, dtype=None: {},
    )
    params = {name: jnp.ones((DEPTH, 4, 4)) for name in "ab"}
    context = jnp.ones((3, 4))
    _, saved = jaxprop.repeat(pair, DEPTH).forward(params, (jnp.asarray(X), context))
    known = {id(leaf) for leaf in (*jax.tree.leaves(params), context)}
    own = {id(leaf): leaf for leaf in jax.tree.leaves(saved) if id(leaf) not in known}
    assert [leaf.shape for leaf in own.values()] == [(DEPTH, *X.shape)]


@pytest.mark.parametrize("save", [0, -1, 1.0, True])
def test_a_save_that_is_no_positive_integer_is_refused(save: Any) -> None:
    with pytest.raises(ValueError, match=rf"^repeat: save must be a positive integer, got {save}"):
        jaxprop.repeat(block(), DEPTH, save=save)


def test_a_save_beyond_n_is_refused() -> None:
    message = (
        "repeat: save must be at most n, which is 5, got 6. save=5 saves the input of the stack "
        "alone."
    )
    with pytest.raises(ValueError, match="at most n") as refused:
        jaxprop.repeat(block(), DEPTH, save=6)
    assert str(refused.value) == message
