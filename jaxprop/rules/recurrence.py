"""Recurrences in blocks of time: what lstm, gru and rnn share.

A step is a = x @ w_x + b, q = h @ w_h + b_h, and the cell's own new state of these and the old one.
Of a whole sequence only hs is kept, and what else is in the state before each block of steps. The
backward takes the blocks from the last to the first: as hs is known, it rebuilds a, q and the gates
of all steps of a block at once, runs back through the block, and adds its share of a weight's
gradient by one product over all its steps. So no more than a block of gates, and of their
gradients, is ever held. The labels F and B are those of lstm; a cell's own are in its file.
"""

from collections.abc import Callable
from functools import partial
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprop.array_types import accumulator, vary, varying_axes
from jaxprop.precision import at_least_float32, floating, matmul, up

# A block has this many rows (steps times examples), or a quarter of the sequence where that is
# less, and this many steps at least: below that a product over a block is slow, far above it the
# gates of a block no longer fit into a cache.
ROWS, STEPS = 512, 8

# h first, in x's dtype, then what else a cell has, in the dtype to compute in.
State = tuple[jax.Array, ...]
Gates = Any


def _as_of_x(gates: Gates, da: jax.Array) -> jax.Array:
    """dq of a cell in which h enters as x does."""
    return da


class Cell(NamedTuple):
    """One kind of recurrence; its functions take any axes before the last.

    a and q are lists, an array for each gate. In a loop over steps XLA reads a gate's numbers of
    one step a vector at a time where the gate is an array by itself, else one by one.

    step:      (a, q, state) -> the new state.
    gates:     (a, q, h, *others) -> what the way back through a step reads, for all steps of a
               block, time first; h is that before each step, the others before the first.
    back:      (gates, dstate) -> (da, the cotangent of the old state but for what q passes on).
    recurrent: (gates, da) -> dq; da itself unless told.
    """

    step: Callable[..., State]
    gates: Callable[..., Gates]
    back: Callable[[Gates, State], tuple[jax.Array, State]]
    recurrent: Callable[[Gates, jax.Array], jax.Array] = _as_of_x


class Weights(NamedTuple):
    """w_x (C, K), w_h (H, K), b and b_h (K,) or None: a step computes K numbers of x, and of h."""

    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array | None
    b_h: jax.Array | None = None

    def inputs(self, x: jax.Array) -> list[jax.Array]:
        return self._by_gate(_affine(x, self.w_x, self.b))  # F1

    def recurrent(self, h: jax.Array) -> list[jax.Array]:
        return self._by_gate(_affine(h, self.w_h, self.b_h))  # F1

    def _by_gate(self, y: jax.Array) -> list[jax.Array]:
        hidden, k = self.w_h.shape
        return jnp.split(y, k // hidden, axis=-1)


def _affine(x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
    y = matmul(x, w)
    return y if b is None else y + b.astype(y.dtype)


class Sequence(NamedTuple):
    """x (B, T, C), the state before the first step (B, H) each, the weights, lengths (B,) or None.

    From an example's length on its state stays what it is, and its output is 0.
    """

    x: jax.Array
    state: State
    weights: Weights
    lengths: jax.Array | None

    def steps(self, start: jax.typing.ArrayLike, size: int) -> tuple[jax.Array, Any]:
        """(x, whether a step is within the length) of some steps, time first.

        x is 0 past the length, so that what is not finite there reaches nothing.
        """
        x = _steps(self.x, start, size)
        if self.lengths is None:
            return x, None
        t = start + jnp.arange(size, dtype=jnp.int32)
        live = (t[:, None] < self.lengths)[..., None]
        return jnp.where(live, x, 0), live


def sequence(x: jax.Array, state: State, weights: Weights, lengths: jax.Array | None) -> Sequence:
    """A rule's arguments as they are computed with: their dtypes, and one axis of examples."""
    h, *others = state
    wide = at_least_float32(x.dtype)
    axes = _varying((x, state, weights))
    kept = [vary(s, axes) for s in (h.astype(x.dtype), *(other.astype(wide) for other in others))]
    if lengths is not None:
        lengths = lengths.astype(jnp.int32)
    if x.ndim == 3:
        return Sequence(x, tuple(kept), weights, lengths)
    n = prod(x.shape[:-2])
    flat = tuple(s.reshape(n, s.shape[-1]) for s in kept)
    lengths = None if lengths is None else lengths.reshape(n)
    return Sequence(x.reshape(n, *x.shape[-2:]), flat, weights, lengths)


def outputs(hs: jax.Array, last: State, x: jax.Array, state: State) -> tuple[jax.Array, State]:
    """(hs, the last state) with the axes of x before its last, each state as it began."""
    hs = hs if x.ndim == 3 else hs.reshape(*x.shape[:-1], hs.shape[-1])
    pairs = zip(last, state, strict=True)
    return hs, tuple(end.reshape(begin.shape).astype(begin.dtype) for end, begin in pairs)


def _varying(tree: Any) -> frozenset[str]:
    """The mesh axes on which any leaf differs; `lax.scan` asks them of all that it carries."""
    return frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))


@partial(jax.jit, static_argnames="cell")  # or each call outside of jit would compile its loop
def by_steps(cell: Cell, s: Sequence) -> tuple[jax.Array, State]:
    """(hs, the last state) as the recurrence says: one step after the other."""
    x, live = s.steps(0, s.x.shape[1])
    state, hs = lax.scan(partial(_step, cell, s.weights), s.state, (s.weights.inputs(x), live))
    return jnp.moveaxis(hs, 0, 1), state


def _step(cell: Cell, weights: Weights, state: State, now: tuple) -> tuple[State, jax.Array]:
    a, live = now
    new = cell.step(a, weights.recurrent(state[0]), state)
    if live is None:
        return new, new[0]
    return _where(live, new, state), jnp.where(live, new[0], 0)


def _where(live: jax.Array, new: State, old: State) -> State:
    return tuple(jnp.where(live, a, b) for a, b in zip(new, old, strict=True))


@partial(jax.jit, static_argnames=("cell", "block"))
def forward_in_blocks(cell: Cell, block: int | None, s: Sequence) -> tuple[jax.Array, State, list]:
    """(hs, the last state, and what is in the state besides h before each block)."""

    def run(carry: tuple, start: jax.typing.ArrayLike, size: int) -> tuple[tuple, State]:
        state, hs = carry
        x, live = s.steps(start, size)
        now = s.weights.inputs(x), live
        new, found = lax.scan(partial(_step, cell, s.weights), state, now)
        return (new, _set_steps(hs, found, start)), state[1:]

    batch, length, _ = s.x.shape
    h = s.state[0]
    hs = jnp.broadcast_to(jnp.zeros_like(h)[:, None], (batch, length, h.shape[-1]))
    carry, kept = (s.state, hs), []
    n, size, rest = blocks(batch, length, block)
    if n:
        starts = size * jnp.arange(n, dtype=jnp.int32)
        carry, others = lax.scan(lambda carry, start: run(carry, start, size), carry, starts)
        kept.append(others)
    if rest:
        carry, others = run(carry, n * size, rest)
        kept.append(others)
    state, hs = carry
    return hs, state, kept


@partial(jax.jit, static_argnames=("cell", "block"))
def backward_in_blocks(
    cell: Cell,
    block: int | None,
    s: Sequence,
    hs: jax.Array,
    kept: list,
    g_hs: jax.Array,
    g_state: State,
) -> tuple[jax.Array, State, Weights]:
    """(dx, the cotangent of the state before the first step, those of the weights)."""
    w = s.weights
    w_h_t = w.w_h.T  # once: within the loop XLA would read w_h across its rows at every step

    def back(dstate: State, now: tuple) -> tuple[State, jax.Array]:
        """One step back, from the cotangent of the state after it."""
        gates, g, live = now
        da, (dh, *dothers) = cell.back(gates, (dstate[0] + up(g), *dstate[1:]))
        dq = cell.recurrent(gates, da).astype(s.x.dtype)
        before = (dh + matmul(dq, w_h_t), *dothers)  # B9, B10
        if live is None:
            return before, da
        return _where(live, before, dstate), jnp.where(live, da, 0)

    def run(carry: tuple, start: Any, others: State, size: int) -> tuple:
        dx, dstate, sums = carry
        x, live = s.steps(start, size)
        h = _before(s.state[0], hs, start, size)
        gates = cell.gates(w.inputs(x), w.recurrent(h), h, *others)
        now = gates, _steps(g_hs, start, size), live
        dstate, da = lax.scan(back, dstate, now, reverse=True)
        shares = _shares(w, x, h, da, cell.recurrent(gates, da))
        dx_here = matmul(da.astype(x.dtype), w.w_x.T).astype(x.dtype)  # B8
        if live is not None:
            dx_here = jnp.where(live, dx_here, 0)  # even where w_x is not finite
        sums = jax.tree.map(lambda old, new: old + new.astype(old.dtype), sums, shares)
        return _set_steps(dx, dx_here, start), dstate, sums

    batch, length, _ = s.x.shape
    hs, g_hs = (a.reshape(batch, length, a.shape[-1]) for a in (hs, g_hs))
    terms = jax.tree.leaves((s, hs, g_hs, g_state))
    started = zip(g_state, s.state, strict=True)
    wide = at_least_float32(s.x.dtype)
    dstate = tuple(vary(d.astype(wide).reshape(h.shape), _varying(terms)) for d, h in started)
    sums = jax.tree.map(lambda weight: accumulator(weight, terms), w)
    carry = (vary(jnp.zeros_like(s.x), _varying(terms)), dstate, sums)
    n, size, rest = blocks(batch, length, block)
    if rest:
        carry = run(carry, n * size, kept[-1], rest)
    if n:
        starts = size * jnp.arange(n, dtype=jnp.int32)

        def step(carry: tuple, at: tuple) -> tuple[tuple, None]:
            start, others = at
            return run(carry, start, others, size), None

        carry, _ = lax.scan(step, carry, (starts, kept[0]), reverse=True)
    return carry


def _shares(w: Weights, x: jax.Array, h: jax.Array, da: jax.Array, dq: jax.Array) -> Weights:
    """What a block of steps adds to the gradients of the weights, in float32 at least."""

    def product(x: jax.Array, d: jax.Array) -> jax.Array:
        rows, d_rows = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
        return matmul(rows.T, d_rows.astype(x.dtype))

    return Weights(
        product(x, da),  # B11
        product(h, dq),  # B12
        None if w.b is None else jnp.sum(da, (0, 1)),  # B13
        None if w.b_h is None else jnp.sum(dq, (0, 1)),
    )


def _before(h0: jax.Array, hs: jax.Array, start: jax.typing.ArrayLike, size: int) -> jax.Array:
    """h before each of some steps, time first."""
    last = lax.dynamic_index_in_dim(hs, jnp.maximum(start - 1, 0), 1, keepdims=False)
    first = jnp.where(start == 0, h0, last)
    return jnp.concatenate([first[None], _steps(hs, start, size)[:-1]])


def _steps(x: jax.Array, start: jax.typing.ArrayLike, size: int) -> jax.Array:
    """Some steps of (B, T, C), time first."""
    return jnp.moveaxis(lax.dynamic_slice_in_dim(x, start, size, axis=1), 1, 0)


def _set_steps(x: jax.Array, new: jax.Array, start: jax.typing.ArrayLike) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, jnp.moveaxis(new, 0, 1), start, axis=1)


def blocks(batch: int, length: int, block: int | None) -> tuple[int, int, int]:
    """(how many blocks, of how many steps, and the steps that are left for one more)."""
    block = block or max(STEPS, min(ROWS // max(batch, 1), length // 4))
    size = ceil(length / max(1, ceil(length / block)))
    n = length // max(1, size)
    return n, size, length - n * size


def check(
    owner: str,
    x: jax.Array,
    states: dict[str, jax.Array],
    weights: Weights,
    lengths: jax.Array | None,
    block: int | None,
    gates: int,
) -> None:
    """TypeError or ValueError where a recurrence with so many gates does not take the arguments."""
    w_h = weights.w_h
    named = {**states, "w_x": weights.w_x, "w_h": w_h, "b": weights.b}
    for name, array in {"x": x, **named}.items():
        if array is not None:
            floating(owner, name, array)
    if x.ndim < 2 or w_h.ndim != 2 or w_h.shape[1] != gates * w_h.shape[0]:
        raise ValueError(
            f"{owner}: x must be (..., T, C) and w_h (H, {gates} * H), got x {x.shape} and w_h "
            f"{w_h.shape}. Weights are stored (in, out): transpose a ({gates} * H, H) matrix."
        )
    hidden = w_h.shape[0]
    expected = dict.fromkeys(states, (*x.shape[:-2], hidden))
    expected |= {"w_x": (x.shape[-1], gates * hidden), "w_h": w_h.shape, "b": (gates * hidden,)}
    for name, array in named.items():
        if array is not None and array.shape != expected[name]:
            raise ValueError(
                f"{owner}: {name} must be {expected[name]} where x is {x.shape} and w_h "
                f"{w_h.shape}, got {array.shape}. Add, drop, transpose or repeat an axis."
            )
    _check_lengths(owner, x, lengths)
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ValueError(
            f"{owner}: block must be a positive integer, the steps whose gates are held at once, "
            f"or None, got {block!r}."
        )


def _check_lengths(owner: str, x: jax.Array, lengths: jax.Array | None) -> None:
    if lengths is None:
        return
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"{owner}: lengths must be integers, got {lengths.dtype}. Convert them with "
            "lengths.astype(jnp.int32); they count steps."
        )
    if lengths.shape != x.shape[:-2]:
        raise ValueError(
            f"{owner}: lengths must be {x.shape[:-2]}, one for each example, got {lengths.shape}. "
            "Add, drop or repeat an axis."
        )
