"""Second order: the backward differentiated, in the arguments and in g."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.checking.compiling import in_one_program
from jaxprop.checking.judging import brief, on_a_kink, same
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import Cotangent, normal, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, labels

CHECK = "second order"


def second_order(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 9: reverse over reverse and forward over reverse against the reference."""
    ways = {"reverse over reverse": _reverse, "forward over reverse": _forward}
    reason = _why_not(s, plan)
    if reason:
        yield from (Finding(CHECK, way, "SKIP", message=reason) for way in ways)
        return
    truth = plan.truth
    assert truth is not None
    with jax.enable_x64(True):
        wide = plan.widened(s.args)
        g = plan.random_g(s, wide)
        drawn = normal(plan.seed + 7, floats(wide))
        v = [x if a else jnp.zeros_like(x) for x, a in zip(drawn, _asked(s, plan), strict=True)]
        for way, run in ways.items():

            def oracle(factor: float = 1.0, run: Callable = run) -> tuple[list, list]:
                return _oracle(plan, wide, g, v, run, factor)

            try:
                expected = oracle()
            except Exception as error:
                message = f"the reference raises {brief(error)}"
                yield Finding(CHECK, way, "SKIP", message=message)
                continue
            try:
                got = in_one_program(partial(run, s.call), wide, g, v)
            except Exception as error:
                message = f"not supported: raises {brief(error)}"
                yield Finding(CHECK, way, "WARN", message=message)
                continue
            yield from _judged(s, plan, way, got, expected, oracle)


def _oracle(
    plan: Plan, args: tuple, g: Cotangent, v: list, run: Callable, factor: float
) -> tuple[list, list]:
    """The truth's second derivatives, in its own precision; `factor` moves the arguments."""
    assert plan.truth is not None
    dtype = plan.truth_precision.run
    args = jax.tree.map(lambda x: x * factor if is_float(x) else x, in_dtype(args, dtype))
    y = floats(plan.shapes_of(plan.truth, args))
    cast = [x.astype(leaf.dtype) for x, leaf in zip(g, y, strict=True)]
    return in_one_program(partial(run, plan.truth), args, cast, [x.astype(dtype) for x in v])


def _why_not(s: Subject, plan: Plan) -> str:
    if plan.order < 2:
        return "order=1 was asked for"
    if plan.surrogate:
        return "a surrogate has no second derivative to be held to"
    if plan.truth is None:
        return "no reference"
    kink = "the arguments lie on a kink, where f takes another subgradient"
    return kink if on_a_kink(s, plan) else ""


def _judged(
    s: Subject, plan: Plan, way: str, got: Any, expected: Any, oracle: Callable
) -> Iterator[Finding]:
    tolerance = max(100 * plan.tolerance, 1e-8)

    def moved(part: int) -> list[Any]:
        """The same, the arguments rounded a little differently."""
        return oracle(1 + 2.0**-46)[part]

    asked = [e if a else d for d, e, a in zip(got[0], expected[0], _asked(s, plan), strict=True)]
    yield from same(s, CHECK, way, got[0], asked, tolerance, lambda: moved(0))
    outputs = tuple(got[1])
    if outputs:
        as_arguments = replace(s, args=outputs, names=_output_names(outputs))
        again = partial(moved, 1)
        yield from same(as_arguments, CHECK, f"{way}, in g", got[1], expected[1], tolerance, again)


def _asked(s: Subject, plan: Plan) -> list[bool]:
    """Whether a leaf's second order is looked at: not where its gradient is meant to be zero."""
    return [not plan.is_intended_zero(name) for name in labels(s.names, s.args)]


def _output_names(outputs: tuple) -> tuple[str, ...]:
    return ("g",) if len(outputs) == 1 else tuple(f"g[{i}]" for i in range(len(outputs)))


def _pairing(f: Callable[..., PyTree], v: list) -> Callable[..., jax.Array]:
    """<f's cotangents, v>, a scalar function of (args, g)."""

    def paired(args: tuple[PyTree, ...], g: Cotangent) -> jax.Array:
        found = pull(f, args, g)
        return sum(
            (jnp.sum(d * w) for d, w in zip(found, v, strict=True)), jnp.zeros((), v[0].dtype)
        )

    return paired


def _reverse(f: Callable[..., PyTree], args: tuple, g: Cotangent, v: list) -> tuple[list, list]:
    paired = _pairing(f, v)
    in_args = pull(lambda *args: paired(args, g), args, [jnp.ones((), v[0].dtype)])
    return in_args, jax.grad(lambda g: paired(args, g))(g)


def _forward(f: Callable[..., PyTree], args: tuple, g: Cotangent, v: list) -> tuple[list, list]:
    """The cotangents' derivative along v."""
    leaves, structure = jax.tree.flatten(args)

    def at(*moving: jax.Array) -> list[jax.Array]:
        parts = iter(moving)
        whole = jax.tree.unflatten(structure, [next(parts) if is_float(x) else x for x in leaves])
        return pull(f, whole, g)

    return jax.jvp(at, tuple(floats(args)), tuple(v))[1], []
