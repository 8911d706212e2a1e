"""The contract with JAX: values, trees, shapes and dtypes."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64, relative_error
from jaxprop.checking.plan import Plan, attempt, brief, judge, random_g
from jaxprop.checking.probing import Cotangent, filled, ones, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, labels

CHECK = "contract"


def contract(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 1: values agree, and every cotangent is of its argument's kind."""
    yield from _values(s, plan)
    for dtype in dict.fromkeys([*_dtypes_of(s.args), *plan.dtypes]):
        with jax.enable_x64(jnp.dtype(dtype) == jnp.float64):
            yield from _types(s, in_dtype(s.args, dtype), plan, jnp.dtype(dtype).name)
    yield from _integer_arguments(s)
    yield from _dropped_outputs(s, plan)
    yield from _ways_of_calling(s, plan)


def _dtypes_of(args: tuple[PyTree, ...]) -> list[Any]:
    return [leaf.dtype for leaf in floats(args)][:1]


def _values(s: Subject, plan: Plan) -> Iterator[Finding]:
    """f, jit(f), the forward that differentiation runs, and the reference: one value."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        expected = (plan.truth if plan.truth is not None and not plan.surrogate else s.call)(*args)
        ways: dict[str, Callable[[], PyTree]] = {
            "f": lambda: s.call(*args),
            "jit(f)": lambda: jax.jit(s.call)(*args),
            "the forward of vjp": lambda: jax.vjp(s.call, *args)[0],
        }
        for transform, run in ways.items():
            yield from _same_value(s, transform, run, expected, plan.tolerance)


def _same_value(
    s: Subject, transform: str, run: Callable[[], PyTree], expected: PyTree, tolerance: float
) -> Iterator[Finding]:
    try:
        value = run()
    except Exception as error:
        yield Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
        return
    if jax.tree.structure(value) != jax.tree.structure(expected):
        message = f"the output's tree is {jax.tree.structure(value)}, the reference's differs"
        yield Finding(CHECK, transform, "FAIL", "the output", message)
        return
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(value), jax.tree.leaves(expected), strict=True
    ):
        name = f"the output{jax.tree_util.keystr(path)}"
        yield _same_leaf(transform, name, jnp.asarray(mine), jnp.asarray(theirs), tolerance)


def _same_leaf(
    transform: str, name: str, mine: jax.Array, theirs: jax.Array, tolerance: float
) -> Finding:
    if mine.shape != theirs.shape:
        message = f"shape {mine.shape}, expected {theirs.shape}"
        return Finding(CHECK, transform, "FAIL", name, message)
    if mine.dtype != theirs.dtype:
        # To round to float32 inside is a choice; the checks of the algebra allow for it.
        verdict = "WARN" if is_float(mine) and is_float(theirs) else "FAIL"
        message = f"dtype {mine.dtype}, expected {theirs.dtype}"
        return Finding(CHECK, transform, verdict, name, message)
    mine, theirs = as_float64(mine), as_float64(theirs)
    if not np.array_equal(np.isfinite(mine), np.isfinite(theirs)):
        return Finding(CHECK, transform, "FAIL", name, "not finite where the reference is")
    finite = np.isfinite(theirs)
    if (error := relative_error(mine[finite], theirs[finite])) > tolerance:
        message = f"the value is off by {error:.3g} of the largest"
        return Finding(CHECK, transform, "FAIL", name, message)
    return Finding(CHECK, transform, "PASS", name)


def _types(s: Subject, args: tuple[PyTree, ...], plan: Plan, transform: str) -> Iterator[Finding]:
    """The output's dtype on every way of calling; each cotangent's shape and dtype."""
    try:
        primal = jax.eval_shape(s.call, *args)
        y, vjp = jax.vjp(s.call, *args)
        cotangents = vjp(filled(y, ones(y)))
    except Exception as error:
        if plan.truth is not None and _raises(plan.truth, args):
            yield Finding(CHECK, transform, "SKIP", message="the reference raises there too")
            return
        yield Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
        return
    yield from _output_dtypes(transform, jax.tree.leaves(primal), jax.tree.leaves(y))
    leaves, structure = jax.tree.flatten(args)
    paths = labels(s.names, args)
    got = [
        d for x, d in zip(leaves, structure.flatten_up_to(cotangents), strict=True) if is_float(x)
    ]
    for name, x, d in zip(paths, floats(args), got, strict=True):
        if (d.shape, d.dtype) == (x.shape, x.dtype):
            yield Finding(CHECK, transform, "PASS", name)
            continue
        message = (
            f"the cotangent is {d.dtype}{list(d.shape)}, its argument {x.dtype}{list(x.shape)}"
        )
        yield Finding(
            CHECK, transform, "FAIL", name, message, hint=f"end with .astype({name}.dtype)"
        )


def _output_dtypes(transform: str, primal: list[Any], forward: list[Any]) -> Iterator[Finding]:
    for position, (x, y) in enumerate(zip(primal, forward, strict=True)):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            message = f"f gives {x.dtype}{list(x.shape)}, its forward {y.dtype}{list(y.shape)}"
            yield Finding(CHECK, transform, "FAIL", f"output {position}", message)


def _raises(f: Callable[..., PyTree], args: tuple[PyTree, ...]) -> bool:
    try:
        jax.block_until_ready(jax.vjp(f, *args)[0])
    except Exception:
        return True
    return False


def _integer_arguments(s: Subject) -> Iterator[Finding]:
    """A custom_vjp's own backward should give None for what is not differentiable."""
    forward, backward = getattr(s.whole, "fwd", None), getattr(s.whole, "bwd", None)
    integers = [i for i, arg in enumerate(s.args) if jax.tree.leaves(arg) and not floats(arg)]
    if (
        forward is None
        or backward is None
        or not integers
        or getattr(s.whole, "nondiff_argnums", ())
    ):
        return
    y, residuals = forward(*s.args)
    cotangents = backward(residuals, filled(y, ones(y)))
    for i in integers:
        found = [d for d in jax.tree.leaves(cotangents[i]) if d.dtype != jax.dtypes.float0]
        verdict = "WARN" if found else "PASS"
        message = (
            f"an integer argument has the cotangent {found[0].dtype}; give None" if found else ""
        )
        yield Finding(CHECK, "integer argument", verdict, s.names[i], message)


def _dropped_outputs(s: Subject, plan: Plan) -> Iterator[Finding]:
    """With several outputs, the gradient of each one alone: the others are symbolic zeros."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        g = random_g(plan, s, args)
        if len(g) < 2:
            return
        for position, alone in enumerate(g):
            others = [x if i == position else jnp.zeros_like(x) for i, x in enumerate(g)]
            yield from attempt(
                s,
                CHECK,
                f"output {position} alone",
                lambda position=position, alone=alone: pull(_one(s, position), args, [alone]),
                lambda others=others: plan.gradients(s, args, others),
                tolerance=plan.tolerance,
            )


def _one(s: Subject, position: int) -> Callable[..., jax.Array]:
    return lambda *args: floats(s.call(*args))[position]


def _ways_of_calling(s: Subject, plan: Plan) -> Iterator[Finding]:
    """By keyword, and with defaulted arguments left out: a bare custom_vjp may refuse."""
    parameters = _positional(s.whole)
    if len(parameters) < len(s.args) or getattr(s.whole, "nondiff_argnums", ()) or not s.args:
        return
    g = random_g(plan, s, s.args)
    expected = pull(s.call, s.args, g)
    names = [p.name for p in parameters[: len(s.args)]]

    def by_keyword(*args: PyTree) -> PyTree:
        return s.whole(**dict(zip(names, args, strict=True)))

    yield from _called(s, "by keyword", by_keyword, g, expected)


def _called(
    s: Subject, transform: str, f: Callable[..., PyTree], g: Cotangent, expected: Sequence[Any]
) -> Iterator[Finding]:
    try:
        got = pull(f, s.args, g)
    except Exception as error:
        message = f"raises {brief(error)}; give arguments by position, or bind them in a wrapper"
        yield Finding(CHECK, transform, "WARN", message=message)
        return
    yield from judge(s, CHECK, transform, got, expected, tolerance=1e-5, g=g)


def _positional(f: Callable[..., PyTree]) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
