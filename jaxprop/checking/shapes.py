"""Other shapes: axes of length 1 and 0, primes, beyond a block, extra leading axes."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxprop.checking.plan import Plan, attempt, random_g
from jaxprop.checking.report import Finding
from jaxprop.checking.subject import PyTree, Subject, floats, in_dtype, is_float

CHECK = "shapes"
LENGTHS = (1, 7, 13, 67, 131, 0)
# Larger arguments than this are not made.
MOST = 1 << 16


def shapes(s: Subject, plan: Plan) -> Iterator[Finding]:
    """Check 6: axes that have the same length in several arguments are resized together."""
    for number, given in enumerate(plan.shapes):
        yield from _compare(given, plan, f"given shapes {number}")
    for length in _axis_lengths(s.args):
        for new in LENGTHS:
            args = _resized(s.args, length, new, plan.seed)
            if args is not None and _accepted(plan, s, args):
                yield from _compare(s.at(args), plan, f"axes of {length} made {new}")


def _axis_lengths(args: tuple[PyTree, ...]) -> list[int]:
    return sorted({n for leaf in jax.tree.leaves(args) for n in leaf.shape})


def _resized(
    args: tuple[PyTree, ...], length: int, new: int, seed: int
) -> tuple[PyTree, ...] | None:
    """Every axis of that length cut, or filled up with values like those there are.

    None where it would be too large, or where integer arguments are left that may be indices
    into an axis that shrinks.
    """
    leaves = jax.tree.leaves(args)
    whole = [leaf for leaf in leaves if not is_float(leaf)]
    if new < length and any(leaf.size and int(jnp.max(leaf)) >= new for leaf in whole):
        return None
    sizes = [np.prod([new if n == length else n for n in leaf.shape]) for leaf in leaves]
    if max(sizes, default=0) > MOST or length == 0:
        return None
    random = np.random.default_rng(seed)

    def resized(leaf: jax.Array) -> jax.Array:
        for axis in [axis for axis, n in enumerate(leaf.shape) if n == length]:
            leaf = jnp.take(leaf, np.arange(new) % length, axis=axis)
        if not is_float(leaf):
            return leaf
        return leaf * jnp.asarray(random.uniform(0.7, 1.3, leaf.shape), leaf.dtype)

    return jax.tree.map(resized, args)


def _accepted(plan: Plan, s: Subject, args: tuple[PyTree, ...]) -> bool:
    """Whether the reference takes these shapes."""
    try:
        jax.eval_shape(plan.truth or s.call, *args)
    except Exception:
        return False
    return True


def _compare(s: Subject, plan: Plan, transform: str) -> Iterator[Finding]:
    many = sum(leaf.size for leaf in floats(s.args)) > 200
    if plan.truth is None and many:
        yield Finding(CHECK, transform, "SKIP", message="no reference, and many elements")
        return
    with jax.enable_x64(True):
        args = in_dtype(s.args, jnp.float64)
        try:
            g = random_g(plan, s, args)
        except Exception as error:
            message = f"raises where the reference does not: {type(error).__name__}: {error}"
            yield Finding(CHECK, transform, "FAIL", message=message.splitlines()[0])
            return
        yield from attempt(
            s,
            CHECK,
            transform,
            lambda: plan.pull(s.call, args, g),
            lambda: plan.gradients(s, args, g),
            tolerance=max(plan.tolerance, 1e-9),
            g=g,
        )
