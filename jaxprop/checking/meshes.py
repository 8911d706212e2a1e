"""On several devices: inside shard_map, and sharded over Auto and Explicit mesh axes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprop.checking.plan import Plan, attempt, brief, random_g
from jaxprop.checking.probing import pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float

CHECK = "transforms"
DEVICES = 2


def meshes(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 7, on several devices; skipped by name where there is one."""
    ways = [f"shard_map, check_vma={check}" for check in (True, False)]
    ways += ["Auto mesh", "Explicit mesh"]
    reason = _why_not(s, plan)
    if reason:
        yield from (Finding(CHECK, way, "SKIP", message=reason) for way in ways)
        return
    with jax.enable_x64(True):
        s = s.at(_of_even_batch(in_dtype(s.args, jnp.float64)))
        for check in (True, False):
            yield from _in_shard_map(s, plan, check)
        yield from _on_mesh(s, plan, AxisType.Auto, "Auto mesh")
        yield from _on_mesh(s, plan, AxisType.Explicit, "Explicit mesh")


def _why_not(s: Subject, plan: Plan) -> str:
    if jax.device_count() < DEVICES:
        return f"one device; set JAX_NUM_CPU_DEVICES={DEVICES} before jax starts"
    if plan.truth is None:
        return "no reference to run the same way"
    if not s.args or not floats(s.args[0]) or not floats(s.args[0])[0].ndim:
        return "the first argument has no axis to share out"
    return ""


def _batch_length(args: tuple[PyTree, ...]) -> int:
    return floats(args[0])[0].shape[0]


def _of_even_batch(args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """The batch, which is the first argument's first axis, doubled, so that devices share it."""
    length = _batch_length(args)

    def doubled(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, x]) if _is_batched(x, length) else x

    return jax.tree.map(doubled, args)


def _is_batched(x: Any, length: int) -> bool:
    return x.ndim > 0 and x.shape[0] == length


def _specs(tree: PyTree, args: tuple[PyTree, ...]) -> PyTree:
    length = _batch_length(args)
    return jax.tree.map(lambda x: P("data") if _is_batched(x, length) else P(), tree)


def _put(mesh: Mesh, tree: PyTree, args: tuple[PyTree, ...]) -> PyTree:
    specs = _specs(tree, args)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def _mesh(kind: AxisType) -> Mesh:
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


def _in_shard_map(s: Subject, plan: Plan, check: bool) -> Iterator[Finding]:
    """The gradient taken inside and outside, of the sum over devices."""
    specs = _specs(s.args, s.args)
    for where, run in (("inside", _inside), ("outside", _outside)):

        def way(f: Callable[..., PyTree], run: Callable = run) -> list[jax.Array]:
            return run(f, s.args, specs, check)

        yield from attempt(
            s,
            CHECK,
            f"shard_map, check_vma={check}, grad {where}",
            lambda way=way: way(s.call),
            lambda way=way: way(plan.truth),
            tolerance=max(plan.tolerance, 1e-9),
        )


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
    return jax.jit(mapped)(*args)


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
    return jax.jit(lambda args: pull(mapped, args, [jnp.ones(())]))(args)


def _on_mesh(s: Subject, plan: Plan, kind: AxisType, transform: str) -> Iterator[Finding]:
    """A jitted gradient, the batch sharded; the answer is the unsharded one."""
    mesh = _mesh(kind)
    g = random_g(plan, s, s.args)
    expected = plan.gradients(s, s.args, g)

    def run(f: Callable[..., PyTree]) -> list[jax.Array]:
        with jax.set_mesh(mesh):
            args, spread = _put(mesh, s.args, s.args), _put(mesh, g, s.args)
            return jax.jit(lambda args, g: pull(f, args, g))(args, spread)

    if kind is AxisType.Explicit and (problem := _raised(lambda: run(s.call))):
        verdict = "SKIP" if _raised(lambda: run(plan.truth)) else "WARN"
        message = f"raises {problem}" if verdict == "WARN" else "the reference does not trace there"
        hint = "run the backward through jax.sharding.auto_axes, or use a mesh with Auto axes"
        yield Finding(CHECK, transform, verdict, message=message, hint=hint)
        return
    yield from attempt(
        s,
        CHECK,
        transform,
        lambda: run(s.call),
        lambda: expected,
        tolerance=max(plan.tolerance, 1e-9),
    )


def _raised(run: Callable[[], Any]) -> str:
    try:
        jax.block_until_ready(run())
    except Exception as error:
        return brief(error)
    return ""
