"""`check`: every check on one function, and one report."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.algebra import algebra, differences, linearity
from jaxprop.checking.calling import calling
from jaxprop.checking.context import in_context
from jaxprop.checking.contract import IMPLICIT, contract, named_in
from jaxprop.checking.edges import edges as check_edges
from jaxprop.checking.judging import OTHER_SUBGRADIENT, brief
from jaxprop.checking.meshes import meshes
from jaxprop.checking.numerics import numerics
from jaxprop.checking.plan import Plan, precision_of
from jaxprop.checking.probing import filled
from jaxprop.checking.purity import purity
from jaxprop.checking.report import Finding, Report
from jaxprop.checking.residuals import residuals
from jaxprop.checking.second_order import second_order
from jaxprop.checking.shapes import shapes as check_shapes
from jaxprop.checking.subject import PyTree, Subject, floats, subject
from jaxprop.checking.transforms import transforms
from jaxprop.rule import Case, Rule

Check = Callable[[Subject, Plan], Iterator[Finding]]

# By the names that the report files findings under, but that those of "meshes" are under
# "transforms", and finite differences, which come with "algebra", under their own.
CHECKS: dict[str, tuple[Check, ...]] = {
    "contract": (contract, calling),
    "algebra": (algebra, differences),
    "linearity": (linearity,),
    "numerics": (numerics,),
    "edges": (check_edges,),
    "shapes": (check_shapes,),
    "transforms": (transforms,),
    "meshes": (meshes,),
    "purity": (purity,),
    "second order": (second_order,),
    "residuals": (residuals,),
}
DTYPES = ("float32", "bfloat16", "float16")
# Those whose verdict the numbers drawn may change.
DRAWING = ("algebra", "linearity", "numerics", "edges")
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
    further_seeds: Iterable[int] = (),
    checks: Sequence[str] | None = None,
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
        further_seeds: algebra, linearity, numerics and edges are checked with each of these, too;
            nothing is compiled again, so that they cost far less than the first.
        checks: the names of the checks to run, as in the report, where not all are wanted;
            "transforms" leaves out what needs several devices, which is "meshes".

    Returns:
        A Report: `verdict`, `findings`, `str(report)`, `raise_if_failed()`.

    Raises:
        TypeError: where f is not callable, or needs args and none were given.
        ValueError: where no argument is floating, or there is no check of some name.
    """
    started = time.monotonic()
    options: dict[str, Any] = {
        "reference": reference,
        "edges": tuple(edges),
        "shapes": tuple(shapes),
        "dtypes": tuple(jnp.dtype(dtype) for dtype in dtypes),
        "intended_zero": frozenset(intended_zero),
        "surrogate": surrogate or getattr(f, "surrogate", False),
        "order": order,
        "budget": budget if budget is not None else getattr(f, "budget", None),
        "seed": seed,
        "further_seeds": tuple(further_seeds),
        "checks": _chosen(checks),
    }
    if not callable(f):
        raise TypeError(f"check: f must be callable, got {type(f).__name__}. Give a function.")
    if args:
        outcomes, notes = _run(f, args, started, **options)
    else:
        outcomes, notes = _run_cases(f, started, options)
    name = getattr(f, "__name__", type(f).__name__)
    return Report(name, seed, tuple(outcomes), tuple(notes), time.monotonic() - started)


def _chosen(names: Sequence[str] | None) -> list[tuple[str, Check]]:
    """The checks of these names, in the order in which they run."""
    if unknown := [name for name in names or () if name not in CHECKS]:
        raise ValueError(
            f"check: checks must be among {', '.join(CHECKS)}; got {unknown[0]!r}. Leave it out."
        )
    chosen = CHECKS if names is None else names
    return [(name, run) for name, runs in CHECKS.items() if name in chosen for run in runs]


def _run_cases(
    f: Callable[..., PyTree], started: float, options: dict[str, Any]
) -> tuple[list[Finding], list[str]]:
    """A rule at its own cases: per set of options the first in full, the others as shapes."""
    cases = list(f.cases()) if isinstance(f, Rule) else []
    if not isinstance(f, Rule) or not cases:
        raise TypeError(
            f"check: {getattr(f, '__name__', f)!r} needs arguments to be checked at, got none. "
            "Call check(f, *args), or give the rule cases."
        )
    outcomes: list[Finding] = []
    notes: list[str] = []
    for bound, group in by_options(cases):
        rule = f.bind(**bound) if bound else f
        first, *plain = [case for case in group if not case.edge] or group[:1]
        edges = [case for case in group if case.edge]
        found, said = _run(
            rule,
            first.args,
            started,
            **options
            | {
                "shapes": (*(case.args for case in plain), *options["shapes"]),
                "edges": (*(case.args for case in edges), *options["edges"]),
            },
        )
        suffix = "".join(f", {name}={value!r}" for name, value in bound.items())
        names = {f"given shapes {i}": case.name for i, case in enumerate(plain)}
        names |= {f"given edge {i}": case.name for i, case in enumerate(edges)}
        outcomes += [replace(o, transform=_place(o.transform, names, suffix)) for o in found]
        notes += [note for note in said if note not in notes]
    return outcomes, notes


def _place(transform: str, names: Mapping[str, str], suffix: str) -> str:
    """Where an outcome lies, by the name of the rule's case and with the options' values."""
    given, *others = transform.split(", ")
    named = f"case {names[given]!r}" if given in names else given
    return (", ".join([named, *others]) + suffix).removeprefix(", ")


def by_options(cases: Iterable[Case]) -> list[tuple[dict[str, Any], list[Case]]]:
    """The cases of each setting of the options."""
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        # 1, 1.0 and True are equal, and three settings.
        typed = [(name, type(value), value) for name, value in case.options.items()]
        groups.setdefault(tuple(sorted(typed, key=str)), []).append(case)
    return [(dict(group[0].options), group) for group in groups.values()]


def _run(
    f: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    started: float,
    reference: Callable[..., PyTree] | None,
    edges: tuple[tuple, ...],
    shapes: tuple[tuple, ...],
    surrogate: bool | Callable[..., PyTree],
    checks: Sequence[tuple[str, Check]],
    further_seeds: tuple[int, ...],
    **options: Any,
) -> tuple[list[Finding], list[str]]:
    s = subject(f, args, reference)
    if not floats(s.args):
        raise ValueError(
            f"check: {s.name} must have a floating argument to differentiate in, got none. Give "
            "floating arrays."
        )
    precision = precision_of(s.call, s.args)
    if precision is None:
        return [_never_runs(s)], []
    truth = surrogate if callable(surrogate) else None if surrogate else s.reference
    truth_precision = None if truth is None else precision_of(truth, s.args)
    plan = Plan(
        edges=tuple(subject(f, other, reference) for other in edges),
        shapes=tuple(subject(f, other, reference) for other in shapes),
        surrogate=bool(surrogate),
        truth=None if truth_precision is None else truth,
        precision=precision,
        truth_precision=truth_precision or precision,
        **options,
    )
    outcomes: list[Finding] = []
    with np.errstate(all="ignore"):  # what is not finite is looked at, not computed with
        for name, run in checks:
            _say(s, run, started)
            if name == "second order" and _is_wrong(outcomes):
                outcomes.append(Finding(name, "", "SKIP", message="the first order is wrong"))
            else:
                outcomes += _collected(name, run, s, plan)
                plan.wrong.update(o.argument for o in outcomes if _is_wrong([o]))
        drawing = [(name, run) for name, run in checks if name in DRAWING]
        for seed in further_seeds:
            outcomes += _drawn_again(drawing, s, replace(plan, seed=seed, differences={}))
    return in_context(outcomes), _notes(s, plan, outcomes)


def _drawn_again(checks: Iterable[tuple[str, Check]], s: Subject, plan: Plan) -> list[Finding]:
    """What the checks find with another seed, which is named beside the place."""
    found = [finding for name, run in checks for finding in _collected(name, run, s, plan)]
    places = [", ".join(filter(None, (o.transform, f"seed {plan.seed}"))) for o in found]
    return [replace(o, transform=place) for o, place in zip(found, places, strict=True)]


def _collected(name: str, run: Check, s: Subject, plan: Plan) -> list[Finding]:
    """What one check finds; an error that it did not expect is a finding too, not the end."""
    found: list[Finding] = []
    try:
        for finding in run(s, plan):
            found.append(finding)
    except Exception as error:
        found.append(Finding(name, "", "FAIL", message=f"stopped by {brief(error)}"))
    return found


def _is_wrong(outcomes: list[Finding]) -> bool:
    """Whether the gradient itself is: its derivatives are then wrong in every argument."""
    return any(o.check == "algebra" and o.verdict == "FAIL" for o in outcomes)


def _never_runs(s: Subject) -> Finding:
    """f's gradient raises in float64 and in float32; at the arguments as they are, too?"""
    try:
        y, vjp = jax.vjp(s.call, *s.args)
        vjp(filled(y, [jnp.ones_like(x) for x in floats(y)]))
        message = "f's gradient cannot be traced, in float64 or float32: nothing can be checked"
    except Exception as error:
        message = f"raises {brief(error)}"
        return Finding("contract", "as given", "FAIL", named_in(error, s), message)
    return Finding("contract", "as given", "FAIL", message=message)


def _notes(s: Subject, plan: Plan, outcomes: list[Finding]) -> list[str]:
    notes = []
    run, inside = plan.precision.run.name, jnp.dtype(plan.precision.inside).name
    if run != "float64":
        notes.append(f"{s.name} does not run in float64; its algebra is judged in {run}")
    elif inside != "float64":
        notes.append(f"{s.name} rounds to {inside} inside; its algebra is judged at that precision")
    if plan.truth is None and not plan.surrogate:
        notes.append("there is no reference to differentiate; finite differences are the truth")
    implicit = {o.message for o in outcomes if IMPLICIT in o.message}
    notes += sorted(implicit)
    kinks = {o.transform.split(" in ")[0] for o in outcomes if o.message == OTHER_SUBGRADIENT}
    if kinks:
        notes.append(f"another subgradient than the reference's at: {', '.join(sorted(kinks))}")
    return notes


def _say(s: Subject, run: Check, started: float) -> None:
    """A line of progress where somebody is waiting."""
    if sys.stderr.isatty() and time.monotonic() - started > PATIENCE:
        print(f"checking {s.name}: {run.__name__}".ljust(60), end="\r", file=sys.stderr)
