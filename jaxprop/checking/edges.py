"""Edges: zeros, ties, the tiny, the large, the shifted and the infinite."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.domains import ascends, has_both_signs, has_structure, is_fixed, is_unit
from jaxprop.checking.judging import AT_LIMIT, brief, judge, raised
from jaxprop.checking.numerics import in_one_dtype
from jaxprop.checking.plan import Plan
from jaxprop.checking.point import Point
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, is_float, is_key, on_device

CHECK = "edges"
FEW = 200


def _first_entry(x: np.ndarray, value: float) -> np.ndarray:
    y = x.copy()
    y.flat[:1] = value
    return y


EDGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "all equal": lambda x: np.full_like(x, 0.5),
    "ties": np.round,
    "one zero": lambda x: _first_entry(x, 0.0),
    "first row zeros": lambda x: np.where(np.arange(len(x)) > 0, x.T, 0.0).T if x.ndim > 1 else x,
    "negated": lambda x: -x,
    "tiny": lambda x: x * 1e-20,
    "small": lambda x: x * 1e-4,
    "times 5": lambda x: x * 5,
    "large": lambda x: x * 1e2,
    "very large": lambda x: x * 1e4,
    "shifted by 1000": lambda x: x + 1000,
    "shifted by 10000": lambda x: x + 10000,
    "one -inf": lambda x: _first_entry(x, -np.inf),
    "one inf": lambda x: _first_entry(x, np.inf),
}


def _first_row(x: np.ndarray, value: int) -> np.ndarray:
    y = x.copy()
    y[:1] = value
    return y


LAST = "the last index"
MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing kept": np.zeros_like,
    "everything kept": np.ones_like,
    "first row not kept": lambda x: _first_row(x, 0) if x.ndim else x,
}
INTEGERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "zeros": lambda x, n: np.zeros_like(x),
    LAST: lambda x, n: np.full_like(x, n - 1),
    "reversed": lambda x, n: x[::-1] if x.ndim else x,
}


def edges(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 5: finite and right wherever the reference is, in float64 and in float32."""
    if plan.unstated:
        message = "a surrogate, and no surrogate gradient is stated"
        yield Finding(CHECK, "", "SKIP", message=message)
        return
    if plan.truth is None and sum(x.size for x in floats(s.args)) > FEW:
        message = f"no reference, and more than {FEW} elements to take differences in"
        yield Finding(CHECK, "", "SKIP", message=message)
        return
    if plan.precision.loops:
        message = "f loops until something holds, which may be never at values it was not given"
        yield Finding(CHECK, "", "SKIP", message=message)
    made = () if plan.precision.loops else (*_at_edges(s), *_at_other_edges(s))
    for transform, here in made:
        exact = list(_exact(here, plan, transform))
        yield from _softened(s, here, iter(exact))
        known = all(finding.message != AT_LIMIT for finding in exact)
        if known and plan.truth is not None and jnp.float32 in plan.dtypes:
            found = in_one_dtype(
                here, plan, jnp.float32, CHECK, f"{transform}, float32", extreme=True
            )
            if not _undefined(here, plan):
                yield from _softened(s, here, found)
    for number, given in enumerate(plan.edges):
        yield from _exact(given, plan, f"given edge {number}")


def _at_edges(s: Subject) -> Iterator[tuple[str, Subject]]:
    """Each edge in every floating argument at once, and in each alone."""
    places: dict[str, list[int]] = {
        name: [i] for i, name in enumerate(s.names) if floats(s.args[i])
    }
    if len(places) > 1:
        places = {"every argument": [i for (i,) in places.values()], **places}
    for edge, make in EDGES.items():
        for place, positions in places.items():
            args = _with(s.args, positions, make)
            if not _same(args, s.args):
                yield f"{edge} in {place}", s.at(args)


def _at_other_edges(s: Subject) -> Iterator[tuple[str, Subject]]:
    """Masks that keep nothing, everything, or not the first row; indices equal or reversed."""
    for position, name in enumerate(s.names):
        leaves = jax.tree.leaves(s.args[position])
        if len(leaves) != 1 or is_key(leaves[0]):
            continue
        x = np.asarray(leaves[0])
        for edge, y in _other_values(x, s.args).items():
            arg = jax.tree.map(lambda leaf, y=y: on_device(y, leaf.dtype), s.args[position])
            args = (*s.args[:position], arg, *s.args[position + 1 :])
            if not np.array_equal(x, y) and not (edge == LAST and _out_of_range(s, args, y)):
                yield f"{edge} in {name}", s.at(args)


def _out_of_range(s: Subject, args: tuple[PyTree, ...], y: np.ndarray) -> bool:
    """Whether the index before the last gives the same value: then both are dropped or clamped."""
    others = [a - (a.dtype.type(1)) if a is not b and np.array_equal(a, y) else a
              for a, b in zip(args, s.args, strict=True)]  # fmt: skip
    try:
        pairs = zip(floats(s.call(*args)), floats(s.call(*others)), strict=True)
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    except Exception:
        return True


def _other_values(x: np.ndarray, args: tuple[PyTree, ...]) -> dict[str, np.ndarray]:
    if x.dtype == bool or (is_float(x) and is_fixed(x.astype(np.float64))):
        return {edge: make(x) for edge, make in MASKS.items()}
    if is_float(x) or not x.size or x.min() < 0:
        return {}
    lengths = {n for leaf in floats(args) for n in leaf.shape if n > x.max()}
    if not lengths:
        return {}
    return {edge: make(x, min(lengths)) for edge, make in INTEGERS.items()}


def _with(
    args: tuple[PyTree, ...], positions: list[int], make: Callable[[np.ndarray], np.ndarray]
) -> tuple[PyTree, ...]:
    def changed(leaf: jax.Array) -> jax.Array:
        if not is_float(leaf):
            return leaf
        x = np.asarray(leaf, np.float64)
        return leaf if has_structure(x) else on_device(make(x), leaf.dtype)

    return tuple(jax.tree.map(changed, a) if i in positions else a for i, a in enumerate(args))


def _same(a: PyTree, b: PyTree) -> bool:
    """Whether nothing was changed: the arguments are masks and the like."""
    pairs = zip(floats(a), floats(b), strict=True)
    return all(x is y or np.array_equal(x, y) for x, y in pairs)


def _softened(s: Subject, here: Subject, found: Iterator[Finding]) -> Iterator[Finding]:
    """A warning only, beyond where the values given lie: in [0, 1], or on one side of zero."""
    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(floats(s.args), floats(here.args), strict=True)
    ]
    beyond = next((said for a, b in pairs if (said := _beyond(a.astype(float), b))), "")
    if len(pairs) > 1 and any(ascends(a) and not ascends(b) for a, b in pairs):
        beyond = "the values given ascend"
    for finding in found:
        doubtful = beyond and finding.verdict == "FAIL"
        yield replace(finding, verdict="WARN", message=beyond) if doubtful else finding


def _beyond(given: np.ndarray, here: np.ndarray) -> str:
    """Why these values may not be arguments of the kind given."""
    if is_unit(given) and here.size and float(here.max()) > 1:
        return "beyond [0, 1], where the values given lie"
    if not has_both_signs(given) and np.any(here * np.sign(np.sum(given)) < 0):
        return "on the other side of zero than the values given"
    return ""


def _undefined(s: Subject, plan: Plan) -> bool:
    """Whether the reference's value is nan: outside of its domain, gradients mean nothing."""
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        values = Point(s, plan, args, plan.random_g(s, args)).expected.values
    return any(np.isnan(y).any() for y in values)


def _exact(s: Subject, plan: Plan, transform: str) -> Iterator[Finding]:
    """In float64: equal to the reference, or a subgradient where the reference jumps."""
    if plan.truth is None and not all(np.isfinite(np.asarray(x)).all() for x in floats(s.args)):
        yield Finding(CHECK, transform, "SKIP", message="no reference, and no differences there")
        return
    with jax.enable_x64(True):
        args = plan.widened(s.args)
        try:
            point = Point(s, plan, args, plan.random_g(s, args))
            values = point.expected.values
        except Exception as error:
            yield Finding(CHECK, transform, "SKIP", message=f"the reference raises {brief(error)}")
            return
        if any(np.isnan(y).any() for y in values):
            message = "the reference's value is nan: outside of its domain"
            yield Finding(CHECK, transform, "SKIP", message=message)
            return
        problem = raised(lambda: s.call(*args))
        try:
            got = plan.run(s.call, args, point.g)
        except Exception as error:
            verdict = "SKIP" if problem else "FAIL"
            yield Finding(CHECK, transform, verdict, message=f"raises {brief(error)}")
            return
    names = _output_names(got.values) if not plan.surrogate else ()
    yield from judge(point, CHECK, transform, got, extreme=True, outputs=names)


def _output_names(values: list[Any]) -> tuple[str, ...]:
    if len(values) == 1:
        return ("the output",)
    return tuple(f"the output {i}" for i in range(len(values)))
