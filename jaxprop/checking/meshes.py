"""On several devices: inside shard_map, and sharded over Auto and Explicit mesh axes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprop.checking.compiling import quickly
from jaxprop.checking.judging import NOISE, REFUSED, brief, on_a_kink, raised, same, size_of
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, is_float, is_key, on_device

CHECK = "transforms"
DEVICES = 2
VMA = "sum a shared argument's cotangent over the axes on which it varies and its primal does not"
AUTO = "run the backward through jax.sharding.auto_axes, or use a mesh with Auto axes"


def meshes(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 7, on several devices; skipped by name where there is one."""
    reason = _why_not(s, plan)
    if reason:
        ways = ["shard_map", "Auto mesh", "Explicit mesh"]
        yield from (Finding(CHECK, way, "SKIP", message=reason) for way in ways)
        return
    with jax.enable_x64(True):
        s = s.at(_of_even_batch(plan.widened(s.args)))
        if problem := raised(lambda: plan.shapes_of(s.call, s.args)):
            message = f"f does not take a doubled batch: {brief(problem)}"
            yield Finding(CHECK, "several devices", "SKIP", message=message)
            return
        tolerance = max(10 * plan.tolerance, 1e-9)
        for check in (True, False):
            yield from _in_shard_map(s, plan, check, tolerance)
        yield from _on_mesh(s, plan, AxisType.Auto, "Auto mesh", tolerance)
        yield from _on_mesh(s, plan, AxisType.Explicit, "Explicit mesh", tolerance)


def _why_not(s: Subject, plan: Plan) -> str:
    if len(_devices()) < DEVICES:
        return f"one device; set JAX_NUM_CPU_DEVICES={DEVICES} before jax starts"
    if plan.truth is None or plan.surrogate:
        return "no reference to run the same way"
    if on_a_kink(s, plan):
        return "the arguments lie on a kink, where f takes another subgradient"
    if not s.args or not floats(s.args[0]) or not floats(s.args[0])[0].ndim:
        return "the first argument has no axis to share out"
    return ""


def _batch_length(args: tuple[PyTree, ...]) -> int:
    return floats(args[0])[0].shape[0]


def _of_even_batch(args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """The batch, which is the first argument's first axis, doubled, so that devices share it."""
    length = _batch_length(args)

    def doubled(x: jax.Array) -> jax.Array:
        if not _is_batched(x, length):
            return x
        twice = np.concatenate([np.asarray(x)] * DEVICES) if not is_key(x) else None
        return jnp.concatenate([x] * DEVICES) if twice is None else on_device(twice, x.dtype)

    return jax.tree.map(doubled, args)


def _is_batched(x: Any, length: int) -> bool:
    return x.ndim > 0 and x.shape[0] == length


def _specs(tree: PyTree, args: tuple[PyTree, ...]) -> PyTree:
    length = _batch_length(args)
    return jax.tree.map(lambda x: P("data") if _is_batched(x, length) else P(), tree)


def _put(mesh: Mesh, tree: PyTree, args: tuple[PyTree, ...]) -> PyTree:
    specs = _specs(tree, args)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def _devices() -> list[jax.Device]:
    """The accelerators, or where there is but one the host's."""
    return jax.devices() if jax.device_count() >= DEVICES else jax.devices("cpu")


def _mesh(kind: AxisType) -> Mesh:
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,), devices=_devices()[:DEVICES])


def _in_shard_map(s: Subject, plan: Plan, check: bool, tolerance: float) -> Iterator[Finding]:
    """The gradient taken inside and outside, of the sum over devices, as the reference has it."""
    specs = _specs(s.args, s.args)
    for where, run in (("inside", _inside), ("outside", _outside)):
        transform = f"shard_map, check_vma={check}, grad {where}"
        assert plan.truth is not None
        try:
            expected = plan.with_intended_zeros(s, run(plan.truth, s.args, specs, check))
        except Exception as error:
            message = f"the reference raises {brief(error)}"
            yield Finding(CHECK, transform, "SKIP", message=message)
            continue
        try:
            got = run(s.call, s.args, specs, check)
        except Exception as error:
            if problem := raised(lambda: _value(s.call, s.args, specs, check)):
                message = f"f does not run so: {brief(problem)}"
                yield Finding(CHECK, transform, "SKIP", message=message)
            else:
                yield _raised_in_shard_map(transform, error)
            continue
        yield from _unless_surrogate(s, plan, transform, got, expected, tolerance)


def _raised_in_shard_map(transform: str, error: Exception) -> Finding:
    """Under check_vma jax refuses a backward that does not sum over the mesh, loudly: no fault."""
    if REFUSED in str(error) and "check_vma=True" in transform:
        return Finding(CHECK, transform, "SKIP", message=f"jax refuses the backward; {VMA}")
    return Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")


def _unless_surrogate(
    s: Subject, plan: Plan, transform: str, got: list, expected: list, tolerance: float
) -> Iterator[Finding]:
    again = [d * (1 + plan.precision.eps) for d in expected]
    yield from same(
        s, CHECK, transform, got, expected, tolerance, lambda: again, DEVICES,
        floor=NOISE * max(size_of(expected), 1.0),
    )  # fmt: skip


def _loss(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> jax.Array:
    """A scalar that weighs every output element differently, the same way on each device."""
    total = jnp.zeros(())
    for y in jax.tree.leaves(f(*args)):
        if is_float(y):
            weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            total = total + jnp.sum(y * weights)
    return total


def _inside(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], specs: tuple, check: bool
) -> list[jax.Array]:
    """One gradient per device, side by side."""

    def local(*args: PyTree) -> list[jax.Array]:
        every = tuple(range(len(args)))
        found = jax.grad(lambda *args: _loss(f, args), every, allow_int=True)(*args)
        return [_apart(d)[None] for d in select(args, found)]

    out = P("data")
    mapped = jax.shard_map(
        local, mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=out, check_vma=check
    )
    return quickly(mapped)(*args)


def _apart(d: jax.Array) -> jax.Array:
    """Marked as differing between devices, if it is not, so that each one's can be returned."""
    varying = jax.typeof(d).manual_axis_type.varying
    return d if "data" in varying or not _checks_vma() else lax.pcast(d, ("data",), to="varying")


def _checks_vma() -> bool:
    """Whether the enclosing shard_map tracks what varies."""
    return bool(jax.typeof(lax.axis_index("data")).manual_axis_type.varying)


def _outside(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], specs: tuple, check: bool
) -> list[jax.Array]:
    def local(*args: PyTree) -> jax.Array:
        return lax.psum(_loss(f, args), "data")

    mapped = jax.shard_map(
        local, mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=P(), check_vma=check
    )
    return quickly(lambda args: pull(mapped, args, [jnp.ones(())]))(args)


def _value(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], specs: tuple, check: bool
) -> jax.Array:
    """f itself, without its gradient."""
    mapped = jax.shard_map(
        lambda *args: lax.psum(_loss(f, args), "data"),
        mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=P(), check_vma=check,
    )  # fmt: skip
    return quickly(mapped)(*args)


def _on_mesh(
    s: Subject, plan: Plan, kind: AxisType, transform: str, tolerance: float
) -> Iterator[Finding]:
    """A jitted gradient, the batch sharded; the answer is the unsharded one."""
    mesh, truth = _mesh(kind), plan.truth
    g = plan.random_g(s, s.args)
    expected = plan.run(s.call, s.args, g).cotangents

    def run(f: Callable[..., PyTree]) -> list[jax.Array]:
        with jax.set_mesh(mesh):
            args, spread = _put(mesh, s.args, s.args), _put(mesh, g, s.args)
            return quickly(lambda args, g: pull(f, args, g))(args, spread)

    def value() -> PyTree:
        with jax.set_mesh(mesh):
            return quickly(s.call)(*_put(mesh, s.args, s.args))

    try:
        got = run(s.call)
    except Exception as error:
        known = kind is AxisType.Explicit
        if truth is None or raised(lambda: run(truth)) or raised(value):
            message = "the reference does not run there"
            yield Finding(CHECK, transform, "SKIP", message=message)
        else:
            message = f"raises {brief(error)}"
            yield Finding(
                CHECK,
                transform,
                "SKIP" if known else "FAIL",
                message=f"{message}; {AUTO}" if known else message,
            )
        return
    yield from _unless_surrogate(s, plan, transform, got, expected, tolerance)
