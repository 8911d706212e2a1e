"""Second order: the backward differentiated, in the arguments and in g."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.checking.plan import Plan, brief, judge, random_g
from jaxprop.checking.probing import Cotangent, normal, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float

CHECK = "second order"


def second_order(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 9: reverse over reverse and forward over reverse against the reference."""
    ways = {"reverse over reverse": _reverse, "forward over reverse": _forward}
    reason = _why_not(plan)
    if reason:
        yield from (Finding(CHECK, way, "SKIP", message=reason) for way in ways)
        return
    assert plan.truth is not None
    with jax.enable_x64(True):
        s = s.at(in_dtype(s.args, jnp.float64))
        g = random_g(plan, s, s.args)
        v = normal(plan.seed + 7, floats(s.args))
        for way, run in ways.items():
            try:
                expected = run(plan.truth, s.args, g, v)
            except Exception as error:
                message = f"the reference raises: {brief(error)}"
                yield Finding(CHECK, way, "SKIP", message=message)
                continue
            try:
                got = run(s.call, s.args, g, v)
            except Exception as error:
                message = f"not supported: raises {brief(error)}"
                yield Finding(CHECK, way, "WARN", message=message)
                continue
            yield from _judged(s, plan, way, got, expected)


def _why_not(plan: Plan) -> str:
    if plan.order < 2:
        return "order=1 was asked for"
    return "" if plan.truth is not None else "no reference"


def _judged(s: Subject, plan: Plan, way: str, got: Any, expected: Any) -> Iterator[Finding]:
    in_args, in_g = got
    args_expected, g_expected = expected
    tolerance = max(plan.tolerance, 1e-8)
    yield from judge(s, CHECK, way, in_args, args_expected, tolerance=tolerance)
    outputs = tuple(in_g)
    if outputs:
        as_arguments = Subject(s.name, s.call, None, outputs, _output_names(outputs), s.whole)
        yield from judge(as_arguments, CHECK, f"{way}, in g", in_g, g_expected, tolerance=tolerance)


def _output_names(outputs: tuple) -> tuple[str, ...]:
    return ("g",) if len(outputs) == 1 else tuple(f"g[{i}]" for i in range(len(outputs)))


def _pairing(f: Callable[..., PyTree], v: list) -> Callable[..., jax.Array]:
    """<f's cotangents, v>, a scalar function of (args, g)."""

    def paired(args: tuple[PyTree, ...], g: Cotangent) -> jax.Array:
        found = pull(f, args, g)
        return sum((jnp.sum(d * w) for d, w in zip(found, v, strict=True)), jnp.zeros(()))

    return paired


def _reverse(f: Callable[..., PyTree], args: tuple, g: Cotangent, v: list) -> tuple[list, list]:
    paired = _pairing(f, v)
    in_args = pull(lambda *args: paired(args, g), args, [jnp.ones(())])
    return in_args, jax.grad(lambda g: paired(args, g))(g)


def _forward(f: Callable[..., PyTree], args: tuple, g: Cotangent, v: list) -> tuple[list, list]:
    """The cotangents' derivative along v."""
    leaves, structure = jax.tree.flatten(args)

    def at(*moving: jax.Array) -> list[jax.Array]:
        parts = iter(moving)
        whole = structure.unflatten([next(parts) if is_float(x) else x for x in leaves])
        return pull(f, whole, g)

    return jax.jvp(at, tuple(floats(args)), tuple(v))[1], []
