"""The contract with JAX: values, trees, shapes and dtypes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64, difference
from jaxprop.checking.compiling import in_one_program
from jaxprop.checking.hints import hint
from jaxprop.checking.judging import MULTIPLE, brief, judge, raised, same
from jaxprop.checking.plan import Plan, on_host
from jaxprop.checking.point import Point
from jaxprop.checking.probing import answer, filled, pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, labels

CHECK = "contract"
MIXED = "the others float32"
IMPLICIT = "mixed dtypes run by implicit promotion only"


def contract(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 1: values agree, and every cotangent is of its argument's kind."""
    yield from _values(s, plan)
    for transform, args in _in_each_dtype(s, plan).items():
        given = transform == "as given"
        with jax.enable_x64(transform == "float64"):
            for finding in _types(s, args(), plan, transform, given):
                yield finding if given else _promised(s, args(), finding, MIXED in transform)
    yield from _integer_arguments(s)
    yield from _dropped_outputs(s, plan)


def _in_each_dtype(s: Subject, plan: Plan) -> dict[str, Callable[[], tuple]]:
    """As given; every argument in each dtype; and the first coarser than the others."""
    wide = plan.precision.run.name
    ways: dict[str, Callable[[], tuple]] = {"as given": lambda: s.args}
    for name in dict.fromkeys([wide, *(jnp.dtype(dtype).name for dtype in plan.dtypes)]):
        ways[name] = partial(in_dtype, s.args, name)
    if len([arg for arg in s.args if floats(arg)]) > 1 and jnp.bfloat16 in plan.dtypes:
        first = next(i for i, arg in enumerate(s.args) if floats(arg))
        ways[f"{s.names[first]} bfloat16, {MIXED}"] = lambda: tuple(
            in_dtype(arg, jnp.bfloat16 if i == first else jnp.float32)
            for i, arg in enumerate(s.args)
        )
    return ways


def _promised(s: Subject, args: tuple[PyTree, ...], finding: Finding, mixed: bool) -> Finding:
    """No fault but a note, where f runs in these dtypes by implicit promotion: none promised them.

    Mixed ones may not meet before the backward, so it must do without, too.
    """
    with jax.numpy_dtype_promotion("strict"):
        meant = raised(lambda: jax.eval_shape(s.call, *args)) is None and not (
            mixed and raised(lambda: _gradient_types(s, args))
        )
    if meant or finding.verdict not in ("WARN", "FAIL"):
        return finding
    message = f"{finding.transform}, {finding.argument}: {finding.message}; {IMPLICIT}"
    return replace(finding, verdict="PASS", message=message, hint="")


def _values(s: Subject, plan: Plan) -> Iterator[Finding]:
    """f, jit(f), the forward that differentiation runs, and the reference: one value."""
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        definition = s.call if raised(lambda: s.reference(*args)) else s.reference
        expected = in_one_program(definition, *args)
        moved = jax.tree.map(lambda x: x * (1 + plan.precision.eps) if is_float(x) else x, args)
        noise = [
            np.abs(as_float64(a) - as_float64(b)) for a, b in _pairs(expected, definition, moved)
        ]
        ways: dict[str, Callable[[], PyTree]] = {
            "f": lambda: s.call(*args),
            "jit(f)": lambda: jax.jit(s.call)(*args),
            "the forward of vjp": lambda: jax.vjp(s.call, *args)[0],
        }
        for transform, run in ways.items():
            if transform == "jit(f)" and raised(lambda: jax.eval_shape(definition, *args)):
                yield Finding(CHECK, transform, "SKIP", message="the reference does not trace")
                continue
            yield from _same_value(transform, run, expected, noise, plan.tolerance)


def _pairs(expected: PyTree, definition: Callable[..., PyTree], moved: tuple) -> list[tuple]:
    again = jax.tree.leaves(in_one_program(definition, *moved))
    leaves = zip(jax.tree.leaves(expected), again, strict=True)
    return [(a, b) if is_float(jnp.asarray(a)) else (0, 0) for a, b in leaves]


def _same_value(
    transform: str, run: Callable[[], PyTree], expected: PyTree, noise: list, tolerance: float
) -> Iterator[Finding]:
    try:
        value = run()
    except Exception as error:
        yield Finding(CHECK, transform, "FAIL", "the output", f"raises {brief(error)}")
        return
    mine, theirs = (str(jax.tree.structure(tree)) for tree in (value, expected))
    if mine != theirs:
        message = f"the output's tree is {mine}, the reference's {theirs}"
        yield Finding(CHECK, transform, "FAIL", "the output", message)
        return
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(value)]
    leaves = zip(paths, jax.tree.leaves(value), jax.tree.leaves(expected), noise, strict=True)
    for path, x, y, rounding in leaves:
        name = f"the output{jax.tree_util.keystr(path)}"
        yield _same_leaf(transform, name, jnp.asarray(x), jnp.asarray(y), rounding, tolerance)


def _same_leaf(
    transform: str, name: str, mine: jax.Array, theirs: jax.Array, noise: Any, tolerance: float
) -> Finding:
    if mine.shape != theirs.shape:
        message = f"shape {mine.shape}, expected {theirs.shape}"
        return Finding(CHECK, transform, "FAIL", name, message)
    if mine.dtype != theirs.dtype and not (is_float(mine) and is_float(theirs)):
        message = f"dtype {mine.dtype}, expected {theirs.dtype}"
        return Finding(CHECK, transform, "FAIL", name, message)
    if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
        mine, theirs = jax.random.key_data(mine), jax.random.key_data(theirs)
    if not is_float(mine):
        same = bool(jnp.array_equal(mine, theirs))
        message = "" if same else f"{mine.dtype} values differ from the reference's"
        return Finding(CHECK, transform, "PASS" if same else "FAIL", name, message)
    found = difference(mine, theirs, tolerance)
    found = found and found.but(found.error <= MULTIPLE * np.nan_to_num(noise))
    if found is None:
        return Finding(CHECK, transform, "PASS", name)
    message = "the value is not the reference's"
    return Finding(
        CHECK, transform, "FAIL", name, message, hint=hint(found), **found.fields(np.float64)
    )


def _types(
    s: Subject, args: tuple[PyTree, ...], plan: Plan, transform: str, given: bool
) -> Iterator[Finding]:
    """The output's dtype on every way of calling; each cotangent's shape and dtype."""
    try:
        primal = jax.eval_shape(s.call, *args)
    except Exception as error:
        endless = plan.precision.loops and not given  # run, it might not come back
        problem = error if endless else raised(lambda: s.call(*args))
        if problem is None:
            message = f"only runs outside jit: {brief(error)}"
        else:
            message = f"f does not take it: {brief(problem)}"
        verdict = "FAIL" if given and problem else "SKIP"
        yield Finding(CHECK, transform, verdict, message=message)
        return
    try:
        y, cotangents = _gradient_types(s, args)
    except Exception as error:
        if not given and not _traces(plan.truth, args):
            yield Finding(CHECK, transform, "SKIP", message=f"f rejects it: {brief(error)}")
            return
        yield Finding(
            CHECK, transform, "FAIL", named_in(error, s), f"raises {brief(error)}",
            hint="forward runs there, and its gradient does not",
        )  # fmt: skip
        return
    yield from _output_dtypes(s, transform, args, primal, y)
    triples = zip(labels(s.names, args), floats(args), cotangents, strict=True)
    for name, x, d in triples:
        if (d.shape, d.dtype) == (x.shape, x.dtype):
            yield Finding(CHECK, transform, "PASS", name)
            continue
        mine, theirs = f"{d.dtype}{list(d.shape)}", f"{x.dtype}{list(x.shape)}"
        message = f"the cotangent is {mine}, its argument {theirs}"
        text = (
            f"end with .astype({name}.dtype)" if d.shape == x.shape else "sum over broadcast axes"
        )
        yield Finding(CHECK, transform, "FAIL", name, message, hint=text)


def _gradient_types(s: Subject, args: tuple[PyTree, ...]) -> tuple[PyTree, list[jax.Array]]:
    """The forward's output and the cotangents: traced, or run where they cannot be."""

    def run(*args: PyTree) -> tuple[PyTree, list[jax.Array]]:
        y, vjp = jax.vjp(s.call, *args)
        return y, select(args, vjp(filled(y, [jnp.ones(x.shape, x.dtype) for x in floats(y)])))

    if raised(lambda: jax.eval_shape(run, *args)):
        return run(*args)
    return jax.eval_shape(run, *args)


def _traces(truth: Callable[..., PyTree] | None, args: tuple[PyTree, ...]) -> bool:
    return truth is not None and raised(lambda: jax.eval_shape(truth, *args)) is None


def named_in(error: Exception, s: Subject) -> str:
    """The argument that JAX's own error about a cotangent speaks of."""
    text = str(error)
    for i, name in enumerate(s.names):
        if f"args[{i}]" in text or f"path [{i}]" in text or f"[{i}]" in text.split("\n")[0]:
            return name
    return ""


def _output_dtypes(
    s: Subject, transform: str, args: tuple[PyTree, ...], primal: PyTree, forward: PyTree
) -> Iterator[Finding]:
    """The same types from f, from its forward and, except for x64's own sake, its reference."""
    ways = {"its forward": jax.tree.leaves(forward)}
    if raised(lambda: jax.eval_shape(s.reference, *args)) is None:
        ways["the reference"] = jax.tree.leaves(jax.eval_shape(s.reference, *args))
    for whose, leaves in ways.items():
        for position, (x, y) in enumerate(zip(jax.tree.leaves(primal), leaves, strict=False)):
            if (x.shape, x.dtype) == (y.shape, y.dtype):
                continue
            message = f"f gives {x.dtype}{list(x.shape)}, {whose} {y.dtype}{list(y.shape)}"
            # A reference for the mathematics may well give another dtype; a forward may not.
            verdict = "FAIL" if whose == "its forward" or x.shape != y.shape else "WARN"
            yield Finding(CHECK, transform, verdict, f"the output {position}", message)


def _integer_arguments(s: Subject) -> Iterator[Finding]:
    """A custom_vjp's own backward should give None for what is not differentiable."""
    forward, backward = getattr(s.whole, "fwd", None), getattr(s.whole, "bwd", None)
    integers = [i for i, arg in enumerate(s.args) if jax.tree.leaves(arg) and not floats(arg)]
    if forward is None or backward is None or not integers or s.static:
        return
    try:
        y, residuals = forward(*s.args)
        cotangents = backward(residuals, filled(y, [jnp.ones_like(x) for x in floats(y)]))
        leaves = [jax.tree.leaves(cotangents[i]) for i in integers]
    except Exception as error:
        message = f"forward and backward cannot be called by hand: {brief(error)}"
        yield Finding(CHECK, "integer argument", "SKIP", message=message)
        return
    for i, found in zip(integers, leaves, strict=True):
        kinds = [getattr(d, "dtype", type(d)) for d in found]
        garbage = [kind for kind in kinds if kind != jax.dtypes.float0]
        text = f"an integer argument has a cotangent of {garbage[0]}; give None" if garbage else ""
        verdict = "WARN" if garbage else "PASS"
        yield Finding(CHECK, "integer argument", verdict, s.names[i], text)


def _dropped_outputs(s: Subject, plan: Plan) -> Iterator[Finding]:
    """With several outputs, the gradient of each one alone: the others are symbolic zeros."""
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        g = plan.random_g(s, args)
        if len(g) < 2:
            return
        for position, alone in enumerate(g):
            transform = f"output {position} alone"
            others = [x if i == position else jnp.zeros_like(x) for i, x in enumerate(g)]
            try:
                got = on_host(answer(_one(s, position), args, [alone]))
                whole = [] if not plan.unstated else pull(s.call, args, others)
            except Exception as error:
                yield Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
                continue
            if plan.unstated:
                yield from same(s, CHECK, transform, got.cotangents, whole, plan.tolerance)
            else:
                yield from judge(Point(s, plan, args, others), CHECK, transform, got)


def _one(s: Subject, position: int) -> Callable[..., jax.Array]:
    return lambda *args: floats(s.call(*args))[position]
