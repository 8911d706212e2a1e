"""projection, lora_linear, bilinear, tied_unembedding: peers, frozen weights, precision, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprop import Rule, bilinear, lora_linear, projection, tied_unembedding
from jaxprop.rules.projection import labels
from jaxprop.samples import normal
from tests.rules.low_precision import assert_no_worse
from tests.rules.peers import assert_agrees_with_jax, assert_agrees_with_torch
from tests.rules.refusing import assert_refuses, not_floating
from tests.tolerances import assert_near

EQUATIONS = {
    "btc,chd->bthd": ((2, 3, 4), (4, 3, 2)),
    "bthd,hdc->btc": ((2, 3, 4, 2), (4, 2, 5)),
    "ebi,eio->ebo": ((2, 3, 4), (2, 4, 5)),
    "ab,ab->": ((3, 4), (3, 4)),
    "a,b->ba": ((3,), (4,)),
    "ab,b->b": ((3, 4), (4,)),
    "...i,io->...o": ((2, 3, 4), (4, 5)),
    "...a,...a->...": ((2, 3, 4), (2, 3, 4)),
    "a...,ab->b...": ((2, 3, 4), (2, 5)),
    " ab , bc -> ca": ((3, 4), (4, 2)),
    "abc,cde->be": ((2, 3, 4), (4, 5, 6)),
}


@pytest.mark.parametrize(
    "equation",
    [
        pytest.param(e, marks=() if place in (0, 10) else pytest.mark.slow)
        for place, e in enumerate(EQUATIONS)
    ],
)
@pytest.mark.usefixtures("x64")
def test_projection_is_the_einsum_of_jax(equation: str) -> None:
    args = [normal(i, *shape).astype("float64") for i, shape in enumerate(EQUATIONS[equation])]

    def peer(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, w)

    assert_agrees_with_jax(projection, peer, args, reduced=100, equation=equation)


@pytest.mark.usefixtures("x64")
def test_the_bias_of_a_projection_is_added_to_the_last_axes() -> None:
    x, w = normal(0, 2, 3, 4).astype("float64"), normal(1, 4, 3, 2).astype("float64")
    for shape in ((), (2,), (3, 2), (2, 3, 3, 2)):
        b = normal(2, *shape).astype("float64")
        assert_agrees_with_jax(
            projection,
            lambda x, w, b: jnp.einsum("btc,chd->bthd", x, w) + b,
            [x, w, b],
            reduced=50,
            equation="btc,chd->bthd",
        )


def test_an_ellipsis_becomes_letters_that_the_equation_has_not() -> None:
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    assert labels("...b,bc->...c", x, w) == ("adb", "bc", "adc")
    assert labels("...a,ab->...b", jnp.ones(4), w) == ("a", "ab", "b")


def test_what_one_operand_alone_is_summed_over_is_summed_in_float32() -> None:
    """4096 ones: in bfloat16 the sum would stay at 256."""
    x, w = jnp.ones((4096, 2), jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16)
    y, saved = projection.forward(x, w, equation="ab,bc->c")
    np.testing.assert_array_equal(y.astype(jnp.float32), np.full(3, 8192.0))
    dx, _, _ = projection.backward(saved, jnp.ones_like(y))
    np.testing.assert_array_equal(dx.astype(jnp.float32), np.full((4096, 2), 3.0))


@pytest.mark.parametrize(
    "equation", ["ab,bc", "ab->a", "a,b,c->abc", "aa,ab->b", "ab,bc->aa", "a1,b->ab", "", 3]
)
def test_an_equation_of_another_form_is_refused(equation: Any) -> None:
    message = (
        "projection: equation must be the labels of x, w and y, a letter each, such as "
        f"'btc,chd->bthd' or '...i,io->...o', got {equation!r}."
    )
    args = jnp.ones((3, 3)), jnp.ones((3, 3))
    assert_refuses(projection, args, ValueError, message, equation=equation)


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        (
            "...ab,...b->...a",
            "an ellipsis must stand for as many axes in each operand that has one, and in y too, "
            "got '...ab,...b->...a' for x (2, 3) and w (3, 4). Write letters instead.",
        ),
        (
            "...b,bc->c",
            "an ellipsis must stand for as many axes in each operand that has one, and in y too, "
            "got '...b,bc->c' for x (2, 3) and w (3, 4). Write letters instead.",
        ),
        (
            "abc,cd->abd",
            "x must have the axes 'abc' and w the axes 'cd', got x (2, 3) and w (3, 4). Give a "
            "label for each axis, or '...' for several.",
        ),
        (
            "ab,ac->bc",
            "the label 'a' must have one length, got 2 in x (2, 3) and 3 in w (3, 4). Nothing is "
            "broadcast: transpose, or drop the axis.",
        ),
        (
            "ab,bc->ad",
            "the label 'd' of y must be one of x's 'ab' or w's 'bc'. Broadcast the result instead.",
        ),
    ],
)
def test_an_equation_that_does_not_fit_the_axes_is_refused(equation: str, message: str) -> None:
    args = jnp.ones((2, 3)), jnp.ones((3, 4))
    assert_refuses(projection, args, ValueError, f"projection: {message}", equation=equation)


def test_a_bias_that_is_not_the_last_axes_of_y_is_refused() -> None:
    message = (
        "projection: b must be the last axes of y (2, 4), got (1, 4). Nothing is broadcast: add, "
        "drop or repeat an axis."
    )
    args = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((1, 4))
    assert_refuses(projection, args, ValueError, message, equation="ab,bc->ac")


def lora_arguments(dtype: str = "float32") -> list[jax.Array]:
    shapes = [(5, 3), (3, 4), (3, 2), (2, 4), (), (4,)]
    return [normal(i, *shape).astype(dtype) for i, shape in enumerate(shapes)]


@pytest.mark.usefixtures("x64")
def test_lora_linear_is_the_affine_map_of_the_two_weights_together() -> None:
    x, w, *others = lora_arguments("float64")

    def peer(x: Any, a: Any, b: Any, scale: Any, bias: Any) -> jax.Array:
        return x @ (w + scale * a @ b) + bias

    y, pullback = jax.vjp(peer, x, *others)
    got, saved = lora_linear.forward(x, w, *others)
    g = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    dx, dw, *dothers = lora_linear.backward(saved, g)
    assert dw is None
    assert_near((got, (dx, *dothers)), (y, pullback(g)), reduced=50)


def test_no_gradient_of_the_frozen_weight_is_computed_or_held() -> None:
    """Nothing of its shape is made in backward, and jax.grad of it is 0 either way."""
    args = lora_arguments()
    y, saved = lora_linear.forward(*args)
    jaxpr = jax.make_jaxpr(lora_linear.backward)(saved, y)
    made = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    assert (4, 3) in made  # w.T, for dx
    assert (3, 4) not in made
    for function in (lora_linear, lora_linear.reference):
        dw = jax.grad(lambda w, f=function: jnp.sum(f(args[0], w, *args[2:])))(args[1])
        assert not np.any(dw)


@pytest.mark.slow
def test_lora_linear_in_bfloat16_is_no_worse_than_plain_code() -> None:
    """Around one frozen weight."""
    w = normal(99, 16, 8).astype(jnp.bfloat16)

    def reference(x: Any, a: Any, b: Any, scale: Any, bias: Any) -> jax.Array:
        return lora_linear.reference(x, w.astype(x.dtype), a, b, scale, bias)

    def forward(x: Any, *others: Any) -> tuple:
        return lora_linear.forward(x, w, *others)

    def backward(saved: Any, g: jax.Array) -> tuple:
        dx, _, *others = lora_linear.backward(saved, g)
        return dx, *others

    def plain(x: Any, a: Any, b: Any, scale: Any, bias: Any) -> jax.Array:
        return x @ w + scale * ((x @ a) @ b) + bias

    def draw(seed: int) -> tuple:
        shapes = [(64, 16), (16, 4), (4, 8), (), (8,)]
        return tuple(normal(seed + i, *s).astype(jnp.bfloat16) for i, s in enumerate(shapes))

    assert_no_worse(Rule(reference, forward, backward), plain, draw)


@pytest.mark.parametrize("name", lora_linear.argument_names)
def test_integers_are_refused(name: str) -> None:
    args = dict(zip(lora_linear.argument_names, lora_arguments(), strict=True))
    args[name] = args[name].astype(jnp.int32)
    message = not_floating("lora_linear", name, "int32")
    assert_refuses(lora_linear, tuple(args.values()), TypeError, message)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "w",
            (4, 3),
            "x must be (..., n_in) and w (n_in, n_out), got x (5, 3) and w (4, 3). Weights are "
            "stored (n_in, n_out): transpose a (n_out, n_in) matrix.",
        ),
        (
            "a",
            (2, 3),
            "a must be (3, rank) and b (rank, 4), got a (2, 3) and b (2, 4). Other packages store "
            "them the other way round: transpose.",
        ),
        (
            "b",
            (3, 4),
            "a must be (3, rank) and b (rank, 4), got a (3, 2) and b (3, 4). Other packages store "
            "them the other way round: transpose.",
        ),
        (
            "scale",
            (1,),
            "scale must be a scalar, got (1,). Give one number, such as alpha / rank.",
        ),
        (
            "bias",
            (3,),
            "bias must be (n_out,) = (4,), got (3,). Give one bias per column of w, or None.",
        ),
    ],
)
def test_lora_arguments_that_do_not_fit_are_refused(name: str, shape: tuple, message: str) -> None:
    args = dict(zip(lora_linear.argument_names, lora_arguments(), strict=True))
    args[name] = jnp.ones(shape)
    assert_refuses(lora_linear, tuple(args.values()), ValueError, f"lora_linear: {message}")


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_bilinear_is_that_of_torch() -> None:
    shapes = [(2, 3, 4), (2, 3, 5), (6, 4, 5), (6,)]
    args = [normal(i, *shape).astype("float64") for i, shape in enumerate(shapes)]
    assert_agrees_with_torch(
        bilinear, lambda torch, *args: torch.nn.functional.bilinear(*args), args, reduced=50
    )


@pytest.mark.parametrize(
    ("x1", "x2", "w", "b", "message"),
    [
        (
            (2, 3),
            (2, 4),
            (3, 4, 5),
            None,
            "x1 must be (..., n_1), x2 (..., n_2) and w (n_out, n_1, n_2), got x1 (2, 3), x2 "
            "(2, 4) and w (3, 4, 5). The outputs are the first axis of w.",
        ),
        (
            (2, 3),
            (1, 4),
            (5, 3, 4),
            None,
            "x1 and x2 must have the same axes before the last, got (2, 3) and (1, 4). Nothing is "
            "broadcast: add, drop or repeat an axis.",
        ),
        (
            (2, 3),
            (2, 4),
            (5, 3, 4),
            (1, 5),
            "b must be (n_out,) = (5,), got (1, 5). Give one bias per output, or None.",
        ),
    ],
)
def test_bilinear_arguments_that_do_not_fit_are_refused(
    x1: tuple, x2: tuple, w: tuple, b: tuple | None, message: str
) -> None:
    args = jnp.ones(x1), jnp.ones(x2), jnp.ones(w), None if b is None else jnp.ones(b)
    assert_refuses(bilinear, args, ValueError, f"bilinear: {message}")


def test_a_table_of_another_width_is_refused() -> None:
    message = (
        "tied_unembedding: h must be (..., D) and table (V, D), got h (2, 3) and table (3, 4). "
        "Transpose a (D, V) matrix, or use linear."
    )
    args = jnp.ones((2, 3)), jnp.ones((3, 4))
    assert_refuses(tied_unembedding, args, ValueError, message)
    message = not_floating("tied_unembedding", "h", "int32")
    assert_refuses(tied_unembedding, (jnp.ones((2, 3), jnp.int32), args[1]), TypeError, message)
