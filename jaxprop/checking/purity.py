"""Purity: the same answer each time, whatever ran in between, and no compilation repeated."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import monitoring

from jaxprop.checking.plan import Plan, brief, random_g
from jaxprop.checking.probing import Cotangent, filled, pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import Subject, is_float, labels

CHECK = "purity"
RUNS = 3


def purity(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 8."""
    try:
        g = random_g(plan, s, s.args)
        first = pull(s.call, s.args, g)
    except Exception as error:
        yield Finding(CHECK, "", "FAIL", message=f"raises {brief(error)}")
        return
    yield from _same(s, "two runs", first, lambda: pull(s.call, s.args, g))
    yield from _same(s, "a pullback used twice", first, lambda: _twice(s, g))
    yield from _same(s, "two pullbacks interleaved", first, lambda: _interleaved(s, g))
    compiled = jax.jit(lambda args, g: pull(s.call, args, g))
    yield from _same(s, "two jitted runs", compiled(s.args, g), lambda: compiled(s.args, g))
    yield _no_retrace(s, g)


def _same(s: Subject, transform: str, first: list, again: Callable[[], list]) -> Iterator[Finding]:
    """Bitwise equality of RUNS runs."""
    runs = [again() for _ in range(RUNS)]
    for leaf, name in enumerate(labels(s.names, s.args)):
        one = np.asarray(first[leaf])
        changed = [np.asarray(run[leaf]) for run in runs if not _bitwise(one, run[leaf])]
        if not changed:
            yield Finding(CHECK, transform, "PASS", name)
            continue
        apart = float(np.nanmax(np.abs(changed[0].astype(float) - one.astype(float)), initial=0))
        message = f"the gradient changed by up to {apart:.3g} between calls with the same input"
        hint = "state outside the function, or a random number without a key"
        yield Finding(CHECK, transform, "FAIL", name, message, hint=hint)


def _bitwise(a: np.ndarray, b: jax.Array) -> bool:
    other = np.asarray(b)
    return a.dtype == other.dtype and a.tobytes() == other.tobytes()


def _twice(s: Subject, g: Cotangent) -> list[jax.Array]:
    y, vjp = jax.vjp(s.call, *s.args)
    vjp(filled(y, [3 * x for x in g]))
    return select(s.args, vjp(filled(y, g)))


def _interleaved(s: Subject, g: Cotangent) -> list[jax.Array]:
    """The first pullback called after a second forward, at other arguments, has run."""
    other = jax.tree.map(lambda x: x + x if is_float(x) else x, s.args)
    y, vjp = jax.vjp(s.call, *s.args)
    pull(s.call, other, g)
    return select(s.args, vjp(filled(y, g)))


_compilations: list[str] = []


def _count(event: str, _seconds: float, **_details: object) -> None:
    if event.endswith("backend_compile_duration"):
        _compilations.append(event)


def _no_retrace(s: Subject, g: Cotangent) -> Finding:
    """The second eager call must find everything compiled."""
    if not _compilations:
        monitoring.register_event_duration_secs_listener(_count)
        _compilations.append("registered")
    pull(s.call, s.args, g)
    before = len(_compilations)
    pull(s.call, s.args, g)
    again = len(_compilations) - before
    if not again:
        return Finding(CHECK, "no retrace", "PASS")
    return Finding(
        CHECK,
        "no retrace",
        "WARN",
        message=f"the second call compiled {again} programs again",
        hint="a function made anew on each call, inside jit or scan: make it once",
    )
