"""Purity: the same answer each time, whatever ran in between, and no compilation repeated."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring

from jaxprop.checking.judging import brief, raised
from jaxprop.checking.plan import Plan
from jaxprop.checking.probing import Cotangent, filled, pull, select
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import Subject, is_float, labels

CHECK = "purity"
RUNS = 3


def purity(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 8."""
    try:
        g = plan.random_g(s, s.args)
        first = pull(s.call, s.args, g)
    except Exception as error:
        yield Finding(CHECK, "", "FAIL", message=f"raises {brief(error)}")
        return
    yield from _same(s, "two runs", first, lambda: pull(s.call, s.args, g))
    yield from _same(s, "a pullback used twice", first, lambda: _twice(s, g))
    yield from _same(s, "two pullbacks interleaved", first, lambda: _interleaved(s, g))
    compiled = jax.jit(lambda args, g: pull(s.call, args, g))
    if raised(lambda: compiled(s.args, g)) is None:
        once = compiled(s.args, g)
        yield from _same(s, "two jitted runs", once, lambda: compiled(s.args, g))
        yield from _traced_again(s, g, once)
    yield _no_retrace(s, plan, g)


def _same(
    s: Subject, transform: str, first: list, again: Callable[[], list], runs: int = RUNS
) -> Iterator[Finding]:
    """Bitwise equality of several runs."""
    found = [again() for _ in range(runs)]
    for leaf, name in enumerate(labels(s.names, s.args)):
        one = np.asarray(first[leaf])
        changed = [np.asarray(run[leaf]) for run in found if not _bitwise(one, run[leaf])]
        if not changed:
            yield Finding(CHECK, transform, "PASS", name)
            continue
        apart = float(np.nanmax(np.abs(changed[0].astype(float) - one.astype(float)), initial=0))
        message = f"the gradient changed by up to {apart:.3g} between calls with the same input"
        # Other platforms than the CPU may add in another order each time.
        rounding = (
            64 * float(jnp.finfo(one.dtype).eps) * float(np.nanmax(np.abs(one.astype(float))))
        )
        harmless = jax.default_backend() != "cpu" and apart <= rounding
        hint = "state outside the function, or a random number without a key"
        verdict = "WARN" if harmless else "FAIL"
        yield Finding(CHECK, transform, verdict, name, message, hint=hint)


def _traced_again(s: Subject, g: Cotangent, once: list) -> Iterator[Finding]:
    """A second trace of the same program must compute the same: state read while tracing."""

    def again() -> list[jax.Array]:
        return jax.jit(lambda args, g: pull(s.call, args, g))(s.args, g)

    yield from _same(s, "traced again", once, again, runs=1)


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


def _no_retrace(s: Subject, plan: Plan, g: Cotangent) -> Finding:
    """The second eager call must find compiled what the reference's second call does."""
    again = _compilations(lambda: pull(s.call, s.args, g))
    if not again:
        return Finding(CHECK, "no retrace", "PASS")
    truth = plan.truth
    if truth is not None and raised(lambda: pull(truth, s.args, g)) is None:
        theirs = _compilations(lambda: pull(truth, s.args, g))
        if theirs:
            return Finding(CHECK, "no retrace", "PASS", message="nor does the reference's")
    return Finding(
        CHECK,
        "no retrace",
        "WARN",
        message=f"outside jit, the second call compiled {again} programs again",
        hint="a function made anew on each call, given to jit or scan: make it once",
    )


def _compilations(call: Callable[[], object]) -> int:
    """How many programs are compiled when it runs a second time."""
    found: list[str] = []

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    call()
    monitoring.register_event_duration_secs_listener(count)
    try:
        call()
    finally:
        monitoring.unregister_event_duration_listener(count)
    return len(found)
