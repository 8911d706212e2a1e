"""Errors in the dtypes that people train in, beside those of automatic differentiation."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64, difference, hint, largest
from jaxprop.checking.plan import Plan, brief
from jaxprop.checking.probing import Cotangent, normal, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, labels

DRAWS = 3
# Below this many ulps of the leaf's largest value nothing is said.
BUDGET = 16.0
# Times automatic differentiation's own error, in the same dtype and pooled over draws.
CLEARLY_WORSE = 4.0


def numerics(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 3: jitted, in each dtype, against the float64 reference on the same rounded inputs."""
    if plan.surrogate and plan.truth is None:
        yield Finding("numerics", "", "SKIP", message="a surrogate, and no gradient is stated")
        return
    for dtype in plan.dtypes:
        yield from in_one_dtype(s, plan, dtype, "numerics", jnp.dtype(dtype).name)


def in_one_dtype(
    s: Subject, plan: Plan, dtype: Any, check: str, transform: str, draws: int = DRAWS
) -> Iterator[Finding]:
    """The worst of a few draws of g, for each leaf."""
    with jax.enable_x64(jnp.dtype(dtype) == jnp.float64):
        args = in_dtype(s.args, dtype)
        try:
            y = jax.eval_shape(plan.truth or s.call, *args)
        except Exception as error:
            yield Finding(check, transform, "SKIP", message=f"the reference raises: {brief(error)}")
            return
        gs = [normal(plan.seed + draw, floats(y)) for draw in range(draws)]
        try:
            got = _at(plan, s.call, args, gs)
        except Exception as error:
            yield Finding(check, transform, "FAIL", message=f"raises {brief(error)}")
            return
        automatic = None if plan.truth is None else _at(plan, plan.truth, args, gs)
        eager = [as_float64(d) for d in pull(s.call, args, gs[0])]
    truth = [[as_float64(d) for d in _truth(s, plan, args, g)] for g in gs]
    for leaf, name in enumerate(labels(s.names, s.args)):
        theirs = None if automatic is None else [ds[leaf] for ds in automatic]
        yield _judge_leaf(
            check,
            transform,
            name,
            [ds[leaf] for ds in got],
            [ds[leaf] for ds in truth],
            theirs,
            eager[leaf],
            floats(args)[leaf].dtype,
        )


def _at(
    plan: Plan, f: Callable[..., PyTree], args: tuple[PyTree, ...], gs: list[Cotangent]
) -> list[list[np.ndarray]]:
    return [[as_float64(d) for d in plan.pull(f, args, g)] for g in gs]


def _truth(s: Subject, plan: Plan, args: tuple[PyTree, ...], g: Cotangent) -> list[Any]:
    with jax.enable_x64(True):
        wide = in_dtype(args, jnp.float64)
        y = floats(jax.eval_shape(plan.truth or s.call, *wide))
        g = [x.astype(leaf.dtype) for x, leaf in zip(g, y, strict=True)]
    return plan.gradients(s, args, g)


def _judge_leaf(
    check: str,
    transform: str,
    name: str,
    got: list[np.ndarray],
    truth: list[np.ndarray],
    automatic: list[np.ndarray] | None,
    eager: np.ndarray,
    dtype: Any,
) -> Finding:
    """FAIL where over the budget and clearly worse than automatic differentiation."""
    limit = float(jnp.finfo(dtype).max)
    eps = float(jnp.finfo(dtype).eps)
    theirs = None if automatic is None else _ulps(automatic, truth, eps, limit)
    mine = _ulps(got, truth, eps, limit)
    allowed = BUDGET if theirs is None else max(BUDGET, CLEARLY_WORSE * theirs)
    if mine <= allowed:
        return Finding(check, transform, "PASS", name, ulps=mine, automatic_ulps=theirs)
    draw = int(np.argmax([_ulps([a], [b], eps, limit) for a, b in zip(got, truth, strict=True)]))
    ignore = np.abs(truth[draw]) > limit
    found = difference(got[draw], truth[draw], min(allowed, 1e15) * eps, ignore)
    if found is None:  # the reference is not finite there in this dtype either
        return Finding(check, transform, "PASS", name, ulps=mine, automatic_ulps=theirs)
    text = hint(found)
    if draw == 0 and _ulps([eager], truth[:1], eps, limit) <= allowed:
        text = "right in eager, wrong compiled: suspect the compiler, or Python state in the rule"
    return Finding(
        check, transform, "FAIL", name, hint=text, automatic_ulps=theirs, **found.fields(dtype)
    )


def _ulps(got: list[np.ndarray], truth: list[np.ndarray], eps: float, limit: float) -> float:
    """The largest error over the draws, in ulps of the largest value of all draws."""
    unit = max((largest(np.where(np.abs(t) > limit, np.nan, t)) for t in truth), default=1.0) * eps
    worst = 0.0
    for mine, theirs in zip(got, truth, strict=True):
        asked = np.isfinite(theirs) & (np.abs(theirs) <= limit)
        error = np.abs(mine[asked] - theirs[asked])
        worst = max(worst, float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0)))
    return worst / unit
