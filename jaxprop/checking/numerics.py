"""Errors in the dtypes that people train in, beside those of automatic differentiation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxprop.checking.comparison import Difference, as_float64, difference, largest
from jaxprop.checking.hints import hint
from jaxprop.checking.judging import REFERENCE_OFF, at_infinity, brief, raised
from jaxprop.checking.plan import Plan, on_host
from jaxprop.checking.point import Point
from jaxprop.checking.probing import Answer, Cotangent, answer, normal
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, labels

DRAWS = 3
AUTOMATIC_OFF = "automatic differentiation is over the budget there, too"
# Below so many ulps of the leaf's largest value nothing is said.
BUDGET = {"float64": 1024.0, "float32": 32.0, "float16": 16.0, "bfloat16": 8.0}
# Times automatic differentiation's own error, in the same dtype and pooled over draws.
CLEARLY_WORSE = 4.0
# At an edge where automatic differentiation is over the budget itself, so much worse than it is a
# doubt only; and where it is off by such a share of the largest value, nothing can be said.
DOUBTFULLY_WORSE = 64.0
HOPELESS = 0.01
# Times what rounding the arguments and g once, to that dtype, does to the true gradient.
INHERENT = 4.0


def numerics(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 3: jitted, in each dtype, against the float64 reference on the same rounded inputs."""
    if plan.unstated:
        yield Finding("numerics", "", "SKIP", message="a surrogate, and no gradient is stated")
        return
    given = max((float(jnp.finfo(x.dtype).eps) for x in floats(s.args)), default=0.0)
    for dtype in plan.dtypes:
        if plan.precision.loops and float(jnp.finfo(dtype).eps) > given:
            message = "f loops until something holds, which may be never in a coarser dtype"
            yield Finding("numerics", jnp.dtype(dtype).name, "SKIP", message=message)
            continue
        yield from in_one_dtype(s, plan, dtype, "numerics", jnp.dtype(dtype).name)


@dataclass(frozen=True)
class _Draws:
    """The answers to a few cotangents: f's, automatic differentiation's and the truth's."""

    points: list[Point]
    got: list[list[np.ndarray]]
    automatic: list[list[np.ndarray]] | None
    eps: float
    limit: float

    def leaf(self, i: int) -> "_Leaf":
        automatic = None if self.automatic is None else [a[i] for a in self.automatic]
        truth = [_both(point.expected)[i] for point in self.points]
        return _Leaf([a[i] for a in self.got], truth, automatic, self.eps, self.limit)


@dataclass(frozen=True)
class _Leaf:
    """One leaf of the outputs or the cotangents, over the draws."""

    got: list[np.ndarray]
    truth: list[np.ndarray]
    automatic: list[np.ndarray] | None
    eps: float
    limit: float

    @property
    def unit(self) -> float:
        """One ulp of the largest value over all draws."""
        return self.eps * max(
            largest(np.where(np.abs(t) > self.limit, np.nan, t)) for t in self.truth
        )

    def ulps(self, answers: list[np.ndarray]) -> float:
        """The largest error over the draws; inf where not finite and the truth is."""
        worst = 0.0
        for mine, theirs in zip(answers, self.truth, strict=True):
            asked = np.isfinite(theirs) & (np.abs(theirs) <= self.limit)
            error = np.abs(mine[asked] - theirs[asked])
            worst = max(worst, float(np.max(np.where(np.isnan(error), np.inf, error), initial=0)))
        return worst / self.unit


def in_one_dtype(
    s: Subject,
    plan: Plan,
    dtype: Any,
    check: str,
    transform: str,
    draws: int = DRAWS,
    extreme: bool = False,
) -> Iterator[Finding]:
    """The worst of a few draws of g, for each output and each argument."""
    dtype = jnp.dtype(dtype)
    try:
        taken = _taken(s, plan, dtype, draws)
    except _Rejected as error:
        yield Finding(check, transform, error.verdict, message=str(error))
        return
    if not extreme:
        yield from _undifferentiated(s, plan, dtype, taken, check, transform)
    names = _names(s, taken.points[0])
    allowed_ulps = BUDGET[dtype.name] * max(1.0, plan.truth_precision.eps / taken.eps)
    for i, name in enumerate(names):
        leaf = taken.leaf(i)
        mine = leaf.ulps(leaf.got)
        theirs = None if leaf.automatic is None else leaf.ulps(leaf.automatic)
        is_output = i < len(names) - len(floats(s.args))
        if is_output and plan.surrogate:
            continue
        if mine <= max(allowed_ulps, CLEARLY_WORSE * (theirs or 0.0)):
            yield Finding(check, transform, "PASS", name, ulps=mine, automatic_ulps=theirs)
            continue
        if name in plan.wrong:
            yield _known(leaf, check, transform, name, dtype, theirs)
            continue
        yield _looked_into(taken, i, name, mine, allowed_ulps, check, transform, dtype, extreme)


def _known(
    leaf: _Leaf, check: str, transform: str, name: str, dtype: Any, theirs: float | None
) -> Finding:
    """A leaf that the algebra found wrong already: no excuse is looked for."""
    found = difference(leaf.got[0], leaf.truth[0], float(jnp.finfo(dtype).eps), limit=leaf.limit)
    if found is None:
        return Finding(check, transform, "FAIL", name, automatic_ulps=theirs)
    return Finding(
        check, transform, "FAIL", name, hint=hint(found, alike=0.02), automatic_ulps=theirs,
        **found.fields(dtype),
    )  # fmt: skip


def _undifferentiated(
    s: Subject, plan: Plan, dtype: Any, taken: _Draws, check: str, transform: str
) -> Iterator[Finding]:
    """The value without differentiation against that of the forward that it runs."""
    args = taken.points[0].args
    with jax.enable_x64(dtype == jnp.float64):
        try:
            alone = [as_float64(y) for y in floats(jax.jit(s.call)(*args))]
        except Exception as error:
            yield Finding(check, transform, "FAIL", "the output", f"jit(f) raises {brief(error)}")
            return
    for y, forward in zip(alone, taken.got[0], strict=False):
        unit = taken.eps * largest(forward)
        found = difference(y, forward, 0.0, floor=BUDGET[dtype.name] * unit, limit=taken.limit)
        if found is not None:
            message = "f without differentiation is not what its forward gives"
            yield Finding(check, transform, "FAIL", "the output", message, **found.fields(dtype))


class _Rejected(Exception):
    """Why there is nothing to judge in a dtype, and whether that is a fault."""

    def __init__(self, verdict: str, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


def _taken(s: Subject, plan: Plan, dtype: Any, draws: int) -> _Draws:
    truth = plan.truth
    with jax.enable_x64(dtype == jnp.float64):
        args = in_dtype(s.args, dtype)
        if problem := raised(lambda: plan.shapes_of(s.call, args)):
            raise _Rejected("SKIP", f"f does not take it: {brief(problem)}")
        y = floats(plan.shapes_of(s.call, args))
        gs = [normal(plan.seed + draw, y) for draw in range(draws)]
        try:
            got = [_both(plan.run(s.call, args, g, as_users_do=True)) for g in gs]
        except Exception as error:
            fails = truth is not None and raised(lambda: plan.run(truth, args, gs[0])) is None
            raise _Rejected("FAIL" if fails else "SKIP", f"raises {brief(error)}") from None
        automatic = None
        if truth is not None and raised(lambda: _automatic(plan, truth, args, gs[:1])) is None:
            automatic = _automatic(plan, truth, args, gs)
    points = [Point(s, plan, args, g) for g in gs]
    info = jnp.finfo(dtype)
    return _Draws(points, got, automatic, float(info.eps), float(info.max))


def _automatic(
    plan: Plan, truth: Callable[..., PyTree], args: tuple, gs: list[Cotangent]
) -> list[list[np.ndarray]]:
    y = floats(plan.shapes_of(truth, args))
    cast = [[x.astype(leaf.dtype) for x, leaf in zip(g, y, strict=True)] for g in gs]
    return [_both(plan.run(truth, args, g, as_users_do=True)) for g in cast]


def _both(found: Answer) -> list[np.ndarray]:
    return [*found.values, *found.cotangents]


def _names(s: Subject, point: Point) -> list[str]:
    arguments = labels(s.names, s.args)
    outputs = len(point.expected.values)
    return [*(["the output"] if outputs == 1 else [f"the output {i}" for i in range(outputs)]),
            *arguments]  # fmt: skip


def _looked_into(
    taken: _Draws,
    i: int,
    name: str,
    mine: float,
    budget: float,
    check: str,
    transform: str,
    dtype: Any,
    extreme: bool,
) -> Finding:
    """FAIL where over the budget, clearly worse than automatic, and not inherent in the inputs."""
    leaf = taken.leaf(i)
    theirs = None if leaf.automatic is None else leaf.ulps(leaf.automatic)
    passed = Finding(check, transform, "PASS", name, ulps=mine, automatic_ulps=theirs)
    allowed = max(budget, CLEARLY_WORSE * (theirs or 0.0))
    verdict, message, worst = "PASS", "", None
    for point, got, truth in zip(taken.points, leaf.got, leaf.truth, strict=True):
        tolerance = min(allowed * leaf.unit / largest(truth), 1e15)
        found = difference(got, truth, tolerance, limit=leaf.limit)
        if found is not None and not np.isinf(allowed):
            noise = np.nan_to_num(_both(point.noise(leaf.eps))[i])
            found = found.but(found.error <= INHERENT * noise + allowed * leaf.unit)
        if found is None or np.isinf(allowed):
            continue
        said, text, found = _excused(point, i, found, leaf, allowed, extreme)
        if said != "PASS" and (verdict != "FAIL"):
            verdict, message, worst = said, text, (point, found)
    if worst is None or (extreme and _is_hopeless(leaf, mine, theirs)):
        return passed
    if extreme and (theirs or 0.0) > budget and mine <= DOUBTFULLY_WORSE * (theirs or 0.0):
        verdict, message = "WARN", AUTOMATIC_OFF
    point, found = worst
    text = message or _compiled_hint(point, i, found, leaf, allowed) or hint(found, alike=0.02)
    return Finding(
        check, transform, verdict, name, hint=text, automatic_ulps=theirs, **found.fields(dtype)
    )


def _is_hopeless(leaf: _Leaf, mine: float, theirs: float | None) -> bool:
    """Whether rounding leaves automatic differentiation no right digits there either."""
    return bool(np.isfinite(mine) and (theirs or 0.0) * leaf.eps > HOPELESS)


def _excused(
    point: Point, i: int, found: Difference, leaf: _Leaf, allowed: float, extreme: bool
) -> tuple[str, str, Difference]:
    """PASS at kinks, WARN where finite differences side with f."""
    position = i - len(point.expected.values)
    if position < 0:
        return "FAIL", "", found
    slack = allowed * leaf.unit
    if found.but(at_infinity(point.leaves[position], found)) is None:
        return "PASS", "", found
    left = found.but(point.at_kinks(position, found, slack, near=8 * leaf.eps))
    if left is None:
        return "PASS", "", found
    if extreme and left.but(point.sides_with_f(position, left)) is None:
        return "WARN", REFERENCE_OFF, left
    return "FAIL", "", left


def _compiled_hint(point: Point, i: int, found: Difference, leaf: _Leaf, allowed: float) -> str:
    """Whether the same program is right when it is not compiled as a whole."""
    limit = allowed * leaf.unit

    def right(run: Callable[..., Answer]) -> bool:
        try:
            got = _both(on_host(run(point.args, point.g)))[i]
        except Exception:
            return False
        return bool(np.abs(got[found.worst] - found.expected[found.worst]) <= limit)

    eager = partial(answer, point.s.call)
    if not right(eager):
        return ""
    if right(lambda args, g: _traced(eager, args, g)):
        return "right in eager, wrong compiled: suspect the compiler (try another XLA_FLAGS)"
    return "right in eager, wrong when traced: Python that tells arrays from tracers, or state"


def _traced(run: Callable[..., Answer], args: tuple, g: Cotangent) -> Answer:
    """The traced program, run one operation at a time."""
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(args, g)
    flat = core.jaxpr_as_fun(closed)(*jax.tree.leaves((args, g)))
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)
