"""The algebra in float64: right for random cotangents, and linear in them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking import finite_differences
from jaxprop.checking.comparison import as_float64
from jaxprop.checking.plan import Plan, attempt, brief, judge, random_g
from jaxprop.checking.probing import Cotangent, one_hots, pull
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import Subject, in_dtype, labels

DRAWS = 3
POWERS = (24, 10, 1, -1, -10, -24)


def algebra(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 2: elementwise against the reference, for random and one-hot cotangents."""
    if plan.surrogate and plan.truth is None:
        message = "a surrogate, and no surrogate gradient is stated"
        yield Finding("algebra", "", "SKIP", message=message)
        return
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        try:
            y = jax.eval_shape(s.call, *args)
        except Exception as error:
            yield Finding("algebra", "", "FAIL", message=f"raises {brief(error)}")
            return
        draws = {f"g {i}": random_g(plan, s, args, i) for i in range(DRAWS)}
        draws |= {f"one-hot g {i}": g for i, g in enumerate(one_hots(y))}
        for transform, g in draws.items():
            yield from attempt(
                s,
                "algebra",
                transform,
                lambda g=g: pull(s.call, args, g),
                lambda g=g: plan.gradients(s, args, g),
                tolerance=plan.tolerance,
                g=g,
                repro=_repro(s, plan, transform),
            )


def _repro(s: Subject, plan: Plan, transform: str) -> str:
    if not transform.startswith("g "):
        return ""
    seed = plan.seed + int(transform[2:])
    return (
        f"with jax.enable_x64(True): y, vjp = jax.vjp({s.name}, *args); "
        f"vjp(jaxprop.checking.cotangent({seed}, y))  # args in float64"
    )


def linearity(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 4: a pullback is a linear map of g, so it scales, adds and keeps zero exactly."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        g, h = random_g(plan, s, args), random_g(plan, s, args, 1)

        def at(g: Cotangent) -> list:
            return [as_float64(d) for d in plan.pull(s.call, args, g)]

        try:
            by_g, by_h = at(g), at(h)
            cases = {
                "zero g": (at([0 * x for x in g]), [np.zeros_like(d) for d in by_g]),
                "-g": (at([-x for x in g]), [-d for d in by_g]),
                "g + h": (
                    at([x + y for x, y in zip(g, h, strict=True)]),
                    [a + b for a, b in zip(by_g, by_h, strict=True)],
                ),
            }
            for power in POWERS:
                scale = 2.0**power
                back = [d / scale for d in at([scale * x for x in g])]
                cases[f"2^{power} g"] = (back, by_g)
        except Exception as error:
            yield Finding("linearity", "", "FAIL", message=f"raises {brief(error)}")
            return
    tolerance = 1e-5 if plan.rounds else 1e-12
    for transform, (got, expected) in cases.items():
        if transform == "zero g":
            yield from _zero_stays_zero(s, got)
            continue
        yield from judge(s, "linearity", transform, got, expected, tolerance=tolerance, g=g)


def _sums(a: list, b: list) -> list:
    return [x + y for x, y in zip(a, b, strict=True)]


def _zero_stays_zero(s: Subject, got: list[np.ndarray]) -> Iterator[Finding]:
    for name, d in zip(labels(s.names, s.args), got, strict=True):
        if np.all(d == 0):
            yield Finding("linearity", "zero g", "PASS", name)
            continue
        index = tuple(int(i) for i in np.unravel_index(np.argmax(d != 0), d.shape))
        yield Finding(
            "linearity",
            "zero g",
            "FAIL",
            name,
            "a zero cotangent must give zero",
            index=index,
            got=float(d[index]),
            expected=0.0,
            hint="a term that does not have g as a factor",
        )


def differences(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 10: where there is no reference, the Taylor remainder's slope arbitrates."""
    if plan.truth is not None or plan.surrogate:
        return
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        for draw in range(DRAWS):
            g = random_g(plan, s, args, draw)
            d = pull(s.call, args, g)
            slope = finite_differences.taylor_slope(s.call, args, g, d, plan.seed + draw)
            right = np.isnan(slope) or slope > 1.5
            message = f"the Taylor remainder is of order h^{slope:.2f}; 2 when right, 1 when wrong"
            yield Finding(
                "finite differences",
                f"g {draw}",
                "PASS" if right else "FAIL",
                message="" if right else message,
            )
