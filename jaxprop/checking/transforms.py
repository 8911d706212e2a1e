"""Under jit, vmap, scan, checkpoint, shard_map, sharded, donated, and lowered for other platforms.

Each is held to plain gradients taken one example at a time, so that a function that is right
by itself and wrong under a transformation is found by that transformation's name.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from jaxprop.checking.compiling import in_one_program
from jaxprop.checking.domains import is_fixed
from jaxprop.checking.inlining import equations
from jaxprop.checking.judging import brief, raised, same
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import Cotangent, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, is_key, on_device

CHECK = "transforms"
BATCH = 3
PLATFORMS = ("cpu", "cuda", "tpu")
JAX = (
    "jax is at fault: where an output does not depend on what is mapped, it sums that output's "
    "cotangent before the backward sees it"
)


def transforms(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 7, on one device: f transformed against f itself, one example at a time."""
    tolerance = max(10 * plan.tolerance, 1e-9) if plan.truth is not None else 1e-9
    if plan.precision.inside != jnp.float64:
        tolerance = max(tolerance, 1e-5)
    with jax.enable_x64(True):
        s = s.at(plan.widened(s.args))
        g = plan.random_g(s, s.args)
        try:
            expected = pull(s.call, s.args, g)
        except Exception as error:
            yield Finding(CHECK, "", "FAIL", message=f"raises {brief(error)}")
            return
        moved = _rounded(s.args, plan)
        for transform, (run, forward) in _whole().items():
            yield from _attempt(
                s,
                transform,
                partial(run, s.call, s.args, g),
                partial(forward(s.call), *s.args),
                lambda: expected,
                lambda: pull(s.call, moved, g),
                tolerance,
            )
        yield from _batched(s, plan, tolerance)
    yield _lowers(s, plan)


def _rounded(args: tuple[PyTree, ...], plan: Plan) -> tuple[PyTree, ...]:
    eps = plan.precision.eps
    return jax.tree.map(lambda x: x * (1 + eps) if is_float(x) else x, args)


def _attempt(
    s: Subject,
    transform: str,
    run: Callable[[], Sequence[Any]],
    forward: Callable[[], Any],
    expected: Callable[[], Sequence[Any]],
    again: Callable[[], Sequence[Any]],
    tolerance: float,
    jax_is_at_fault: Callable[[], bool] = lambda: False,
) -> Iterator[Finding]:
    """The transformed gradient; where f itself does not run so, that is no fault of its VJP."""
    try:
        got = run()
    except Exception as error:
        if problem := raised(forward):
            yield Finding(CHECK, transform, "SKIP", message=f"f does not run so: {brief(problem)}")
        elif jax_is_at_fault():
            message = "an output does not depend on what is mapped, and jax refuses that"
            yield Finding(CHECK, transform, "SKIP", message=message)
        else:
            yield Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
        return
    found = list(same(s, CHECK, transform, got, expected(), tolerance, again))
    wrong = any(f.verdict == "FAIL" for f in found)
    if wrong and jax_is_at_fault():
        found = [
            replace(f, verdict="WARN", message=JAX) if f.verdict == "FAIL" else f for f in found
        ]
    yield from found


def _whole() -> dict[str, tuple[Callable[..., Sequence[Any]], Callable]]:
    """Transformations that leave the gradient as it is, and the same of the function alone."""
    return {
        "jit": (lambda f, args, g: jax.jit(lambda args, g: pull(f, args, g))(args, g), jax.jit),
        "grad of jit": (lambda f, args, g: pull(jax.jit(f), args, g), jax.jit),
        "checkpoint": (_checkpointed, jax.checkpoint),
        "donated arguments": (_donated, jax.jit),
    }


def _checkpointed(
    f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent
) -> list[jax.Array]:
    return in_one_program(partial(pull, jax.checkpoint(f)), args, g)


def _donated(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent) -> list[jax.Array]:
    """The arguments' buffers given up: nothing may read them after the call."""
    compiled = jax.jit(lambda args, g: pull(f, args, g), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        return compiled(jax.tree.map(jnp.copy, args), g)


def _batched(s: Subject, plan: Plan, tolerance: float) -> Iterator[Finding]:
    """vmap and scan over a few examples, with every argument unbatched in turn."""
    many = [_varied(s.args, 1 - 0.1 * i) for i in range(BATCH)]
    gs = [plan.random_g(s, s.args, i) for i in range(BATCH)]
    batchable = [i for i, arg in enumerate(s.args) if jax.tree.leaves(arg)]
    for unbatched in (None, *batchable):
        if unbatched is not None and len(batchable) < 2:
            continue
        mapped = [i for i in batchable if i != unbatched]
        examples = [_mixed(s.args, args, mapped) for args in many]
        each = [pull(s.call, args, g) for args, g in zip(examples, gs, strict=True)]
        moved = [_rounded(args, plan) for args in examples]
        where = "" if unbatched is None else f", {s.names[unbatched]} unbatched"
        for transform, (run, forward, sums) in _WAYS.items():
            if unbatched is not None and transform == "vmap of vmap of vjp":
                continue
            yield from _attempt(
                s,
                transform + where,
                partial(run, s, examples, gs, mapped),
                partial(forward(s, mapped), *_batch(examples, mapped)),
                partial(_one_by_one, s, each, mapped, sums),
                partial(_pulled_one_by_one, s, moved, gs, mapped, sums),
                tolerance,
                partial(_has_unmapped_output, s, examples, mapped),
            )


def _has_unmapped_output(s: Subject, examples: list, mapped: list[int]) -> bool:
    """Whether some output is one and the same for all that is mapped: no argument in it is."""
    count = len(floats(jax.eval_shape(s.call, *s.args)))
    axes, batch = _axes(len(s.args), mapped), _batch(examples, mapped)

    def shared(output: int) -> bool:
        one = jax.vmap(lambda *args: floats(s.call(*args))[output], in_axes=axes, out_axes=None)
        return raised(lambda: jax.eval_shape(one, *batch)) is None

    return any(map(shared, range(count)))


def _varied(args: tuple[PyTree, ...], factor: float) -> tuple[PyTree, ...]:
    """Other values of the same kind, masks left alone: floating leaves scaled down a little."""
    return jax.tree.map(
        lambda x: x * factor if is_float(x) and not is_fixed(np.asarray(x, float)) else x, args
    )


def _mixed(args: tuple[PyTree, ...], other: tuple[PyTree, ...], mapped: list[int]) -> tuple:
    return tuple(other[i] if i in mapped else args[i] for i in range(len(args)))


def _stack(trees: Sequence[PyTree]) -> PyTree:
    def stack(*leaves: jax.Array) -> jax.Array:
        if is_key(leaves[0]):
            return jnp.stack(leaves)
        return on_device(np.stack([np.asarray(x) for x in leaves]), leaves[0].dtype)

    return jax.tree.map(stack, *trees)


def _one_by_one(s: Subject, each: list, mapped: list[int], sums: bool) -> list[np.ndarray]:
    """The gradients of each example; summed for what the examples share, if asked."""
    owners = [i for i, arg in enumerate(s.args) for _ in floats(arg)]
    stacked = [np.stack([np.asarray(d) for d in leaves]) for leaves in zip(*each, strict=True)]
    return [
        d if owner in mapped or not sums else np.sum(d, axis=0)
        for owner, d in zip(owners, stacked, strict=True)
    ]


def _pulled_one_by_one(
    s: Subject, examples: list, gs: list, mapped: list[int], sums: bool
) -> list[np.ndarray]:
    each = [pull(s.call, args, g) for args, g in zip(examples, gs, strict=True)]
    return _one_by_one(s, each, mapped, sums)


def _batch(examples: list, mapped: list[int]) -> tuple:
    return tuple(
        _stack([args[i] for args in examples]) if i in mapped else examples[0][i]
        for i in range(len(examples[0]))
    )


def _axes(count: int, mapped: list[int]) -> tuple:
    return tuple(0 if i in mapped else None for i in range(count))


def _vmap_of_vjp(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    axes = _axes(len(s.args), mapped)
    run = jax.vmap(lambda g, *args: pull(s.call, args, g), in_axes=(0, *axes))
    return in_one_program(run, _stack(gs), *_batch(examples, mapped))


def _vmap_of_vmap(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    """Mapped twice, the outer time over one example, so that the numbers stay the same."""
    outer = [
        jax.tree.map(lambda x: x[None], tree) for tree in (_stack(gs), _batch(examples, mapped))
    ]
    axes = (0, *_axes(len(s.args), mapped))

    def run(g: Cotangent, *args: PyTree) -> list[jax.Array]:
        return jax.vmap(lambda g, *args: pull(s.call, args, g), in_axes=axes)(g, *args)

    found = in_one_program(jax.vmap(run), outer[0], *outer[1])
    return [d[0] for d in found]


def _vjp_of_vmap(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    return in_one_program(partial(pull, _mapped(s, mapped)), _batch(examples, mapped), _stack(gs))


def _mapped(s: Subject, mapped: list[int]) -> Callable[..., PyTree]:
    return jax.vmap(s.call, in_axes=_axes(len(s.args), mapped))


def _scanned(s: Subject, mapped: list[int]) -> Callable[..., PyTree]:
    def f(*args: PyTree) -> PyTree:
        def body(carry: None, scanned: tuple) -> tuple[None, PyTree]:
            parts = iter(scanned)
            return carry, s.call(*(next(parts) if i in mapped else a for i, a in enumerate(args)))

        return lax.scan(body, None, tuple(args[i] for i in mapped), length=BATCH)[1]

    return f


def _scan(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    return in_one_program(partial(pull, _scanned(s, mapped)), _batch(examples, mapped), _stack(gs))


_WAYS: dict[str, tuple[Callable[..., list], Callable[..., Callable], bool]] = {
    "vmap of vjp": (_vmap_of_vjp, _mapped, False),
    "vmap of vmap of vjp": (_vmap_of_vmap, _mapped, False),
    "vjp of vmap": (_vjp_of_vmap, _mapped, True),
    "scan": (_scan, _scanned, True),
}


def _lowers(s: Subject, plan: Plan) -> Finding:
    """Lowering for platforms that need not be here."""
    args = in_dtype(s.args, jnp.float32)
    transform = "export for " + ", ".join(PLATFORMS)

    def gradient(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(*args: PyTree) -> list[jax.Array]:
            y = floats(jax.eval_shape(f, *args))
            return pull(f, args, [jnp.ones(leaf.shape, leaf.dtype) for leaf in y])

        return run

    def lower(f: Callable[..., PyTree]) -> None:
        export.export(jax.jit(gradient(f)), platforms=PLATFORMS)(*args)

    with jax.enable_x64(False):
        try:
            lower(s.call)
        except Exception as error:
            try:
                if plan.truth is None:
                    export.export(jax.jit(s.call), platforms=PLATFORMS)(*args)
                else:
                    lower(plan.truth)
            except Exception:
                message = "what is compared with does not lower there either"
                return Finding(CHECK, transform, "SKIP", message=message)
            if _calls_back(gradient(s.call), args):
                message = "a callback to Python lowers for one platform only"
                return Finding(CHECK, transform, "SKIP", message=message)
            return Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
    return Finding(CHECK, transform, "PASS")


def _calls_back(f: Callable[..., Any], args: tuple[PyTree, ...]) -> bool:
    program = jax.make_jaxpr(f)(*args).jaxpr
    return any(eqn.primitive.name.endswith("callback") for eqn in equations(program))
