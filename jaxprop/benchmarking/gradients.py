"""An entry of forward and backward: the same function in several ways, jitted, all arguments."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.benchmarking.steps import relative_error
from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.installing import PyTree

# How far values and cotangents may lie from float64, of each one's largest.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
# Automatic differentiation of plain bfloat16 code squares what is rounded, and adds up thousands of
# terms in bfloat16. People train with that, so it is timed, and called far off.
FAR_OFF = {"float32": 1e-4, "bfloat16": 0.5}
BY_HAND = "by hand"

Way = Callable[..., PyTree]


def gradient_entry(
    name: str,
    ways: Mapping[str, Way],
    args: tuple[PyTree, ...],
    truth: Way | None = None,
) -> Entry:
    """The value and the cotangents of what is floating, each way, against one in float64.

    Args:
        name: of the entry.
        ways: by name, functions of the arguments; ratios are taken to those whose name does not
            begin with "by hand".
        args: arrays or pytrees of arrays; integers and keys have no cotangent.
        truth: the function that is right in float64; the first way where None.
    """
    first = next(iter(ways.values()))
    outputs = jax.eval_shape(first, *args)
    g = jax.tree.map(_pattern, outputs)
    with jax.enable_x64(True):
        wide = jax.tree.map(_widened, (args, g))
        found = jax.tree.map(np.asarray, jax.jit(partial(_both, truth or first))(*wide))
    baselines = tuple(way for way in ways if not way.startswith(BY_HAND))
    dtype = jax.tree.leaves(outputs)[0].dtype.name
    contenders = {}
    for way, function in ways.items():
        allowed = (FAR_OFF if way in baselines else TOLERANCE)[dtype]
        contenders[way] = _contender(function, args, g, found, allowed, TOLERANCE[dtype])
    return Entry(name, baselines, contenders)


def _pattern(y: jax.ShapeDtypeStruct) -> jax.Array:
    """A cotangent: normal numbers."""
    return jax.random.normal(jax.random.key(3), y.shape).astype(y.dtype)


def _is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float64) if _is_floating(leaf) else leaf


def _both(function: Way, args: tuple[PyTree, ...], g: PyTree) -> tuple[PyTree, list[jax.Array]]:
    leaves: list[jax.Array]
    structure: Any
    leaves, structure = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if _is_floating(leaf)]

    def of_floats(*floats: jax.Array) -> PyTree:
        moved = dict(zip(places, floats, strict=True))
        return function(*structure.unflatten([moved.get(i, x) for i, x in enumerate(leaves)]))

    y, pullback = jax.vjp(of_floats, *(leaves[i] for i in places))
    return y, list(pullback(g))


def _contender(
    function: Way,
    args: tuple[PyTree, ...],
    g: PyTree,
    truth: PyTree,
    allowed: float,
    near: float,
) -> Contender:
    started = time.perf_counter()
    compiled = jax.jit(partial(_both, function)).lower(args, g).compile()
    seconds = time.perf_counter() - started
    error = relative_error(compiled(args, g), truth)

    def run() -> None:
        jax.block_until_ready(compiled(args, g))

    return Contender(
        run,
        f"relative error {error:.2g}" if not error < allowed else "",
        seconds,
        result=f"{'error' if error < near else 'far off'} {error:.1e}",
        **memory(compiled),
    )
