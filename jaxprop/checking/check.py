"""`check`: every check on one function, and one report."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxprop.checking.algebra import algebra, differences, linearity
from jaxprop.checking.contract import contract
from jaxprop.checking.edges import edges as check_edges
from jaxprop.checking.meshes import meshes
from jaxprop.checking.numerics import numerics
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import ones, pull
from jaxprop.checking.purity import purity
from jaxprop.checking.report import Finding, Report
from jaxprop.checking.residuals import residuals
from jaxprop.checking.second_order import second_order
from jaxprop.checking.shapes import shapes as check_shapes
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, subject
from jaxprop.checking.transforms import transforms
from jaxprop.rule import Case, Rule

Check = Callable[[Subject, Plan], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    contract,
    algebra,
    differences,
    linearity,
    numerics,
    check_edges,
    check_shapes,
    transforms,
    meshes,
    purity,
    second_order,
    residuals,
)
DTYPES = ("float32", "bfloat16", "float16")
# After so many seconds a terminal is told what is going on.
PATIENCE = 2.0


def check(
    f: Callable[..., PyTree],
    *args: PyTree,
    reference: Callable[..., PyTree] | None = None,
    edges: Iterable[tuple] = (),
    shapes: Iterable[tuple] = (),
    dtypes: Sequence[Any] = DTYPES,
    intended_zero: Sequence[str] = (),
    surrogate: bool | Callable[..., PyTree] = False,
    order: int = 2,
    budget: float | None = None,
    seed: int = 0,
) -> Report:
    """Check a function with a hand-written VJP; every check runs, and all is reported.

    Args:
        f: a `jax.custom_vjp` function, a function that uses some inside, or a Rule, a layer, a
            network or a cost. A rule's options are fixed with `rule.bind(...)`.
        args: where to check it: arrays, pytrees of arrays or None; anything else is closed
            over. May be left out for a Rule with cases, which are then all checked.
        reference: a plain differentiable function of the same arguments. The rule's own, or what
            the `custom_vjp` wraps, where None; finite differences where there is neither.
        edges, shapes: further full sets of arguments to check at.
        dtypes: in which the numerics are judged.
        intended_zero: names of arguments whose zero cotangent is meant, as of a mask.
        surrogate: True where the backward is not the derivative, on purpose; or the function
            whose gradient it is meant to be.
        order: 2 to check second order too, 1 where that is not supported.
        budget: bytes saved per element of the output, beyond arguments and output.
        seed: of every random number.

    Returns:
        A Report: `verdict`, `findings`, `str(report)`, `raise_if_failed()`.

    Raises:
        TypeError: where f is not callable, or needs args and none were given.
        ValueError: where no argument is floating.
    """
    started = time.monotonic()
    options = {
        "reference": reference,
        "edges": tuple(edges),
        "shapes": tuple(shapes),
        "dtypes": tuple(jnp.dtype(dtype) for dtype in dtypes),
        "intended_zero": frozenset(intended_zero),
        "surrogate": surrogate or getattr(f, "surrogate", False),
        "order": order,
        "budget": budget if budget is not None else getattr(f, "budget", None),
        "seed": seed,
    }
    if not callable(f):
        raise TypeError(f"check: f must be callable, got {type(f).__name__}. Give a function.")
    if args:
        outcomes, notes = _run(f, args, started, **options)
    else:
        outcomes, notes = _run_cases(f, started, options)
    name = getattr(f, "__name__", type(f).__name__)
    return Report(name, seed, tuple(outcomes), tuple(notes), time.monotonic() - started)


def _run_cases(
    f: Callable[..., PyTree], started: float, options: dict[str, Any]
) -> tuple[list[Finding], list[str]]:
    """A rule at its own cases: per set of options the first in full, the others as shapes."""
    cases = list(f.cases()) if isinstance(f, Rule) else []
    if not cases:
        raise TypeError(
            f"check: {getattr(f, '__name__', f)!r} needs arguments to be checked at, got none. "
            "Call check(f, *args), or give the rule cases."
        )
    outcomes: list[Finding] = []
    notes: list[str] = []
    for bound, group in _by_options(cases):
        rule = f.bind(**bound) if bound else f
        plain = [case.args for case in group if not case.edge] or [group[0].args]
        found, said = _run(
            rule,
            plain[0],
            started,
            **options
            | {
                "shapes": (*options["shapes"], *plain[1:]),
                "edges": (*options["edges"], *(case.args for case in group if case.edge)),
            },
        )
        suffix = "".join(f", {name}={value!r}" for name, value in bound.items())
        outcomes += [replace(o, transform=(o.transform + suffix).removeprefix(", ")) for o in found]
        notes += [note for note in said if note not in notes]
    return outcomes, notes


def _by_options(cases: list[Case]) -> list[tuple[dict[str, Any], list[Case]]]:
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(sorted(case.options.items(), key=str)), []).append(case)
    return [(dict(options), group) for options, group in groups.items()]


def _run(
    f: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    started: float,
    reference: Callable[..., PyTree] | None,
    edges: tuple[tuple, ...],
    shapes: tuple[tuple, ...],
    surrogate: bool | Callable[..., PyTree],
    **options: Any,
) -> tuple[list[Finding], list[str]]:
    s = subject(f, args, reference)
    if not floats(s.args):
        raise ValueError(
            f"check: {s.name} must have a floating argument to differentiate in, got none. Give "
            "floating arrays."
        )
    truth = surrogate if callable(surrogate) else None if surrogate else s.reference
    plan = Plan(
        edges=tuple(subject(f, other, reference) for other in edges),
        shapes=tuple(subject(f, other, reference) for other in shapes),
        surrogate=bool(surrogate),
        truth=truth if truth is None or _differentiable(truth, s) else None,
        rounds=_rounds(s),
        **options,
    )
    notes = []
    if plan.rounds:
        notes.append(f"{s.name} rounds to less than float64 inside; judged at float32's precision")
    outcomes = []
    for run in CHECKS:
        _say(s, run, started)
        outcomes += list(run(s, plan))
    kinks = {o.transform for o in outcomes if o.message == "another subgradient of a kink"}
    if kinks:
        notes.append(f"another subgradient than the reference's at: {', '.join(sorted(kinks))}")
    return outcomes, notes


def _differentiable(reference: Callable[..., PyTree], s: Subject) -> bool:
    """Whether automatic differentiation goes through the reference."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        try:
            jax.eval_shape(lambda: jax.vjp(reference, *args)[0])
        except Exception:
            return False
    return True


def _rounds(s: Subject) -> bool:
    """Whether a float64 value is made less than float64 anywhere in value and gradient."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        try:
            g = ones(jax.eval_shape(s.call, *args))
            closed = jax.make_jaxpr(lambda args, g: pull(s.call, args, g))(args, g)
        except Exception:
            return False
    return any(_narrows(eqn) for eqn in _equations(closed.jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _narrows(eqn: Any) -> bool:
    if eqn.primitive.name != "convert_element_type":
        return False
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    floating = jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating)
    return floating and jnp.finfo(after).bits < jnp.finfo(before).bits


def _say(s: Subject, run: Check, started: float) -> None:
    """A line of progress where somebody is waiting."""
    if sys.stderr.isatty() and time.monotonic() - started > PATIENCE:
        print(f"checking {s.name}: {run.__name__}".ljust(60), end="\r", file=sys.stderr)
