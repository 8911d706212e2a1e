"""Edges: zeros, ties, the tiny, the large, the shifted and the infinite."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.comparison import as_float64, difference, hint, largest
from jaxprop.checking.numerics import in_one_dtype
from jaxprop.checking.plan import Plan, brief, noise, random_g
from jaxprop.checking.probing import Cotangent
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float, labels

CHECK = "edges"
# Random neighbours of a kink, and how far off: their gradients bound the subgradients there.
NEIGHBOURS = 12
NEAR = 1e-7


def _first_entry(x: jax.Array, value: float) -> jax.Array:
    return x.ravel().at[0].set(value).reshape(x.shape) if x.size else x


EDGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "zeros": jnp.zeros_like,
    "all equal": lambda x: jnp.full_like(x, 0.5),
    "ties": lambda x: jnp.round(x),
    "one zero": lambda x: _first_entry(x, 0.0),
    "tiny": lambda x: x * 1e-20,
    "large": lambda x: x * 1e2,
    "very large": lambda x: x * 1e4,
    "shifted by 1000": lambda x: x + 1000,
    "shifted by 10000": lambda x: x + 10000,
    "one -inf": lambda x: _first_entry(x, -jnp.inf),
    "one inf": lambda x: _first_entry(x, jnp.inf),
}


def edges(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 5: finite and right wherever the reference is, in float64 and in float32."""
    if plan.truth is None:
        message = "there is no reference, and differences mean nothing at a kink"
        yield Finding(CHECK, "", "SKIP", message=message)
        return
    for transform, here in _at_edges(s, plan):
        yield from _exact(here, plan, transform)
        yield from in_one_dtype(here, plan, jnp.float32, CHECK, f"{transform}, float32", draws=1)


def _at_edges(s: Subject, plan: Plan) -> Iterator[tuple[str, Subject]]:
    """Each edge in every floating argument at once, and in each alone."""
    places: dict[str, list[int]] = {
        name: [i] for i, name in enumerate(s.names) if floats(s.args[i])
    }
    if len(places) > 1:
        places = {"every argument": [i for (i,) in places.values()], **places}
    for edge, make in EDGES.items():
        for place, positions in places.items():
            yield f"{edge} in {place}", s.at(_with(s.args, positions, make))
    for number, given in enumerate(plan.edges):
        yield f"given edge {number}", given


def _with(
    args: tuple[PyTree, ...], positions: list[int], make: Callable[[jax.Array], jax.Array]
) -> tuple[PyTree, ...]:
    def changed(leaf: jax.Array) -> jax.Array:
        return make(leaf) if is_float(leaf) else leaf

    return tuple(jax.tree.map(changed, a) if i in positions else a for i, a in enumerate(args))


def _exact(s: Subject, plan: Plan, transform: str) -> Iterator[Finding]:
    """In float64: equal to the reference, or a subgradient where the reference jumps."""
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        try:
            g = random_g(plan, s, args)
            expected = [as_float64(d) for d in plan.gradients(s, args, g)]
        except Exception as error:
            yield Finding(CHECK, transform, "SKIP", message=f"the reference raises: {brief(error)}")
            return
        try:
            got = [as_float64(d) for d in plan.pull(s.call, args, g)]
        except Exception as error:
            yield Finding(CHECK, transform, "FAIL", message=f"raises {brief(error)}")
            return
    tolerance = max(plan.tolerance, 1e-9)
    for leaf, name in enumerate(labels(s.names, s.args)):
        floor = noise(g)
        found = difference(got[leaf], expected[leaf], tolerance, floor=floor)
        if found is None:
            yield Finding(CHECK, transform, "PASS", name)
            continue
        low, high = _hull(s, plan, args, g, leaf)
        slack = 1e-5 * max(largest(expected[leaf]), largest(low), largest(high))
        outside = ~((got[leaf] >= low - slack) & (got[leaf] <= high + slack))
        jumps = high - low > slack
        found = difference(got[leaf], expected[leaf], tolerance, jumps & ~outside, floor)
        if found is None:
            yield Finding(CHECK, transform, "PASS", name, "another subgradient of a kink")
            continue
        yield Finding(CHECK, transform, "FAIL", name, hint=hint(found), **found.fields(np.float64))


def _hull(
    s: Subject, plan: Plan, args: tuple[PyTree, ...], g: Cotangent, leaf: int
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest gradient that the reference has near this point."""
    random = np.random.default_rng(plan.seed)
    found = []
    with jax.enable_x64(True):
        for _ in range(NEIGHBOURS):
            near = jax.tree.map(lambda x: _moved(x, random), args)
            found.append(as_float64(plan.gradients(s, near, g)[leaf]))
    return np.nanmin(found, axis=0), np.nanmax(found, axis=0)


def _moved(x: jax.Array, random: Any) -> jax.Array:
    if not is_float(x):
        return x
    size = NEAR * max(
        1.0, float(jnp.max(jnp.abs(jnp.nan_to_num(x, posinf=0, neginf=0)), initial=0))
    )
    return x + size * random.normal(size=x.shape)
