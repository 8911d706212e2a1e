"""Rules on the eight host devices: inside shard_map, and over Auto and Explicit mesh axes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop
from jaxprop import Rule
from jaxprop.array_types import vary
from jaxprop.train.experiment import Experiment
from jaxprop.train.optimisers import update
from tests.small_rules import lookup, masked, nested, statistics
from tests.subjects import (
    arguments,
    both_ways,
    eight_rows,
    gradient,
    subject,
    varied,
    weighted_sum,
)
from tests.tolerances import assert_near
from tests.train.small import experiment

CHECKS = pytest.mark.parametrize("check_vma", [True, False])


def one_axis(kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def two_axes(kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


# Inside shard_map: the oracle is the same program run by automatic differentiation


def gradients(f: Callable, args: tuple, mesh: Mesh, specs: tuple, check_vma: bool) -> dict:
    """The value and gradient taken inside, each device's own, and outside, of the sum of all."""
    axes = mesh.axis_names
    shard_map = partial(jax.shard_map, mesh=mesh, in_specs=specs, check_vma=check_vma)

    def apart(x):
        return vary(x, frozenset(axes)) if check_vma else x

    def inside(*args):
        return jax.tree.map(lambda x: apart(x)[None], gradient(f, args)(*args))

    def total(*args):
        return lax.psum(apart(weighted_sum(f(*args))), axes)

    def outside(*args):
        return jax.value_and_grad(shard_map(total, out_specs=P()), arguments(args))(*args)

    @jax.jit
    def run(args):
        return {"inside": shard_map(inside, out_specs=P(axes))(*args), "outside": outside(*args)}

    return run(args)


def assert_as_automatic(f: Callable, args: tuple, mesh: Mesh, specs: tuple, check: bool) -> None:
    custom, automatic = both_ways(lambda: gradients(f, args, mesh, specs, check))
    assert_near(custom, automatic, reduced=1000)


@CHECKS
@pytest.mark.parametrize("rule", varied())
@pytest.mark.usefixtures("x64")
def test_a_rule_inside_shard_map(rule: Rule, check_vma: bool) -> None:
    rule, args = subject(rule)
    args, has_batch = eight_rows(args)
    specs = jax.tree.map(lambda has: P("data") if has else P(), has_batch)
    assert_as_automatic(rule, args, one_axis(), specs, check_vma)


def flat_reference(x):
    return jnp.sign(x)


def flat_backward(res, g):
    return (jnp.zeros(g.shape, g.dtype),)  # a constant: it varies over no axis


flat = Rule(flat_reference, lambda x: (jnp.sign(x), ()), flat_backward)

SMALL = ("several outputs", "all shared", "integers", "a key", "nested", "a constant cotangent")


def small(name: str) -> tuple[Callable, tuple, tuple]:
    """A rule with something that the catalogue's rules have not, its arguments and their specs."""
    x, w = jnp.linspace(-1.0, 2.0, 24).reshape(8, 3), jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    linear, others = {"w": w, "b": None}, {"times": jnp.asarray(3), "unused": {"a": w}}
    return {
        "several outputs": (statistics, (x, x[0]), (P("data"), P())),
        "all shared": (statistics, (x, x[0]), (P(), P())),
        "integers": (lookup, (jnp.arange(8) % 3, w, w[0]), (P("data"), P(), P())),
        "a key": (masked, (x, jnp.asarray(0.5), jax.random.key(0)), (P("data"), P(), P())),
        "nested": (lambda m, x: nested({"map": m} | others, x), (linear, x), (P(), P("data"))),
        "a constant cotangent": (flat, (x,), (P("data"),)),
    }[name]


@pytest.mark.slow
@CHECKS
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("x64")
def test_small_rules_inside_shard_map(name: str, check_vma: bool) -> None:
    f, args, specs = small(name)
    assert_as_automatic(f, args, one_axis(), specs, check_vma)


def test_jax_refuses_a_constant_cotangent_of_a_bare_custom_vjp() -> None:
    """The control: what the installer marks as varying."""
    bare = jax.custom_vjp(flat_reference)
    bare.defvjp(lambda x: (jnp.sign(x), ()), flat_backward)
    with pytest.raises(ValueError, match="manual axis types do not match"):
        gradients(bare, (jnp.ones(8),), one_axis(), (P("data"),), True)


@CHECKS
@pytest.mark.usefixtures("x64")
def test_linear_over_two_mesh_axes(check_vma: bool) -> None:
    """Rows over one axis, units over the other: each cotangent has one axis to be summed over."""
    x, w = jnp.linspace(-1.0, 2.0, 24).reshape(8, 3), jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    specs = (P("data"), P(None, "model"), P("model"))
    assert_as_automatic(jaxprop.linear, (x, w, w[0]), two_axes(), specs, check_vma)


@pytest.mark.slow
@CHECKS
@pytest.mark.parametrize("batch", [P("data"), P(("data", "model"))], ids=str)
@pytest.mark.usefixtures("x64")
def test_a_cost_over_two_mesh_axes(batch: P, check_vma: bool) -> None:
    """The batch over one axis, nothing over the other; and the batch over both."""
    network = jaxprop.chain(hidden=jaxprop.dense(4, jaxprop.tanh), output=jaxprop.dense(2))
    J = jaxprop.cost(network, jaxprop.mean_squared_error, jaxprop.l2, jaxprop.activity_l2)
    params = network.init(jax.random.key(0), (8, 3), jnp.float64)
    x, y = jnp.linspace(-1.0, 2.0, 24).reshape(8, 3), jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)
    args = (params, x, y, jnp.asarray(0.1))
    assert_as_automatic(J, args, two_axes(), (P(), batch, batch, P()), check_vma)


@pytest.mark.usefixtures("x64")
def test_a_shared_parameter_gets_the_sum_over_devices_where_jax_tracks_what_varies() -> None:
    """check_vma=True: the gradient of the sum. check_vma=False: each device's own part of it."""
    x, w = jnp.arange(24.0).reshape(8, 3), jnp.ones((3, 2))

    def dw(x, w):
        return jax.grad(lambda w: jaxprop.linear(x, w).sum())(w)

    shard_map = partial(jax.shard_map, dw, mesh=one_axis(), in_specs=(P("data"), P()))
    truth = dw(x, w)
    assert_near(jax.jit(shard_map(out_specs=P()))(x, w), truth, reduced=8)
    own = jax.jit(shard_map(out_specs=P("data"), check_vma=False))(x, w).reshape(8, 3, 2)
    assert_near(own, jnp.stack([dw(row[None], w) for row in x]), reduced=8)


@pytest.mark.usefixtures("x64")
def test_a_constant_cotangent_counts_once_for_each_device() -> None:
    """Run by hand: a g that says nothing of devices is each device's own, and db their sum."""

    @partial(jax.shard_map, mesh=one_axis(), in_specs=(P("data"), P(), P()), out_specs=P())
    def db(x, w, b):
        y, saved = jaxprop.linear.forward(x, w, b)
        return jaxprop.linear.backward(saved, jnp.ones(y.shape))[2]

    assert_near(jax.jit(db)(jnp.ones((8, 3)), jnp.ones((3, 2)), jnp.ones(2)), jnp.full(2, 8.0))


@CHECKS
@pytest.mark.usefixtures("x64")
def test_what_no_device_has_of_its_own_is_not_summed(check_vma: bool) -> None:
    params = {"w": jnp.arange(6.0), "b": jnp.ones(2)}
    grad = jax.shard_map(
        jax.grad(jaxprop.l2), mesh=one_axis(), in_specs=P(), out_specs=P(), check_vma=check_vma
    )
    assert_near(jax.jit(grad)(params), params)


# The train step: the oracle is the unsharded step in float64, by automatic differentiation

ROWS = 48


@pytest.fixture(scope="module")
def made() -> Experiment:
    momentum = {"optimiser_options": ("momentum=0.9",)}
    return experiment(optimiser="sgd", schedule="constant", learning_rate=0.1, **momentum)


def steps(made: Experiment, value_and_grad: Callable, params: Any, x: Any, y: Any) -> tuple:
    """Two steps of gradient descent: J at each, and the parameters after both."""
    Js, state = [], made.optimiser.init(params)
    for _ in range(2):
        J, dparams = value_and_grad(params, x, y, made.strength)
        params, state = update(made.optimiser, dparams, state, params)
        Js.append(J)
    return Js, params


@pytest.fixture(scope="module")
def truth(made: Experiment) -> Any:
    with jax.enable_x64(True):
        exact = replace(made, strength=double(made.strength))
        run = jax.jit(partial(steps, exact, made.by_jax))
        return run(double(made.init()), double(made.x[:ROWS]), made.y[:ROWS])


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def both_gradients(made: Experiment, *args: Any) -> dict:
    """The steps by J.forward and J.backward, and by jax.grad through the rule, in one program."""
    ways = {"by hand": made.by_hand, "jax.grad": jax.value_and_grad(made.J)}
    return {way: steps(made, value_and_grad, *args) for way, value_and_grad in ways.items()}


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        pytest.param(AxisType.Auto, nullcontext, id="Auto"),
        pytest.param(AxisType.Explicit, nullcontext, id="Explicit"),
        pytest.param(AxisType.Explicit, jax.set_mesh, id="Explicit, in use"),
    ],
)
def test_a_train_step_with_the_batch_sharded(
    made: Experiment, truth: Any, kind: AxisType, use: Callable
) -> None:
    """With the mesh in use, and with the arrays alone to know it by."""
    mesh = one_axis(kind)
    args = placed(mesh, made)
    with use(mesh):
        results = jax.jit(partial(both_gradients, made))(*args)
    for way, result in results.items():
        assert_near(jax.device_get(result), truth, reduced=2 * ROWS, what=way)


def placed(mesh: Mesh, made: Experiment) -> tuple:
    """The parameters on every device, the batch over "data"."""
    shared, batch = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    x, y = (jax.device_put(array[:ROWS], batch) for array in (made.x, made.y))
    return jax.device_put(made.init(), shared), x, y


@pytest.mark.slow
def test_a_train_step_in_a_partly_manual_shard_map(made: Experiment, truth: Any) -> None:
    """Manual over "data", where gradients are summed; units over "model", which stays Explicit."""
    mesh = two_axes(AxisType.Explicit)
    params, x, y = placed(mesh, made)
    units = {"w": P(None, "model"), "b": P("model")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in units.items()}
    params["hidden_1"] = jax.device_put(params["hidden_1"], shardings)
    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P()}

    @partial(jax.shard_map, mesh=mesh, axis_names={"data"}, **specs)
    def run(params, x, y):
        return steps(made, mean, params, x, y)

    def mean(*args):
        J, dparams = made.by_hand(*args)
        return lax.pmean(J, "data"), jax.tree.map(lambda d: d / mesh.shape["data"], dparams)

    with jax.set_mesh(mesh):
        Js, params = jax.jit(run)(params, x, y)
    assert params["hidden_1"]["w"].sharding.spec == units["w"]
    assert_near(jax.device_get((Js, params)), truth, reduced=2 * ROWS)


# What cannot be traced on Explicit axes


def contraction(mesh: Mesh) -> tuple:
    """x and w sharded over the axis that linear sums over."""
    specs = (P(None, "data"), P("data"))
    shapes = ((4, 8), (8, 2))
    return tuple(
        jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    )


@pytest.mark.parametrize("way", [nullcontext, jaxprop.automatic])
def test_a_reference_that_explicit_axes_refuse_says_what_to_do(way: Callable) -> None:
    mesh = one_axis(AxisType.Explicit)
    x, w = contraction(mesh)
    message = r"^linear: this operation is ambiguous .*AxisType.Auto.*auto_axes. JAX says: .*"
    with jax.set_mesh(mesh), way(), pytest.raises(ValueError, match=message):
        jaxprop.linear(x, w)


def test_inside_a_network_it_is_the_rule_at_fault_that_says_so() -> None:
    mesh = one_axis(AxisType.Explicit)
    x, w = contraction(mesh)
    network = jaxprop.chain(first=jaxprop.dense(2, jaxprop.tanh, bias=False))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"^linear: this operation is ambig"):
        network({"first": {"w": w}}, x)


def test_both_remedies_work() -> None:
    mesh = one_axis()
    on_auto = jax.jit(jax.grad(lambda x, w: jaxprop.linear(x, w).sum()))(*contraction(mesh))
    mesh = one_axis(AxisType.Explicit)
    with jax.set_mesh(mesh):
        through = jax.sharding.auto_axes(jaxprop.linear, out_sharding=P())
        by_auto_axes = jax.jit(jax.grad(lambda x, w: through(x, w).sum()))(*contraction(mesh))
    assert_near(on_auto, jnp.full((4, 8), 2.0))
    assert_near(by_auto_axes, jnp.full((4, 8), 2.0))
