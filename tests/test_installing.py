"""What the installer does to cotangents on their way in and out, and to outputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop import Rule
from tests.small_rules import masked, nested, statistics
from tests.tolerances import assert_near


def product_reference(x, w):
    return x * w


def product(backward: Callable, forward: Callable | None = None) -> Rule:
    """The rule y = x * w, with this backward."""
    return Rule(product_reference, forward or (lambda x, w: (x * w, (x, w))), backward)


def backward_of(rule: Rule, *args: Any, g: Any = None) -> tuple:
    y, saved = rule.forward(*args)
    return rule.backward(saved, jax.tree.map(jnp.ones_like, y) if g is None else g)


def mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def right(res, g):
    x, w = res
    return g * w, g * x


# Incoming cotangents


def test_a_cotangent_of_the_wrong_shape_is_refused() -> None:
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    _, saved = jaxprop.linear.forward(x, w)
    message = r"^linear.backward: g must have the shape of the output, \(2, 4\), got \(1, 4\). Sum"
    with pytest.raises(ValueError, match=message):
        jaxprop.linear.backward(saved, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"^linear.backward: g must .* got \(\)"):
        jaxprop.linear.backward(saved, 1.0)


def test_a_cotangent_of_the_wrong_shape_is_named_by_its_path() -> None:
    (y, parts), saved = statistics.forward(jnp.ones((4, 3)), jnp.ones(3))
    message = r"^statistics.backward: g\[1\]\['mean'\] must have the shape of the output, \(3,\)"
    with pytest.raises(ValueError, match=message):
        statistics.backward(saved, (y, parts | {"mean": y}))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda y, parts: y,
        lambda y, parts: (y,),
        lambda y, parts: (y, parts["mean"]),
        lambda y, parts: (y, {"mean": parts["mean"]}),
        lambda y, parts: ((y, y), parts),
        lambda y, parts: [y, parts],
    ],
)
def test_a_cotangent_of_another_structure_is_refused(wrong: Callable) -> None:
    (y, parts), saved = statistics.forward(jnp.ones((4, 3)), jnp.ones(3))
    message = r"^statistics.backward: g must have the structure of the output, PyTreeDef.* got .*"
    with pytest.raises(TypeError, match=message + "or None for no gradient"):
        statistics.backward(saved, wrong(y, parts))


def test_a_cotangent_arrives_in_the_dtype_of_the_output() -> None:
    seen = []

    def backward(res, g):
        seen.append(g.dtype)
        return right(res, g)

    x = jnp.ones(3, jnp.bfloat16)
    backward_of(product(backward), x, x, g=np.ones(3, np.float32))
    assert seen == [jnp.bfloat16]


def test_a_number_is_a_cotangent_of_a_scalar() -> None:
    assert_near(backward_of(product(right), 2.0, 3.0, g=1), (jnp.asarray(3.0), jnp.asarray(2.0)))


# Outgoing cotangents: number, structure, shape


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda x, w: (w,), "1"),
        (lambda x, w: (w, x, x), "3"),
        (lambda x, w: [w, x], "<class 'list'>"),
        (lambda x, w: w, "<class '.*'>"),
        (lambda x, w: None, "<class 'NoneType'>"),
    ],
)
def test_another_number_of_cotangents_than_arguments_is_refused(
    returned: Callable, got: str
) -> None:
    rule, x = product(lambda res, g: returned(*res)), jnp.ones(3)
    message = rf"^product.backward must return a tuple of 2 cotangents, .*\(x, w\), got {got}. Ret"
    with pytest.raises(TypeError, match=message):
        backward_of(rule, x, x)
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda x: rule(x, x).sum())(x)


def test_an_outgoing_cotangent_of_the_wrong_shape_is_named_by_its_argument() -> None:
    rule = product(lambda res, g: (g, g))  # forgets to sum over the broadcast axis
    x, w = jnp.ones((4, 3)), jnp.ones(3)
    message = r"^product.backward: dw must have the shape of its argument, \(3,\), got \(4, 3\). S"
    with pytest.raises(ValueError, match=message):
        backward_of(rule, x, w)
    with pytest.raises(ValueError, match=message):
        jax.jit(jax.grad(lambda x: rule(x, w).sum()))(x)


def _params() -> dict:
    w = jnp.ones((3, 2))
    linear = {"w": w, "b": w[0]}
    return {"map": linear, "times": jnp.asarray(3, jnp.int32), "unused": {"a": w}}


def nested_with(change: Callable) -> Rule:
    """The rule `nested` with its dparams changed."""

    def backward(res, g):
        dparams, dx = nested._raw.backward(res, g)
        return change(dparams), dx

    return Rule(nested.reference, nested._raw.forward, backward)


def test_an_outgoing_cotangent_of_the_wrong_shape_is_named_by_its_path() -> None:
    def transposed(dparams):
        return dparams | {"map": dparams["map"] | {"w": dparams["map"]["w"].T}}

    message = r"^nested.backward: dparams\['map'\]\['w'\] must .* \(3, 2\), got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        backward_of(nested_with(transposed), _params(), jnp.ones((4, 3)))


@pytest.mark.parametrize(
    "change",
    [
        lambda dparams: dparams["map"],
        lambda dparams: dparams | {"unused": jnp.ones((3, 2))},
        lambda dparams: dparams | {"more": None},
        lambda dparams: list(dparams.values()),
    ],
)
def test_an_outgoing_cotangent_of_another_structure_is_refused(change: Callable) -> None:
    message = r"^nested.backward: dparams must have the structure of the argument params, PyTreeDef"
    with pytest.raises(TypeError, match=message):
        backward_of(nested_with(change), _params(), jnp.ones((4, 3)))


def test_none_may_stand_for_the_cotangent_of_a_whole_argument() -> None:
    rule, x = product(lambda res, g: (None, g * res[0])), jnp.ones(3)
    assert backward_of(rule, x, x)[0] is None
    assert_near(jax.grad(lambda x: rule(x, jnp.ones(3)).sum())(x), jnp.zeros(3))


# Outgoing cotangents: dtype


def test_a_complex_cotangent_of_a_real_argument_is_refused() -> None:
    rule, x = product(lambda res, g: (g.astype(jnp.complex64), g)), jnp.ones(3)
    message = r"^product.backward: dx must be real, as its argument is, got complex64. Take its re"
    with pytest.raises(TypeError, match=message):
        backward_of(rule, x, x)


def test_a_complex_cotangent_of_a_complex_argument_passes() -> None:
    z = jnp.array([1 + 2j, 3 - 1j], jnp.complex64)
    rule = product(right)
    dz, _ = backward_of(rule, z, z)
    assert dz.dtype == jnp.complex64
    gradient = jax.grad(lambda z: jnp.real(rule(z, 2 * z).sum()))(z)
    by_jax = jax.grad(lambda z: jnp.real((z * (2 * z)).sum()))(z)
    assert jnp.array_equal(gradient, by_jax)


def test_cotangents_get_the_dtypes_of_their_arguments() -> None:
    """bfloat16 data against float32 parameters; JAX takes any dtype and goes wrong later."""
    x, w, b = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4)), jnp.ones(4)
    dtypes = [jnp.bfloat16, jnp.float32, jnp.float32]
    by_hand = backward_of(jaxprop.linear, x, w, b)
    by_jax = jax.grad(lambda *args: jaxprop.linear(*args).sum(), (0, 1, 2))(x, w, b)
    assert [d.dtype for d in by_hand] == dtypes
    assert [d.dtype for d in by_jax] == dtypes
    assert_near(by_jax, by_hand)


def test_a_backward_may_compute_in_more_precision_than_its_arguments_have() -> None:
    x = jnp.ones(3, jnp.bfloat16)
    rule = product(lambda res, g: tuple(d.astype(jnp.float32) for d in right(res, g)))
    assert [d.dtype for d in backward_of(rule, x, x)] == [jnp.bfloat16] * 2


def test_cotangents_are_summed_over_devices_before_they_are_rounded() -> None:
    """Four devices have 1 + 2**-9, which bfloat16 rounds to 1, and four have -1."""

    def scaled_reference(x, w):
        return x * w.astype(x.dtype)

    scaled = Rule(
        scaled_reference,
        lambda x, w: (scaled_reference(x, w), (x, w)),
        lambda res, g: (g * res[1].astype(g.dtype), jnp.sum(g * res[0])),
    )

    @partial(jax.shard_map, mesh=mesh(), in_specs=P("data"), out_specs=P())
    def dw(x):
        return jax.grad(lambda w: scaled(x, w).sum())(jnp.ones((), jnp.bfloat16))

    x = jnp.array([1 + 2**-9] * 4 + [-1.0] * 4, jnp.float32)
    assert jax.jit(dw)(x) == 2**-7


# Several outputs


def _statistics_truth(x: jax.Array, gammas: jax.Array) -> tuple:
    """The gradients of the total below, written out: each gamma counts the statistics once."""
    dx = jnp.sum(gammas[:, None] + (1 + 2 * x) / x.shape[0], axis=0)
    return dx, jnp.broadcast_to(x.sum(axis=0), gammas.shape)


def _total(outputs: Any) -> jax.Array:
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(outputs))


X, GAMMAS = np.arange(6.0).reshape(2, 3) / 4, np.arange(12.0).reshape(4, 3) / 4


def _grad_of_vmap(f: Callable, x: jax.Array, gammas: jax.Array) -> tuple:
    """x unbatched: the statistics do not depend on what vmap maps over."""
    total = jax.jit(jax.grad(lambda *args: _total(jax.vmap(f, (None, 0))(*args)), (0, 1)))
    return total(x, gammas)


def _vmap_of_grad(f: Callable, x: jax.Array, gammas: jax.Array) -> tuple:
    each = jax.vmap(jax.grad(lambda *args: _total(f(*args)), (0, 1)), (None, 0))
    dx, dgammas = jax.jit(each)(x, gammas)
    return dx.sum(axis=0), dgammas


@pytest.mark.usefixtures("x64")
def test_several_outputs_are_right_under_grad_of_vmap_and_vmap_of_grad() -> None:
    x, gammas = jnp.asarray(X), jnp.asarray(GAMMAS)
    truth = _statistics_truth(x, gammas)
    assert_near(_vmap_of_grad(statistics, x, gammas), truth, reduced=8)
    assert_near(_grad_of_vmap(statistics, x, gammas), truth, reduced=8)


@pytest.mark.usefixtures("x64")
def test_a_bare_custom_vjp_is_wrong_or_refused_under_grad_of_vmap() -> None:
    """The control: jax 0.10 and 0.11 count the statistics' cotangents too often, 0.12 says so."""
    bare = jax.custom_vjp(statistics.reference)
    bare.defvjp(statistics._raw.forward, statistics._raw.backward)
    x, gammas = jnp.asarray(X), jnp.asarray(GAMMAS)
    truth = _statistics_truth(x, gammas)
    assert_near(_vmap_of_grad(bare, x, gammas), truth, reduced=8)
    if jax.__version_info__ >= (0, 12):
        with pytest.raises(ValueError, match="shared across the batch"):
            _grad_of_vmap(bare, x, gammas)
    else:
        dx, _ = _grad_of_vmap(bare, x, gammas)
        assert float(jnp.abs(dx - truth[0]).max()) > 0.5


def two_reference(a, b, c, key):
    return {"sum": a + b, "a": a, "order": jnp.argsort(a)}


def test_a_tie_changes_no_value() -> None:
    """Whatever else the arguments hold: nan, infinities, nothing, a key."""
    two = Rule(two_reference, lambda *args: (two_reference(*args), ()), lambda res, g: (None,) * 4)
    a = jnp.array([-0.0, jnp.inf, 1.0])
    b, c = jnp.array([jnp.nan, 1.0, -jnp.inf]), jnp.zeros((0, 3), jnp.bfloat16)
    for key in (jax.random.key(0), jax.random.PRNGKey(0), None):
        outputs = two(a, b, c, key)
        expected = two_reference(a, b, c, key)
        for got, want in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(jnp.signbit(got), jnp.signbit(want))


def test_one_output_is_not_tied() -> None:
    """It needs no tie, and its program is the forward's own."""
    x = jnp.ones(3)
    tied = jax.make_jaxpr(lambda x: masked.forward(x, 0.5, None)[0])(x)
    assert len(tied.eqns) == 0


def test_an_output_that_is_kept_as_a_residual_is_held_once() -> None:
    x, residual = jnp.ones((4, 3)), jnp.ones((4, 3))
    (_, stream), saved = jaxprop.add_rms_norm.forward(x, residual, None, eps=1e-6)
    assert any(leaf is stream for leaf in jax.tree.leaves(saved))


def test_a_tie_makes_no_output_vary_over_more_mesh_axes() -> None:
    """The statistics of an x that all devices share are shared, whatever gamma is."""
    x, gamma = jnp.arange(6.0).reshape(2, 3), jnp.arange(24.0).reshape(8, 3)
    run = jax.shard_map(
        lambda x, gamma: statistics(x, gamma[0]),
        mesh=mesh(),
        in_specs=(P(), P("data")),
        out_specs=(P("data"), P()),  # jax refuses P() for what varies
    )
    y, parts = jax.jit(run)(x, gamma)
    truth = statistics.reference(x, gamma[:, None])
    assert_near((y.reshape(truth[0].shape), parts), truth)
