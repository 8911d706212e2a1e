"""Other shapes: axes of length 1 and 0, primes, beyond a block, extra leading axes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.domains import is_fixed, keeper
from jaxprop.checking.edges import FEW
from jaxprop.checking.judging import REFUSED, brief, judge, raised
from jaxprop.checking.numerics import in_one_dtype
from jaxprop.checking.plan import Plan
from jaxprop.checking.point import Point
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, is_float, is_key, on_device

CHECK = "shapes"
# One length beyond the usual blocks, and no multiple of any; longer axes get one more.
LONG = 131
PRIMES = (7, 11, 13, 17, 19)
# All axes of this length: a matrix that is square only then may be transposed unseen before.
SQUARE = 4
# Larger arguments than this are not made.
MOST = 1 << 16

Lengths = dict[int, int]


def shapes(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 6: axes that have the same length in several arguments are resized together."""
    if plan.unstated:
        yield Finding(CHECK, "", "SKIP", message="a surrogate, and no gradient is stated")
        return
    for number, given in enumerate(plan.shapes):
        yield from _compare(given, plan, f"given shapes {number}", given=True)
        if jnp.float32 in plan.dtypes:
            transform = f"given shapes {number}, float32"
            yield from in_one_dtype(given, plan, jnp.float32, CHECK, transform, draws=2)
    tried = [_sizes(s.args), *(_sizes(given.args) for given in plan.shapes)]
    for transform, args in _others(s):
        if args is None or _sizes(args) in tried:
            continue
        tried.append(_sizes(args))
        if _accepted(s, args):
            yield from _compare(s.at(args), plan, transform)


def _sizes(args: tuple[PyTree, ...]) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(args)]


def _others(s: Subject) -> Iterator[tuple[str, tuple[PyTree, ...] | None]]:
    """Arguments of other shapes; whether the function takes them is another matter."""
    lengths = sorted({n for shape in _sizes(s.args) for n in shape if n > 0})
    yield "axes of prime lengths", _resized(s.args, dict(zip(lengths, PRIMES, strict=False)))
    yield "axes of one length", _resized(s.args, dict.fromkeys(lengths, SQUARE))
    for length in lengths:
        for new in (1, LONG if length < LONG else length + 1, 0):
            yield f"axes of {length} made {new}", _resized(s.args, {length: new})
    leading = _leading(s)
    if leading:
        for new in (1, 7, 0):
            yield f"leading axis of {leading} made {new}", _resized(s.args, {leading: new}, True)
        yield EXTRA, _extra(s, leading)


EXTRA = "an extra leading axis"


def _leading(s: Subject) -> int:
    """The length of the first argument's first axis; 0 where there is none."""
    leaves = jax.tree.leaves(s.args[0]) if s.args else []
    return leaves[0].shape[0] if leaves and leaves[0].ndim else 0


def _resized(
    args: tuple[PyTree, ...], lengths: Lengths, leading: bool = False
) -> tuple[PyTree, ...] | None:
    """Axes of these lengths cut, or filled up with values like those there are.

    None where it would be too large. Integers that could be indices into an axis that
    shrinks are taken modulo its new length.
    """
    leaves = jax.tree.leaves(args)
    if any(is_key(leaf) for leaf in leaves if lengths.keys() & set(leaf.shape)):
        return None
    sizes = [np.prod([lengths.get(n, n) for n in leaf.shape]) for leaf in leaves]
    whole = [leaf for leaf in leaves if not is_float(leaf) and not is_key(leaf) and leaf.size]
    if max(sizes, default=0) > MOST or (whole and 0 in lengths.values()):
        return None
    random = np.random.default_rng(len(lengths))
    return jax.tree.map(lambda leaf: _leaf(leaf, lengths, leading, random), args)


def _leaf(leaf: jax.Array, lengths: Lengths, leading: bool, random: np.random.Generator) -> Any:
    if is_key(leaf):
        return leaf
    x = np.asarray(leaf)
    for axis, n in enumerate(x.shape[:1] if leading else x.shape):
        if n in lengths:
            x = np.take(x, np.arange(lengths[n]) % n, axis=axis)
    if is_float(leaf):
        wide = np.asarray(leaf, np.float64)
        factor = 1.0 if is_fixed(wide) else random.uniform(0.7, 1.0, x.shape)
        x = keeper(wide)(x.astype(np.float64) * factor)
    elif leaf.dtype != bool and x.size:
        for length, new in lengths.items():
            if 0 < new < length and x.max() < length:
                x = np.where(x >= 0, x % new, x)  # below 0 stands for none, where it is allowed
    return on_device(x, leaf.dtype)


def _extra(s: Subject, leading: int) -> tuple[PyTree, ...]:
    """Two examples of the first argument, and of what shares its first axis."""

    def doubled(leaf: jax.Array) -> jax.Array:
        shares = leaf.ndim > 0 and leaf.shape[0] == leading
        return jnp.stack([leaf, leaf * 0.75 if is_float(leaf) else leaf]) if shares else leaf

    first, *others = s.args
    ones = [a if floats(a) else jax.tree.map(doubled, a) for a in others]
    return (jax.tree.map(doubled, first), *ones)


def _accepted(s: Subject, args: tuple[PyTree, ...]) -> bool:
    """Whether f takes these shapes, and its output's axes are still those of the arguments.

    An axis of length 1 may be broadcast against one that should have shrunk with it: then the
    output keeps an axis that the arguments no longer have.
    """
    try:
        found = jax.tree.leaves(jax.eval_shape(s.call, *args))
        before = jax.tree.leaves(jax.eval_shape(s.call, *s.args))
    except Exception:
        return False
    if not any(
        1 in shape and 1 not in old for shape, old in zip(_sizes(args), _sizes(s.args), strict=True)
    ):
        return True
    gone = {n for shape in _sizes(s.args) for n in shape} - {n for x in _sizes(args) for n in x}
    return not any(n in gone for y in found for n in y.shape) or before == found


def _compare(s: Subject, plan: Plan, transform: str, given: bool = False) -> Iterator[Finding]:
    many = sum(leaf.size for leaf in floats(s.args)) > FEW
    if plan.truth is None and many:
        yield Finding(CHECK, transform, "SKIP", message="no reference, and many elements")
        return
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        if problem := _refusal(s, args):
            verdict = "FAIL" if given else "SKIP"
            message = f"f does not take it: {brief(problem)}"
            yield Finding(CHECK, transform, verdict, message=message)
            return
        point = Point(s, plan, args, plan.random_g(s, args))
        if problem := raised(lambda: point.expected):
            message = f"the reference raises {brief(problem)}"
            yield Finding(CHECK, transform, "SKIP", message=message)
            return
        try:
            got = plan.run(s.call, args, point.g)
        except Exception as error:
            message = f"raises {brief(error)}, where f itself does not"
            yield Finding(CHECK, transform, _severity(error, s, transform, given), message=message)
            return
    found = judge(point, CHECK, transform, got)
    yield from map(_of_another_rank, found) if transform == EXTRA else found


def _refusal(s: Subject, args: tuple[PyTree, ...]) -> Exception | None:
    """What f raises at these arguments; traced, which compiles nothing, where it can be."""
    if raised(lambda: jax.eval_shape(s.call, *args)) is None:
        return None
    return raised(lambda: s.call(*args))


def _severity(error: Exception, s: Subject, transform: str, given: bool) -> str:
    """A backward that raises is a fault, unless nobody promised that shape or it says so."""
    if given:
        return "FAIL"
    broadcast = any(1 in shape for shape in _sizes(s.args)) and REFUSED in str(error)
    if transform == EXTRA or broadcast:
        return "SKIP"
    empty = any(0 in shape for shape in _sizes(s.args))
    return "WARN" if empty or _deliberate(error) else "FAIL"


def _deliberate(error: Exception) -> bool:
    """Whether the exception was raised outside of jax and NumPy, so by f itself."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return last.split(".")[0] not in ("jax", "jaxlib", "numpy")


def _of_another_rank(finding: Finding) -> Finding:
    """Other ranks than the one given were not promised: no more than a warning."""
    if finding.verdict != "FAIL":
        return finding
    message = "right at the rank given, wrong with one more axis in front"
    return replace(finding, verdict="WARN", message=message)
