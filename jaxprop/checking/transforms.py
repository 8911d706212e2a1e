"""Under jit, vmap, scan, checkpoint, shard_map, sharded, donated, and lowered for other platforms.

Each is held to plain gradients taken one example at a time, so that a function that is right
by itself and wrong under a transformation is found by that transformation's name.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from jaxprop.checking.plan import Plan, attempt, brief, random_g
from jaxprop.checking.probing import Cotangent, filled, ones, pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float

CHECK = "transforms"
BATCH = 3
PLATFORMS = ("cpu", "cuda", "tpu")


def transforms(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 7, on one device."""
    tolerance = max(plan.tolerance, 1e-9)
    with jax.enable_x64(True):
        s = s.at(in_dtype(s.args, jnp.float64))
        g = random_g(plan, s, s.args)
        for transform, run in _whole(s).items():
            yield from attempt(
                s,
                CHECK,
                transform,
                lambda run=run: run(s.call, s.args, g),
                lambda: plan.gradients(s, s.args, g),
                tolerance=tolerance,
                g=g,
            )
        yield from _batched(s, plan, tolerance)
    yield _lowers(s, plan)


def _whole(s: Subject) -> dict[str, Callable[..., Sequence[Any]]]:
    """Transformations that leave the gradient as it is."""
    return {
        "jit": lambda f, args, g: jax.jit(lambda args, g: pull(f, args, g))(args, g),
        "grad of jit": lambda f, args, g: pull(jax.jit(f), args, g),
        "checkpoint": lambda f, args, g: pull(jax.checkpoint(f), args, g),
        "donated arguments": _donated,
    }


def _donated(f: Callable[..., PyTree], args: tuple[PyTree, ...], g: Cotangent) -> list[jax.Array]:
    """The arguments' buffers given up: nothing may read them after the call."""
    compiled = jax.jit(lambda args, g: pull(f, args, g), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        return compiled(jax.tree.map(jnp.copy, args), g)


def _batched(s: Subject, plan: Plan, tolerance: float) -> Iterator[Finding]:
    """vmap and scan over a few examples, with every argument unbatched in turn."""
    many = [_varied(s.args, plan.seed + i) for i in range(BATCH)]
    gs = [random_g(plan, s, s.args, i) for i in range(BATCH)]
    batchable = [i for i, arg in enumerate(s.args) if jax.tree.leaves(arg)]
    for unbatched in (None, *batchable):
        if unbatched is not None and len(batchable) < 2:
            continue
        mapped = [i for i in batchable if i != unbatched]
        examples = [_mixed(s.args, args, mapped) for args in many]
        where = "" if unbatched is None else f", {s.names[unbatched]} unbatched"
        ways = {"vmap of vjp": (_vmap_of_vjp, False), "vjp of vmap": (_vjp_of_vmap, True)}
        ways["scan"] = (_scan, True)
        for transform, (run, sums) in ways.items():
            yield from attempt(
                s,
                CHECK,
                transform + where,
                lambda run=run, examples=examples, mapped=mapped: run(s, examples, gs, mapped),
                lambda examples=examples, mapped=mapped, sums=sums: _one_by_one(
                    s, plan, examples, gs, mapped, sums
                ),
                tolerance=tolerance,
            )


def _varied(args: tuple[PyTree, ...], seed: int) -> tuple[PyTree, ...]:
    """Other values of the same kind: floating leaves scaled a little, elementwise."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x * jnp.asarray(random.uniform(0.7, 1.3, x.shape)) if is_float(x) else x, args
    )


def _mixed(args: tuple[PyTree, ...], other: tuple[PyTree, ...], mapped: list[int]) -> tuple:
    return tuple(other[i] if i in mapped else args[i] for i in range(len(args)))


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one_by_one(
    s: Subject, plan: Plan, examples: list, gs: list, mapped: list[int], sums: bool
) -> list[jax.Array]:
    """The true gradients of each example; summed for what the examples share, if asked."""
    each = [plan.gradients(s, args, g) for args, g in zip(examples, gs, strict=True)]
    owners = [i for i, arg in enumerate(s.args) for _ in floats(arg)]
    stacked = [jnp.stack(leaves) for leaves in zip(*each, strict=True)]
    return [
        d if owner in mapped or not sums else jnp.sum(d, axis=0)
        for owner, d in zip(owners, stacked, strict=True)
    ]


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
    return run(_stack(gs), *_batch(examples, mapped))


def _vjp_of_vmap(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    f = jax.vmap(s.call, in_axes=_axes(len(s.args), mapped))
    return pull(f, _batch(examples, mapped), _stack(gs))


def _scan(s: Subject, examples: list, gs: list, mapped: list[int]) -> list[jax.Array]:
    batch = _batch(examples, mapped)

    def f(*args: PyTree) -> PyTree:
        def body(carry: None, scanned: tuple) -> tuple[None, PyTree]:
            parts = iter(scanned)
            return carry, s.call(*(next(parts) if i in mapped else a for i, a in enumerate(args)))

        return lax.scan(body, None, tuple(args[i] for i in mapped), length=BATCH)[1]

    y, vjp = jax.vjp(jax.jit(f), *batch)
    return select(batch, vjp(filled(y, _stack(gs))))


def _lowers(s: Subject, plan: Plan) -> Finding:
    """Lowering for platforms that need not be here."""
    args = in_dtype(s.args, jnp.float32)
    transform = "export for " + ", ".join(PLATFORMS)

    def gradient(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def run(*args: PyTree) -> list[jax.Array]:
            return pull(f, args, ones(jax.eval_shape(f, *args)))

        return run

    def lower(f: Callable[..., PyTree]) -> None:
        export.export(jax.jit(gradient(f)), platforms=PLATFORMS)(*args)

    with jax.enable_x64(False):
        try:
            lower(s.call)
        except Exception as error:
            try:
                lower(plan.truth or s.call)
            except Exception:
                message = "what is compared with does not lower there either"
                return Finding(CHECK, transform, "SKIP", message=message)
            return Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
    return Finding(CHECK, transform, "PASS")
