"""The algebra in float64: right for random cotangents, and linear in them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64
from jaxprop.checking.judging import NOISE, brief, judge, same, size_of
from jaxprop.checking.plan import Plan
from jaxprop.checking.point import Point
from jaxprop.checking.probing import Cotangent, one_hots
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, labels, on_device

DRAWS = 3
ON_PURPOSE = "not linear in g; a surrogate may mean it so"
# float16 has no more than five bits of exponent to spare.
POWERS = (60, 24, 10, 1, -1, -10, -24, -60)
POWERS_OF_HALF_PRECISION = (8, 1, -1, -8)


def algebra(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 2: elementwise against the reference, for random and one-hot cotangents."""
    if plan.unstated:
        message = "a surrogate, and no surrogate gradient is stated"
        yield Finding("algebra", "", "SKIP", message=message)
        return
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        draws = {f"g {i}": plan.random_g(s, args, i) for i in range(DRAWS)}
        draws |= {
            f"one-hot g {i}": g for i, g in enumerate(one_hots(jax.eval_shape(s.call, *args)))
        }
        for transform, g in draws.items():
            try:
                got = plan.run(s.call, args, g)
            except Exception as error:
                yield Finding("algebra", transform, "FAIL", message=f"raises {brief(error)}")
                return
            repro = _repro(s, plan, transform)
            yield from judge(Point(s, plan, args, g), "algebra", transform, got, repro=repro)
        yield from _with_wide_integers(s, plan, args)


def _with_wide_integers(s: Subject, plan: Plan, args: tuple[PyTree, ...]) -> Iterator[Finding]:
    """The same where integers have 64 bits, as they have for those who enable x64."""

    def widened(leaf: jax.Array) -> jax.Array:
        return on_device(leaf, np.int64) if leaf.dtype == np.int32 else leaf

    wide = jax.tree.map(widened, args)
    if all(a is b for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(args), strict=True)):
        return
    point = Point(s, plan, wide, plan.random_g(s, args))
    try:
        got = plan.run(s.call, wide, point.g)
        found = list(judge(point, "algebra", "integers of 64 bits", got))
    except Exception as error:
        message = f"raises {brief(error)}"
        found = [Finding("algebra", "integers of 64 bits", "SKIP", message=message)]
    yield from found


def _repro(s: Subject, plan: Plan, transform: str) -> str:
    if not transform.startswith("g "):
        return ""
    seed, name = plan.seed + int(transform[2:]), s.name if s.name.isidentifier() else "f"
    return (
        f"with jax.enable_x64(True): y, vjp = jax.vjp({name}, *args); "
        f"vjp(jaxprop.checking.cotangent({seed}, y))  # args in {plan.precision.run.name}"
    )


def linearity(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 4: a pullback is a linear map of g, so it scales, adds and keeps zero exactly."""
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        g, h = plan.random_g(s, args), plan.random_g(s, args, 1)

        def at(g: Cotangent) -> list[np.ndarray]:
            return plan.run(s.call, args, g).cotangents

        try:
            by_g, by_h = at(g), at(h)
            zero = at(_mapped(np.zeros_like, g))
            cases = {
                "-g": (at(_mapped(np.negative, g)), [-d for d in by_g]),
                "g + h": (
                    at(_mapped(np.add, g, h)),
                    [a + b for a, b in zip(by_g, by_h, strict=True)],
                ),
            }
            for power in _powers(plan):
                back = [d / 2.0**power for d in at(_mapped(partial(_times, 2.0**power), g))]
                cases[f"2^{power} g"] = (back, by_g)
        except Exception as error:
            yield Finding("linearity", "", "FAIL", message=f"raises {brief(error)}")
            return
    tolerance = max(1e-12, 64 * plan.precision.eps)
    floor = NOISE * size_of(g)

    def moved(expected: list[np.ndarray]) -> list[np.ndarray]:
        """What is expected, moved by as much as rounding g to eps moves the gradient."""
        eps = plan.precision.eps
        with jax.enable_x64(True):
            near = at(_mapped(partial(_to_and_fro, eps), g))
        return [e + (n - b) for e, n, b in zip(expected, near, by_g, strict=True)]

    found = list(_zero_stays_zero(s, zero))
    for transform, (got, expected) in cases.items():
        again = partial(moved, expected)
        found += same(s, "linearity", transform, got, expected, tolerance, again, floor=floor)
    for finding in found:
        meant = plan.unstated and finding.verdict == "FAIL"
        yield replace(finding, verdict="WARN", message=ON_PURPOSE) if meant else finding


def _mapped(f: Callable[..., np.ndarray], *cotangents: Cotangent) -> Cotangent:
    """f of each leaf, computed by NumPy: jax would compile a program for each shape."""
    return [
        on_device(f(*map(np.asarray, leaves)), leaves[0].dtype)
        for leaves in zip(*cotangents, strict=True)
    ]


def _times(factor: float, x: np.ndarray) -> np.ndarray:
    return x.dtype.type(factor) * x


def _to_and_fro(eps: float, x: np.ndarray) -> np.ndarray:
    """x, its entries larger and smaller in turn."""
    return x * (1 + eps * (-1.0) ** np.arange(x.size).reshape(x.shape))


def _powers(plan: Plan) -> tuple[int, ...]:
    half = plan.precision.inside in (jnp.float16,) or plan.precision.inside == jnp.float16
    return POWERS_OF_HALF_PRECISION if half else POWERS


def _zero_stays_zero(s: Subject, got: list[np.ndarray]) -> Iterator[Finding]:
    for name, d in zip(labels(s.names, s.args), got, strict=True):
        if not np.any(d[np.isfinite(d)]):
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
    if plan.precision.inside != jnp.float64:
        message = f"f computes in {jnp.dtype(plan.precision.inside).name}: too coarse for it"
        yield Finding("finite differences", "", "SKIP", message=message)
        return
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        found = plan.differences_at(s, args)
        for draw in range(DRAWS):
            g = plan.random_g(s, args, draw)
            d = plan.run(s.call, args, g).cotangents
            for leaf, name in enumerate(labels(s.names, args)):
                yield _sloped(name, draw, found.slope(leaf, g, as_float64(d[leaf])), plan)


def _sloped(name: str, draw: int, slope: float, plan: Plan) -> Finding:
    """Between 1 and 2 lies a kink within a step; the elements tell which it is."""
    right = np.isnan(slope) or slope > 1.2 or plan.is_intended_zero(name)
    message = f"the Taylor remainder is of order h^{slope:.2f}: 2 when right, 1 when wrong"
    verdict = "PASS" if right else "FAIL"
    return Finding("finite differences", f"g {draw}", verdict, name, "" if right else message)
