"""From numbers to findings: one per leaf, with what the difference looks like."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking import comparison
from jaxprop.checking.comparison import Difference
from jaxprop.checking.hints import hint
from jaxprop.checking.plan import Plan
from jaxprop.checking.point import MULTIPLE, Point
from jaxprop.checking.probing import Answer, Cotangent
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import Subject, floats, labels

# The rounding left in float64 where terms of the size of g cancel.
NOISE = 64 * 2.0**-52
# Where other arguments are large, what is left of such terms is multiplied by them, up to this.
MOST_WEIGHT = 1e4
# What jax says of a cotangent that is not of its argument's type.
REFUSED = "bwd rule must produce an output with the same type"
OTHER_SUBGRADIENT = "another subgradient of a kink"
NOT_TOGETHER = "a subgradient for each argument, but together none: each takes all of g at a tie?"
AT_LIMIT = "at infinity it has the limit; the reference has not"
REFERENCE_OFF = "finite differences of f side with f: the reference is inaccurate here"


def judge(
    point: Point,
    check: str,
    transform: str,
    got: Answer,
    *,
    floor: float = 0.0,
    extreme: bool = False,
    repro: str = "",
    outputs: tuple[str, ...] = (),
) -> Iterator[Finding]:
    """f's answer at a point, in the dtype that its algebra is judged in, against the truth.

    Args:
        point: the arguments, the cotangent and the truth.
        check, transform: what a finding is filed under.
        got: f's answer.
        floor: an absolute error that is rounding.
        extreme: whether the reference may itself be inaccurate here.
        repro: a line of Python that shows the same.
        outputs: names of the floating outputs, where their values are judged too.
    """
    tolerance = point.plan.tolerance
    g = [np.asarray(leaf, np.float64) for leaf in point.g]
    floor = max(floor, NOISE * size_of(point.g))
    noise: list[Answer] = []

    def rounding() -> Answer:
        if not noise:
            noise.append(point.noise(max(point.plan.precision.eps, 2.0**-52)))
        return noise[0]

    if outputs:
        triples = zip(outputs, got.values, point.expected.values, strict=True)
        for leaf, (name, mine, theirs) in enumerate(triples):
            found = _found(mine, theirs, tolerance, floor, partial(_values, rounding, leaf))
            if isinstance(found, str):
                yield Finding(check, transform, "FAIL", name, found)
            elif found is not None:
                text = _value_hint(found)
                fields = found.fields(np.float64)
                yield Finding(check, transform, "FAIL", name, hint=text, repro=repro, **fields)
    names = labels(point.s.names, point.args)
    by_name = dict(zip(names, point.leaves, strict=True))
    triples = zip(names, got.cotangents, point.expected.cotangents, strict=True)
    together = ""
    for leaf, (name, mine, theirs) in enumerate(triples):
        looked_into = _nothing if name in point.plan.wrong else partial(_cotangents, rounding, leaf)
        others = [x for i, x in enumerate(point.leaves) if i != leaf]
        found = _found(mine, theirs, tolerance, floor * _weight(others), looked_into)
        if isinstance(found, str):
            yield Finding(check, transform, "FAIL", name, found)
            continue
        if isinstance(found, Difference):
            found = found.but(at_infinity(point.leaves[leaf], found))
        if found is None:
            ulps = comparison.relative_error(mine, theirs) / float(jnp.finfo(np.float64).eps)
            yield Finding(check, transform, "PASS", name, ulps=ulps)
            continue
        verdict, message, found = _excused(point, leaf, found, tolerance, extreme)
        if message == AT_LIMIT:
            yield Finding(check, transform, verdict, name, message)
            continue
        if verdict == "PASS" and not together:
            right = point.right_together(got.cotangents, tolerance)
            together = OTHER_SUBGRADIENT if right else NOT_TOGETHER
        if verdict == "PASS":
            said = "PASS" if together == OTHER_SUBGRADIENT else "FAIL"
            yield Finding(check, transform, said, name, together, repro=repro)
            continue
        text = hint(found, g, by_name, alike=max(1e-5, 10 * tolerance))
        yield Finding(
            check, transform, verdict, name, message, hint=text if verdict == "FAIL" else "",
            repro=repro, **found.fields(np.float64),
        )  # fmt: skip


def _weight(others: Sequence[np.ndarray]) -> float:
    """By how much a right backward may multiply what is left of terms that cancel."""
    return min(max([1.0, *map(comparison.largest, others)]), MOST_WEIGHT)


def on_a_kink(s: Subject, plan: Plan) -> bool:
    """Whether at these very arguments f takes another subgradient than the reference."""
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        point = Point(s, plan, args, plan.random_g(s, args))
        found = judge(point, "", "", plan.run(s.call, args, point.g))
        return any(finding.message == OTHER_SUBGRADIENT for finding in found)


def _values(rounding: Callable[[], Answer], leaf: int) -> np.ndarray:
    return rounding().values[leaf]


def _cotangents(rounding: Callable[[], Answer], leaf: int) -> np.ndarray:
    return rounding().cotangents[leaf]


def _nothing() -> np.ndarray:
    return np.zeros(())


def _found(
    mine: Any, theirs: Any, tolerance: float, floor: float, rounding: Callable[[], np.ndarray]
) -> Difference | str | None:
    """The difference that rounding does not explain; a sentence where the shapes differ."""
    if mine.shape != theirs.shape:
        return f"shape {mine.shape}, expected {theirs.shape}"
    found = comparison.difference(mine, theirs, tolerance, floor)
    if found is None:
        return None
    return found.but(found.error <= MULTIPLE * rounding() + tolerance * found.scale)


def at_infinity(x: np.ndarray, d: Difference) -> np.ndarray:
    """Where the argument is infinite: no neighbours tell what is right, so finite will do."""
    return ~np.isfinite(x) & np.isfinite(d.got)


def _value_hint(found: Difference) -> str:
    if np.isfinite(found.got[found.wrong]).all():
        return "the forward that differentiation runs computes something else"
    return hint(found)


def _excused(
    point: Point, leaf: int, found: Difference, tolerance: float, extreme: bool
) -> tuple[str, str, Difference]:
    """FAIL, unless the elements that differ lie at kinks or the reference is the one off."""
    if labels(point.s.names, point.args)[leaf] in point.plan.wrong:
        return "FAIL", "", found
    if point.infinite and found.but(point.is_limit(leaf, found, tolerance)) is None:
        return "PASS", AT_LIMIT, found
    left = found.but(point.at_kinks(leaf, found, tolerance * found.scale))
    if left is None:
        return "PASS", OTHER_SUBGRADIENT, found
    if extreme and left.but(point.sides_with_f(leaf, left)) is None:
        return "WARN", REFERENCE_OFF, left
    return "FAIL", "", left


def same(
    s: Subject,
    check: str,
    transform: str,
    got: Sequence[Any],
    expected: Sequence[Any],
    tolerance: float,
    again: Callable[[], Sequence[Any]] | None = None,
    devices: int = 1,
    floor: float = 4 * NOISE,
) -> Iterator[Finding]:
    """f's cotangents under a transformation against f's own without it.

    `again` computes the expected ones once more with arguments rounded differently: what
    changes there is rounding.
    """
    names = labels(s.names, s.args)
    noise: list[Sequence[Any]] = []

    def rounding(leaf: int) -> np.ndarray:
        if not noise and again is not None:
            noise.append(again())
        theirs = comparison.as_float64(expected[leaf])
        if not noise:
            return 0 * theirs
        return np.nan_to_num(MULTIPLE * np.abs(comparison.as_float64(noise[0][leaf]) - theirs))

    by_name = dict(zip(names, map(comparison.as_float64, floats(s.args)), strict=True))
    for leaf, name in enumerate(names):
        found = _found(
            comparison.as_float64(got[leaf]),
            comparison.as_float64(expected[leaf]),
            tolerance,
            floor,
            partial(rounding, leaf),
        )
        if found is None:
            yield Finding(check, transform, "PASS", name)
        elif isinstance(found, str):
            yield Finding(check, transform, "FAIL", name, found)
        else:
            text = hint(found, args=by_name, devices=devices)
            yield Finding(check, transform, "FAIL", name, hint=text, **found.fields(np.float64))


def brief(error: Exception) -> str:
    """An exception in one line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


def raised(run: Callable[[], Any]) -> Exception | None:
    """What a call raises, None where it does not."""
    try:
        run()
    except Exception as error:
        return error
    return None


def size_of(g: Cotangent) -> float:
    return max((float(np.max(np.abs(np.asarray(x, np.float64)), initial=0)) for x in g), default=0)
