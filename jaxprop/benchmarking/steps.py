"""The seed network's training step: hand-written gradients against `jax.grad` of the same code."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop
from jaxprop.benchmarking.timing import Contender, Entry, memory
from jaxprop.costs import Cost
from jaxprop.installing import PyTree
from jaxprop.train.optimisers import update

FEATURES, CLASSES = 64, 10
WIDTHS = (64, 256, 512, 1024, 2048)
BATCHES = (64, 256, 1024)
STRENGTH, RATE, B1 = 1e-3, 1e-3, 0.9
# How far float32 gradients may lie from float64, of each parameter's largest.
TOLERANCE = 1e-4
# Pre-activations this near to relu's kink may fall on either side of it in float32.
KINK = 1e-5
COMPILATIONS = 3

Gradient = Callable[..., tuple[jax.Array, PyTree]]


def step_entries(quick: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Names, and what makes each entry when its turn has come."""
    for donate in (True, False):
        for width in WIDTHS[:1] if quick else WIDTHS:
            for batch in BATCHES[:1] if quick else BATCHES:
                yield _name(width, batch, donate), partial(step_entry, width, batch, donate)


def _name(width: int, batch: int, donate: bool) -> str:
    return f"step{'' if donate else '-undonated'}-width{width}-batch{batch}"


def step_entry(width: int, batch: int, donate: bool = True) -> Entry:
    """One jitted step of Adam both ways, the state donated as in training, or not."""
    J = _cost(width)
    params = J.network.init(jax.random.key(0), (batch, FEATURES))
    x = _examples(J, params, batch)
    y = jax.random.randint(jax.random.key(2), (batch,), 0, CLASSES)
    state = (params, _optimiser().init(params))
    ways = {"automatic": _automatic(J), "by hand": jaxprop.value_and_grad(J)}
    steps = {name: _step(way, donate) for name, way in ways.items()}
    compiled = _compile(steps, state, x, y)
    truth = _truth(J, params, x, y)
    return Entry(
        _name(width, batch, donate),
        ("automatic",),
        {name: _contender(*compiled[name], state, x, y, truth) for name in ways},
    )


def _cost(width: int) -> Cost:
    network = jaxprop.chain(
        hidden_1=jaxprop.dense(width, jaxprop.relu),
        hidden_2=jaxprop.dense(width, jaxprop.relu),
        output=jaxprop.dense(CLASSES),
    )
    return jaxprop.cost(network, jaxprop.softmax_cross_entropy, jaxprop.l2.bind(leaves="*/w"))


def _optimiser() -> optax.GradientTransformation:
    return optax.adam(RATE, b1=B1)


def _automatic(J: Cost) -> Gradient:
    """`jax.grad` of the references."""

    def run(*args: PyTree) -> tuple[jax.Array, PyTree]:
        with jaxprop.automatic():
            return jax.value_and_grad(J)(*args)

    return run


def _examples(J: Cost, params: PyTree, batch: int) -> jax.Array:
    """Random examples that keep clear of relu's kinks.

    On a kink float32 and float64 may take different sides, and both gradients are right.
    """
    x = jax.random.normal(jax.random.key(1), (2 * batch, FEATURES))
    clear = np.flatnonzero(distance_from_kinks(J, params, x) > KINK)[:batch]
    if len(clear) < batch:
        raise ValueError(f"{batch} examples must keep clear of relu's kinks, got {len(clear)}.")
    return x[clear]


def distance_from_kinks(J: Cost, params: PyTree, x: jax.Array) -> np.ndarray:
    """By example, the smallest magnitude of a hidden layer's pre-activation, in float64."""
    with jax.enable_x64(True):
        h, nearest = x.astype(jnp.float64), np.full(len(x), np.inf)
        for name in ("hidden_1", "hidden_2"):
            wide = jax.tree.map(lambda p: p.astype(jnp.float64), params[name])
            a = J.network.layers[name].quantities["a"].reference(wide, h)
            h = jaxprop.relu.reference(a)
            nearest = np.minimum(nearest, np.min(np.abs(np.asarray(a)), axis=1))
        return nearest


def _truth(J: Cost, params: PyTree, x: jax.Array, y: jax.Array) -> PyTree:
    """The gradient in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        _, dparams = _automatic(J)(wide, x.astype(jnp.float64), y, STRENGTH)
        return jax.tree.map(np.asarray, dparams)


def relative_error(dparams: PyTree, truth: PyTree) -> float:
    """The largest error of any parameter, over that parameter's largest gradient."""
    errors = jax.tree.map(
        lambda d, t: float(np.max(np.abs(np.asarray(d, np.float64) - t)) / np.max(np.abs(t))),
        dparams,
        truth,
    )
    return max(jax.tree.leaves(errors))


def _step(way: Gradient, donate: bool) -> Callable:
    """A function that jits the step afresh."""
    optimiser, strength = _optimiser(), jnp.float32(STRENGTH)

    def step(state: PyTree, x: jax.Array, y: jax.Array) -> tuple[PyTree, jax.Array]:
        params, moments = state
        value, dparams = way(params, x, y, strength)
        return update(optimiser, dparams, moments, params), value

    return lambda: jax.jit(step, donate_argnums=0 if donate else ())


def _compile(
    steps: Mapping[str, Callable], state: PyTree, x: jax.Array, y: jax.Array
) -> dict[str, tuple[Any, float]]:
    """By name, the compiled program and its median seconds.

    Tracing and compiling, in alternating order; a first round, which starts what a process
    starts once, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    compiled = {}
    for turn in range(COMPILATIONS + 1):
        for name in list(steps) if turn % 2 else list(steps)[::-1]:
            jax.clear_caches()
            started = time.perf_counter()
            compiled[name] = steps[name]().lower(state, x, y).compile()
            seconds[name].append(time.perf_counter() - started)
    return {name: (compiled[name], float(np.median(seconds[name][1:]))) for name in steps}


def _contender(
    compiled: Any, seconds: float, state: PyTree, x: jax.Array, y: jax.Array, truth: PyTree
) -> Contender:
    """Checked by the very program that is timed: after one step of Adam, whose first moment
    starts at zero, that moment is (1 - b1) times the gradient."""
    after, _ = compiled(jax.tree.map(jnp.copy, state), x, y)
    moment = optax.tree_utils.tree_get(after[1], "mu")
    error = relative_error(moment, jax.tree.map(lambda t: (1 - B1) * t, truth))
    return Contender(
        _repeated(compiled, jax.tree.map(jnp.copy, state), x, y),
        f"relative error {error:.2g}" if not error < TOLERANCE else "",
        seconds,
        result=f"error {error:.1e}",
        **memory(compiled),
    )


def _repeated(compiled: Callable, state: PyTree, x: jax.Array, y: jax.Array) -> Callable[[], None]:
    """Each call does one step, from where the last one ended."""
    box: list[Any] = [state]

    def run() -> None:
        box[0], _ = jax.block_until_ready(compiled(box[0], x, y))

    return run
