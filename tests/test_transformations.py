"""Every rule under JAX's transformations: what automatic differentiation of its reference gives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop
from jaxprop import Rule
from tests.small_rules import lookup, nested, power, statistics
from tests.subjects import (
    arguments,
    both_ways,
    gradient,
    is_inexact,
    pattern,
    subject,
    varied,
    weighted_sum,
)
from tests.tolerances import assert_near

pytestmark = pytest.mark.usefixtures("x64")


def plain(rule: Callable, args: tuple) -> Any:
    return gradient(rule, args)(*args)


def checkpointed(rule: Callable, args: tuple) -> Any:
    return gradient(jax.checkpoint(rule), args)(*args)


def scanned(rule: Callable, args: tuple) -> Any:
    """Through a scan whose carry the rule's output depends on at each of three steps."""

    def total(*args):
        def step(carry, scale):
            scaled = jax.tree.map(lambda x: x * (scale + carry) if is_inexact(x) else x, args)
            return jnp.sin(weighted_sum(rule(*scaled))), None

        return lax.scan(step, jnp.zeros(()), jnp.array([1.0, 0.5, 2.0]))[0]

    return gradient(total, args)(*args)


def reverse_over_reverse(rule: Callable, args: tuple) -> Any:
    def squares(*args):
        _, grads = gradient(rule, args)(*args)
        return jax.tree.map(lambda d: d * d, grads)

    return gradient(squares, args)(*args)


def forward_over_reverse(rule: Callable, args: tuple) -> Any:
    def grads(*some):
        return gradient(rule, args)(*_with(args, some))

    some = _differentiable(args)
    return jax.jvp(grads, some, jax.tree.map(pattern, some))


def pulled_back_twice(rule: Callable, args: tuple) -> Any:
    """One pullback at two cotangents, and the first once more: no call sees another."""
    y, pullback = jax.vjp(lambda *some: rule(*_with(args, some)), *_differentiable(args))
    g = jax.tree.map(lambda y: pattern(y) if is_inexact(y) else _float0(y), y)
    square = jax.tree.map(lambda g: g * g if g.dtype != jax.dtypes.float0 else g, g)
    return pullback(g), pullback(square), pullback(g)


def _float0(y: jax.Array) -> np.ndarray:
    return np.zeros(y.shape, jax.dtypes.float0)


def _differentiable(args: tuple) -> tuple:
    return tuple(args[i] for i in arguments(args))


def _with(args: tuple, some: tuple) -> list:
    full = list(args)
    for position, arg in zip(arguments(args), some, strict=True):
        full[position] = arg
    return full


RUNS = (
    plain,
    checkpointed,
    scanned,
    reverse_over_reverse,
    forward_over_reverse,
    pulled_back_twice,
)


def run_all(rule: Callable, args: tuple) -> dict[str, Any]:
    """Every run in one compilation."""

    @jax.jit
    def run(args):
        return {run.__name__: run(rule, args) for run in RUNS}

    return run(args)


@pytest.mark.parametrize("rule", varied(default=[jaxprop.linear]))
def test_jitted(rule: Rule) -> None:
    custom, automatic = both_ways(lambda: run_all(*subject(rule)))
    assert_near(custom, automatic, reduced=1000)


@pytest.mark.parametrize("rule", varied(default=[jaxprop.linear]))
def test_vmap_with_every_argument_unbatched_in_turn(rule: Rule) -> None:
    """Per-example gradients and the gradient of the batch; these differentiated once more."""
    rule, args = subject(rule)
    custom, automatic = both_ways(lambda: vmapped(rule, args))
    assert_near(custom, automatic, reduced=1000)


def vmapped(rule: Callable, args: tuple) -> dict[str, Any]:
    every = _in_axes(args)

    @jax.jit
    def run(batches):
        results = {}
        for in_axes, batch in zip(every, batches, strict=True):
            per_example = jax.vmap(gradient(rule, args), in_axes)
            results[f"vmap(grad) {in_axes}"] = per_example(*batch)
            results[f"grad(vmap) {in_axes}"] = gradient(jax.vmap(rule, in_axes), args)(*batch)
        second = jax.vmap(gradient(rule, args), every[0])
        results["grad(vmap(grad))"] = gradient(lambda *b: second(*b)[1], args)(*batches[0])
        return results

    return run([_batched(args, in_axes) for in_axes in every])


def _in_axes(args: tuple) -> list[tuple]:
    """All arguments batched, then each one left unbatched in turn."""
    given = [i for i, arg in enumerate(args) if jax.tree.leaves(arg)]
    everything = tuple(0 if i in given else None for i in range(len(args)))
    in_turn = [(*everything[:i], None, *everything[i + 1 :]) for i in given]
    return [everything, *(axes for axes in in_turn if any(axis == 0 for axis in axes))]


def _batched(args: tuple, in_axes: tuple) -> tuple:
    def stack(x):
        return jnp.stack([x, x * 0.5, -x]) if is_inexact(x) else jnp.stack([x, x, x[::-1]])

    return tuple(
        arg if axis is None else jax.tree.map(stack, arg)
        for arg, axis in zip(args, in_axes, strict=True)
    )


SMALL = ("an option", "integers", "None", "several outputs", "nested")


def small_subject(name: str) -> tuple[Callable, tuple]:
    x = jnp.linspace(-1.0, 2.0, 12).reshape(4, 3)
    tokens = jnp.array([0, 2, 2, 1])
    others = {"times": jnp.asarray(3, jnp.int64), "unused": {"a": x[0], "b": jnp.zeros((0,))}}
    return {
        "an option": (power.bind(exponent=3), (x,)),
        "integers": (lookup, (tokens, x[:3], x[0])),
        "None": (lookup, (tokens, x[:3], None)),
        "several outputs": (statistics, (x, x[1])),
        "nested": (
            lambda linear, x: nested({"map": linear} | others, x),
            ({"w": x[:3], "b": x[0]}, x),
        ),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_rules(name: str) -> None:
    rule, args = small_subject(name)
    custom, automatic = both_ways(lambda: (run_all(rule, args), vmapped(rule, args)))
    assert_near(custom, automatic, reduced=1000)


def test_pullbacks_may_interleave() -> None:
    x, w = jnp.ones((2, 3)), jnp.linspace(0.0, 1.0, 12).reshape(3, 4)
    y1, pullback1 = jax.vjp(jaxprop.linear, x, w, w[0])
    _, pullback2 = jax.vjp(jaxprop.linear, 2 * x, 3 * w, w[0])
    g = pattern(y1)
    first, second = pullback1(g), pullback2(g)
    assert_near(pullback1(g), first)
    assert_near(second[1], 2 * first[1])
    assert_near(second[0], 3 * first[0])


def test_jvp_and_jacfwd_work_within_automatic_only() -> None:
    x = jnp.linspace(-1.0, 1.0, 5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(jaxprop.tanh, (x,), (x,))
    _, linear = jax.linearize(jaxprop.tanh, x)
    with pytest.raises(TypeError, match="forward-mode"):
        linear(x)
    with jaxprop.automatic():
        _, linear = jax.linearize(jaxprop.tanh, x)
        _, tangent = jax.jvp(jaxprop.tanh, (x,), (x,))
        jacobian = jax.jacfwd(jaxprop.tanh)(x)
    assert_near(linear(x), tangent)
    assert_near(tangent, x * (1 - jnp.tanh(x) ** 2))
    assert_near(jacobian, jax.jacrev(jaxprop.tanh)(x))


def test_automatic_is_part_of_the_cache_key_of_jit() -> None:
    """One jitted function, run under both modes, runs each mode's own program."""
    lie = jaxprop.Rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (7 * g,))
    f = jax.jit(jax.grad(lie))
    x = jnp.asarray(0.5)
    for _ in range(2):
        assert_near(f(x), jnp.asarray(7.0))
        with jaxprop.automatic():
            assert_near(f(x), jnp.cos(x))


@pytest.mark.parametrize("loop", ["scan", "checkpoint", "vmap", "while"])
def test_automatic_reaches_inside(loop: str) -> None:
    lie = jaxprop.Rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (7 * g,))
    runs = {
        "scan": lambda x: lax.scan(lambda c, _: (lie(c), None), x, length=1)[0],
        "checkpoint": jax.checkpoint(lie),
        "vmap": lambda x: jax.vmap(lie)(x[None])[0],
        "while": lambda x: lax.fori_loop(0, 1, lambda _, c: lie(c), x),
    }
    f, x = jax.grad(runs[loop]), jnp.asarray(0.5)
    assert_near(f(x), jnp.asarray(7.0))
    with jaxprop.automatic():
        assert_near(f(x), jnp.cos(x))


def test_linear_transpose_says_that_a_rule_is_not_transposed() -> None:
    """A custom_vjp is no linear primitive to JAX, whatever the rule computes."""
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    with jaxprop.automatic():
        (dx,) = jax.linear_transpose(lambda x: jaxprop.linear(x, w), x)(jnp.ones((2, 4)))
    assert_near(dx, jnp.full((2, 3), 4.0))
    with pytest.raises(NotImplementedError):
        jax.linear_transpose(lambda x: jaxprop.linear(x, w), x)(jnp.ones((2, 4)))
